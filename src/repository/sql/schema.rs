//! Whether the database has the tables that this release needs, and making them.

use std::collections::HashSet;

use keyvouch_migration::Migrator;
use keyvouch_migration::sea_orm_migration::{
    IntoSchemaManagerConnection, MigratorTrait, SchemaManager, seaql_migrations,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait as _, TransactionTrait as _};

use super::change::immediate;
use super::error::from_db;
use crate::repository::Result;

/// The names of the migrations that are not applied yet, oldest first. Changes nothing. Migrations of a newer release
/// that are applied already are no obstacle.
pub(super) async fn pending<'c, C>(connection: &'c C) -> Result<Vec<String>>
where
    C: ConnectionTrait,
    &'c C: IntoSchemaManagerConnection<'c>,
{
    let all = Migrator::get_migration_files().into_iter().map(|migration| migration.name().to_owned());
    let applied = applied(connection).await?;
    Ok(all.filter(|name| !applied.contains(name)).collect())
}

async fn applied<'c, C>(connection: &'c C) -> Result<HashSet<String>>
where
    C: ConnectionTrait,
    &'c C: IntoSchemaManagerConnection<'c>,
{
    let has_history = SchemaManager::new(connection).has_table("seaql_migrations").await.map_err(from_db)?;
    if !has_history {
        return Ok(HashSet::new());
    }
    let rows = seaql_migrations::Entity::find().all(connection).await.map_err(from_db)?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// Applies what is pending and returns its names, all in one transaction: of several replicas that start at once, one
/// does the work while the others wait, and a migration that fails leaves nothing behind.
pub(super) async fn migrate(connection: &DatabaseConnection) -> Result<Vec<String>> {
    let transaction = connection.begin_with_options(immediate()).await.map_err(from_db)?;
    let pending = pending(&transaction).await?;
    if !pending.is_empty() {
        Migrator::up(&transaction, None).await.map_err(from_db)?;
    }
    transaction.commit().await.map_err(from_db)?;
    Ok(pending)
}
