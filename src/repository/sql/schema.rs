//! Checks and migrations of the schema.

use keyvouch_migration::{MigrateError, Migrator, PlannedMigration, SchemaState};
use sea_orm::DatabaseConnection;

use super::SqlRepository;
use super::error::from_db;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Migrations run without a timeout, on a connection of their own.
impl SqlRepository {
    fn migrator(&self) -> Result<Migrator> {
        let migrator = Migrator::new(self.options.names.clone());
        match (&self.options.schema, &self.default_schema) {
            (Some(schema), _) => {
                migrator.in_schema(schema).map_err(|error| RepositoryError::new(ErrorKind::Unusable, error))
            }
            (None, Some(schema)) => Ok(migrator.in_existing_schema(schema)),
            (None, None) => Ok(migrator),
        }
    }

    /// Returns how the schema differs from the schema of this release. Makes no changes.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`] if the name of the schema is invalid, and the errors of a read.
    pub async fn schema_state(&self) -> Result<SchemaState> {
        let migrator = &self.migrator()?;
        self.read(|pool| async move { migrator.state(&pool.connection).await.map_err(from_db) }).await
    }

    /// Applies all pending migrations and returns their names. Idempotent. Of concurrent calls of several
    /// processes, one migrates and the others wait for it.
    ///
    /// If the future is dropped, migrations that were completed remain applied. A later call continues.
    ///
    /// # Errors
    /// - [`ErrorKind::Timeout`] on MySQL and MariaDB, if another process holds the lock for longer than an hour.
    /// - [`ErrorKind::Unusable`] if the schema has migrations of a newer release.
    /// - The error of a statement, with the migrations before it applied.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        let single = self.database.single(&self.options).await?;
        let outcome = self.migrator()?.up(&single).await;
        close(single).await?;
        outcome.map_err(from_migrator)
    }

    /// Reverts the last `steps` migrations and returns their names. The tables and columns that they added
    /// are deleted, including their data.
    ///
    /// # Errors
    /// The errors of [`SqlRepository::migrate`].
    pub async fn undo_migrations(&self, steps: u32) -> Result<Vec<String>> {
        let single = self.database.single(&self.options).await?;
        let outcome = self.migrator()?.down(&single, steps).await;
        close(single).await?;
        outcome.map_err(from_migrator)
    }

    /// Returns whether keys exist, which [`SqlRepository::undo_migrations`] could delete.
    ///
    /// # Errors
    /// The errors of a read.
    pub async fn has_keys(&self) -> Result<bool> {
        let migrator = &self.migrator()?;
        self.read(|pool| async move { migrator.has_keys(&pool.connection).await.map_err(from_db) }).await
    }

    /// Returns the migrations that [`SqlRepository::migrate`] would apply, with their statements. Makes no
    /// changes.
    ///
    /// # Errors
    /// The errors of a read.
    pub async fn plan_migrations(&self) -> Result<Vec<PlannedMigration>> {
        self.migrator()?.plan_up(&self.reader.connection).await.map_err(from_db)
    }

    /// Returns the migrations that [`SqlRepository::undo_migrations`] would revert, with their statements. Makes
    /// no changes.
    ///
    /// # Errors
    /// The errors of a read.
    pub async fn plan_undo(&self, steps: u32) -> Result<Vec<PlannedMigration>> {
        self.migrator()?.plan_down(&self.reader.connection, steps).await.map_err(from_db)
    }
}

async fn close(connection: DatabaseConnection) -> Result<()> {
    connection.close().await.map_err(from_db)
}

fn from_migrator(error: MigrateError) -> RepositoryError {
    match error {
        MigrateError::Database(error) => from_db(error),
        MigrateError::Locked => RepositoryError::new(ErrorKind::Timeout, error),
        MigrateError::Newer(_) => RepositoryError::new(ErrorKind::Unusable, error),
    }
}
