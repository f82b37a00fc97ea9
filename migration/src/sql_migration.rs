//! A migration that is a list of statements, so that it can be shown before it is run.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::Names;

/// What one migration consists of. On MySQL, where each statement of a schema is a transaction of its own, all of them
/// can be repeated: a migration that was cut off half-way is run again from its beginning.
pub(crate) trait Statements {
    /// Its place in the order and its name. A name with [`BREAKING`] in it says that older releases can't work with the
    /// schema any more.
    const NAME: &'static str;

    /// Brings the schema forward.
    fn up(names: &Names, backend: DbBackend) -> Vec<String>;

    /// Takes that back.
    fn down(names: &Names, backend: DbBackend) -> Vec<String>;
}

/// What the name of a migration holds that releases before it can't live with: the contract step of expand and contract.
pub(crate) const BREAKING: &str = "keyvouch_contract";

type Build = fn(&Names, DbBackend) -> Vec<String>;

/// [`Statements`] for tables with certain names.
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
