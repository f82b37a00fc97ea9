//! The tables of Keyvouch next to the tables of another program, created by that program's migrator:
//!
//! ```sh
//! DATABASE_URL=sqlite://app.db?mode=rwc cargo run -p keyvouch-migration --example own_migrator
//! ```
//!
//! A server finds the tables with `store.sql.table_prefix = "vouch_"` and `store.sql.migrations_table = "migration"`.

use keyvouch_migration::Names;
use keyvouch_migration::sea_orm_migration::prelude::*;
use keyvouch_migration::sea_orm_migration::sea_orm::Database;
use keyvouch_migration::sea_orm_migration::{async_trait, schema};

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        // SeaORM runs migrations in this order. Keyvouch's migrations can be anywhere, as long as new ones
        // are added at the end.
        let mut all: Vec<Box<dyn MigrationTrait>> = vec![Box::new(CreateNotes)];
        if let Ok(names) = Names::prefixed("vouch_") {
            all.extend(keyvouch_migration::migrations(&names));
        }
        all
    }

    fn migration_table_name() -> DynIden {
        "migration".into_iden()
    }
}

/// A table of the program.
struct CreateNotes;

impl MigrationName for CreateNotes {
    fn name(&self) -> &'static str {
        "m20260101_000001_create_notes"
    }
}

#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait needs both to agree")]
#[async_trait::async_trait]
impl MigrationTrait for CreateNotes {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table =
            Table::create().table("note").col(schema::pk_auto("id")).col(schema::text("content")).take();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("note").take()).await
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database = Database::connect(std::env::var("DATABASE_URL")?).await?;
    // SeaORM takes no lock. Run this in one process at a time, or use `keyvouch_migration::Migrator` for
    // Keyvouch's tables.
    Migrator::up(&database, None).await?;
    Ok(())
}
