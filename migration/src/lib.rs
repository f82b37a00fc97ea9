//! The database migrations of Keyvouch.
//!
//! [`Migrator`] brings a database to the schema that this release needs. Migrations that were released are frozen:
//! they never import live entities and are never edited, only followed by others.

mod m20261123_000001_create_key_tables;

pub use sea_orm_migration;
use sea_orm_migration::prelude::{MigrationTrait, MigratorTrait, async_trait};

/// Knows all migrations, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20261123_000001_create_key_tables::Migration)]
    }
}
