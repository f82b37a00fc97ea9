//! Whether the database has the tables that this release needs, and making them.

use std::collections::HashSet;

use keyvouch_migration::Migrator;
use keyvouch_migration::sea_orm_migration::{MigratorTrait, SchemaManager, seaql_migrations};
use sea_orm::{DatabaseConnection, EntityTrait as _};

use super::error::from_db;
use crate::repository::Result;

/// The names of the migrations that are not applied yet, oldest first. Changes nothing. Migrations of a newer release
/// that are applied already are no obstacle.
pub(super) async fn pending(connection: &DatabaseConnection) -> Result<Vec<String>> {
    let all = Migrator::get_migration_files().into_iter().map(|migration| migration.name().to_owned());
    let applied = applied(connection).await?;
    Ok(all.filter(|name| !applied.contains(name)).collect())
}

async fn applied(connection: &DatabaseConnection) -> Result<HashSet<String>> {
    let has_history = SchemaManager::new(connection).has_table("seaql_migrations").await.map_err(from_db)?;
    if !has_history {
        return Ok(HashSet::new());
    }
    let rows = seaql_migrations::Entity::find().all(connection).await.map_err(from_db)?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

/// Applies what is pending and returns its names.
pub(super) async fn migrate(connection: &DatabaseConnection) -> Result<Vec<String>> {
    let pending = pending(connection).await?;
    if !pending.is_empty() {
        Migrator::up(connection, None).await.map_err(from_db)?;
    }
    Ok(pending)
}
