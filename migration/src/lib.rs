//! The database migrations of Keyvouch, for SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! Three ways to apply them: `keyvouch migrate`, the program `keyvouch-migration` of this crate, and this library.
//! [`Migrator`] brings a database to the schema that this release needs, while it holds a lock, so that any number of
//! processes may start it at once. [`migrations`] gives the migrations to a SeaORM `Migrator` of your own, whose
//! history they then share.
//!
//! Migrations that were released are frozen: they never import live entities and are never edited, only followed by
//! others. `README.md` beside this crate says how they are written.

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

/// The migrations in the order in which they are applied, for tables with these `names`, to be put into a `Migrator` of
/// your own. Its history is then kept by you: tell the server its table's name with `store.migrations_table`.
#[must_use]
pub fn migrations(names: &Names) -> Vec<Box<dyn MigrationTrait>> {
    all(names).into_iter().map(|migration| Box::new(migration) as Box<dyn MigrationTrait>).collect()
}

/// The one list of migrations.
fn all(names: &Names) -> Vec<SqlMigration> {
    vec![
        SqlMigration::new::<m20261123_000001_create_key_tables::CreateKeyTables>(names),
        SqlMigration::new::<m20261128_000002_change_ids::ChangeIds>(names),
    ]
}
