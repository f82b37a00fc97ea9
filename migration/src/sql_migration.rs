//! Migrations as lists of statements, so that they can be printed before they are run.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::Names;

/// The statements of a migration. On MySQL, each schema statement is a transaction of its own. All statements
/// have to be idempotent there, because an interrupted migration is run again from its beginning.
pub(crate) trait Statements {
    /// The name of the migration, which determines its position in the order. A name that contains
    /// [`BREAKING`] marks a schema that is incompatible with older releases.
    const NAME: &'static str;

    /// Returns the statements that apply the migration.
    fn up(names: &Names, backend: DbBackend) -> Vec<String>;

    /// Returns the statements that revert the migration.
    fn down(names: &Names, backend: DbBackend) -> Vec<String>;
}

/// The part of a migration's name that marks it as incompatible with earlier releases: the contract step of
/// expand and contract.
pub(crate) const BREAKING: &str = "keyvouch_contract";

type Build = fn(&Names, DbBackend) -> Vec<String>;

/// The [`Statements`] of a migration for tables with certain names.
pub(crate) struct SqlMigration {
    name: &'static str,
    names: Names,
    up: Build,
    down: Build,
}

impl SqlMigration {
    pub(crate) fn new<S: Statements>(names: &Names) -> Self {
        Self { name: S::NAME, names: names.clone(), up: S::up, down: S::down }
    }

    pub(crate) fn up_sql(&self, backend: DbBackend) -> Vec<String> {
        (self.up)(&self.names, backend)
    }

    pub(crate) fn down_sql(&self, backend: DbBackend) -> Vec<String> {
        (self.down)(&self.names, backend)
    }
}

impl MigrationName for SqlMigration {
    fn name(&self) -> &str {
        self.name
    }
}

#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait needs both to agree")]
#[async_trait::async_trait]
impl MigrationTrait for SqlMigration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, self.up_sql(manager.get_database_backend())).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(manager, self.down_sql(manager.get_database_backend())).await
    }
}

async fn run(manager: &SchemaManager<'_>, statements: Vec<String>) -> Result<(), DbErr> {
    for statement in statements {
        manager.get_connection().execute_unprepared(&statement).await?;
    }
    Ok(())
}
