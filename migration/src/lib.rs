//! The database migrations of Keyvouch, for SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! There are two ways to apply them: `keyvouch migrate` and this library. [`Migrator`] migrates a database to the schema of this release while it holds a lock, so
//! any number of processes may start it at once. [`migrations`] returns the migrations for the SeaORM
//! `Migrator` of another program, whose history they then share.
//!
//! Released migrations are frozen: they never import live entities, and they are never edited, only followed
//! by others. The `README.md` of this crate describes how to write one.

mod lock;
mod m20261123_000001_create_key_tables;
mod m20261128_000002_change_ids;
mod migrator;
mod names;
mod sql_migration;

pub use migrator::{MigrateError, Migrator, PlannedMigration, SchemaState};
pub use names::{InvalidName, Names};
pub use sea_orm_migration;
use sea_orm_migration::prelude::MigrationTrait;

use self::sql_migration::SqlMigration;

/// Returns the migrations for tables with these `names`, in the order in which they are applied, for the
/// `Migrator` of another program. That migrator then stores the history. Set the server's
/// `store.sql.migrations_table` to the name of its table.
#[must_use]
pub fn migrations(names: &Names) -> Vec<Box<dyn MigrationTrait>> {
    all(names).into_iter().map(|migration| Box::new(migration) as Box<dyn MigrationTrait>).collect()
}

/// Returns all migrations in order. This is the only list.
fn all(names: &Names) -> Vec<SqlMigration> {
    vec![
        SqlMigration::new::<m20261123_000001_create_key_tables::CreateKeyTables>(names),
        SqlMigration::new::<m20261128_000002_change_ids::ChangeIds>(names),
    ]
}
