//! Migrating a database to the schema of this release, and reverting migrations.

use std::fmt;

use sea_orm_migration::MigratorTraitSelf;
use sea_orm_migration::prelude::{DynIden, IntoIden as _, MigrationTrait, Query};
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use sea_orm_migration::sea_query::{Alias, SchemaName, TableName};

use crate::lock::{Session, lock};
use crate::sql_migration::BREAKING;
use crate::{Names, all, migrations, names};

/// Migrates a database to the schema of this release.
///
/// Its methods take a connection pool with exactly one connection, whose statements have no timeout, because
/// a migration can take long.
#[derive(Clone, Debug)]
pub struct Migrator {
    names: Names,
    schema: Option<Schema>,
}

/// The PostgreSQL schema of the tables.
#[derive(Clone, Debug)]
struct Schema {
    name: String,
    /// Whether [`Migrator::up`] creates it.
    is_created: bool,
}

/// The differences between a database's schema and the schema of this release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaState {
    /// The migrations that were not applied yet, oldest first.
    pub pending: Vec<String>,
    /// Applied migrations that this release does not have. They belong to a newer release, or to another
    /// program that shares the history.
    pub unknown: Vec<String>,
}

/// A migration to be applied or reverted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMigration {
    /// The name of the migration.
    pub name: String,
    /// The SQL statements of the migration, in their order.
    pub sql: Vec<String>,
}

/// The reason why the schema was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database returned an error.
    #[error("the database reported an error")]
    Database(#[from] DbErr),
    /// Another process has held the migration lock for an hour. Returned only for MySQL and MariaDB.
    #[error("another process holds the migration lock")]
    Locked,
    /// The history has migrations of a newer release.
    #[error("the schema has migrations that this release does not support ({}); use the release that applied them", .0.join(", "))]
    Newer(Vec<String>),
}

impl SchemaState {
    /// Returns the unknown migrations that are incompatible with this release.
    pub fn breaking(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str).filter(|name| name.contains(BREAKING))
    }
}

impl fmt::Display for PlannedMigration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-- {}", self.name)?;
        for statement in &self.sql {
            write!(f, "\n{statement};")?;
        }
        Ok(())
    }
}

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        migrations(&self.names)
    }

    fn migration_table_name(&self) -> DynIden {
        Alias::new(self.names.history()).into_iden()
    }
}

impl Migrator {
    /// Returns a migrator of the tables with these names.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self { names, schema: None }
    }

    /// Sets the PostgreSQL schema of the tables, which is created if it does not exist. The `search_path` of the
    /// connections has no effect then. Other databases ignore it.
    ///
    /// # Errors
    /// The name violates the rules of a prefix: see [`Names::prefixed`].
    pub fn in_schema(self, schema: &str) -> Result<Self, names::InvalidName> {
        names::check(schema)?;
        Ok(Self { schema: Some(Schema { name: schema.to_owned(), is_created: true }), ..self })
    }

    /// Sets the PostgreSQL schema of the tables, which exists. The `search_path` of the connections has no effect
    /// then. Other databases ignore it.
    #[must_use]
    pub fn in_existing_schema(self, schema: &str) -> Self {
        Self { schema: Some(Schema { name: schema.to_owned(), is_created: false }), ..self }
    }

    /// Returns the schema, if the database has schemas and one was set.
    fn schema_of(&self, backend: DbBackend) -> Option<&Schema> {
        self.schema.as_ref().filter(|_| backend == DbBackend::Postgres)
    }

    /// Returns the name of `table` with the schema.
    fn table(&self, table: &str, backend: DbBackend) -> TableName {
        let schema = self.schema_of(backend);
        let schema = schema.map(|schema| SchemaName(None, Alias::new(&schema.name).into_iden()));
        TableName(schema, Alias::new(table).into_iden())
    }

    /// Returns how the schema differs from the schema of this release. Makes no changes.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn state(&self, connection: &impl ConnectionTrait) -> Result<SchemaState, DbErr> {
        let applied = self.applied(connection).await?;
        let known: Vec<String> = all(&self.names).iter().map(name_of).collect();
        Ok(SchemaState {
            pending: known.iter().filter(|name| !applied.contains(name)).cloned().collect(),
            unknown: applied.into_iter().filter(|name| !known.contains(name)).collect(),
        })
    }

    /// Returns the migrations that [`Migrator::up`] would apply. Makes no changes.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn plan_up(&self, connection: &impl ConnectionTrait) -> Result<Vec<PlannedMigration>, DbErr> {
        let state = self.state(connection).await?;
        let backend = connection.get_database_backend();
        let mut plan = Vec::new();
        for migration in all(&self.names) {
            let name = name_of(&migration);
            if state.pending.contains(&name) {
                plan.push(PlannedMigration { name, sql: migration.up_sql(backend) });
            }
        }
        if let (Some(schema), Some(first)) = (self.schema_of(backend), plan.first_mut())
            && schema.is_created
        {
            first.sql.splice(..0, [create_schema(&schema.name), search_only(&schema.name)]);
        }
        Ok(plan)
    }

    /// Applies all pending migrations and returns their names. Uses one transaction if the database supports
    /// it, and otherwise applies one migration after the other. Of several concurrent processes, one does the
    /// work while the others wait. Idempotent.
    ///
    /// # Errors
    /// - [`MigrateError::Database`] if the database returned an error.
    /// - [`MigrateError::Locked`] on MySQL, if another process has held the lock for an hour.
    /// - [`MigrateError::Newer`] if migrations are pending, but the schema has migrations of a newer release.
    pub async fn up(&self, connection: &DatabaseConnection) -> Result<Vec<String>, MigrateError> {
        if self.state(connection).await?.pending.is_empty() {
            return Ok(Vec::new());
        }
        let schema = self.schema_of(connection.get_database_backend());
        if let Some(schema) = schema
            && schema.is_created
        {
            self.make_schema(connection, &schema.name).await?;
        }
        let session = lock(connection, &self.names, schema.map(|schema| schema.name.as_str())).await?;
        let outcome = match &session {
            Session::Transaction(transaction) => self.up_within(transaction).await,
            Session::Connection(connection) => self.up_within(*connection).await,
        };
        self.end(session, outcome).await
    }

    /// Reverts the last `steps` migrations and returns their names, the last first. The tables and columns
    /// that they added are deleted, including their data.
    ///
    /// # Errors
    /// - [`MigrateError::Database`] if the database returned an error.
    /// - [`MigrateError::Locked`] on MySQL, if another process has held the lock for an hour.
    /// - [`MigrateError::Newer`] if the schema has migrations of a newer release.
    pub async fn down(
        &self,
        connection: &DatabaseConnection,
        steps: u32,
    ) -> Result<Vec<String>, MigrateError> {
        let schema = self.schema_of(connection.get_database_backend());
        let session = lock(connection, &self.names, schema.map(|schema| schema.name.as_str())).await?;
        let outcome = match &session {
            Session::Transaction(transaction) => self.down_within(transaction, steps).await,
            Session::Connection(connection) => self.down_within(*connection, steps).await,
        };
        self.end(session, outcome).await
    }

    /// Returns the migrations that [`Migrator::down`] would revert, the last first. Makes no changes.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn plan_down(
        &self,
        connection: &impl ConnectionTrait,
        steps: u32,
    ) -> Result<Vec<PlannedMigration>, DbErr> {
        let applied = self.applied(connection).await?;
        let backend = connection.get_database_backend();
        let undone =
            all(&self.names).into_iter().rev().filter(|migration| applied.contains(&name_of(migration)));
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        let mut plan: Vec<_> = undone
            .take(steps)
            .map(|migration| PlannedMigration { name: name_of(&migration), sql: migration.down_sql(backend) })
            .collect();
        if let (Some(schema), Some(first)) = (self.schema_of(backend), plan.first_mut())
            && schema.is_created
        {
            first.sql.insert(0, search_only(&schema.name));
        }
        Ok(plan)
    }

    /// Returns whether the database has keys, which [`Migrator::down`] could delete.
    ///
    /// # Errors
    /// The database can't be read.
    pub async fn has_keys(&self, connection: &impl ConnectionTrait) -> Result<bool, DbErr> {
        let applied = self.applied(connection).await?;
        if !all(&self.names).iter().any(|migration| applied.contains(&name_of(migration))) {
            return Ok(false);
        }
        let keys = self.table(&self.names.api_key(), connection.get_database_backend());
        let select = Query::select().column("id").from(keys).limit(1).take();
        Ok(connection.query_one(&select).await?.is_some())
    }

    async fn up_within<'c, C>(&self, connection: &'c C) -> Result<Vec<String>, MigrateError>
    where
        C: ConnectionTrait,
        &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
    {
        // Another process may have migrated meanwhile.
        let state = self.state(connection).await?;
        if state.pending.is_empty() {
            return Ok(Vec::new());
        }
        if !state.unknown.is_empty() {
            return Err(MigrateError::Newer(state.unknown));
        }
        MigratorTraitSelf::up(self, connection, None).await?;
        Ok(state.pending)
    }

    async fn down_within<'c, C>(&self, connection: &'c C, steps: u32) -> Result<Vec<String>, MigrateError>
    where
        C: ConnectionTrait,
        &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
    {
        let state = self.state(connection).await?;
        if !state.unknown.is_empty() {
            return Err(MigrateError::Newer(state.unknown));
        }
        let plan = self.plan_down(connection, steps).await?;
        if !plan.is_empty() {
            MigratorTraitSelf::down(self, connection, Some(steps)).await?;
        }
        Ok(plan.into_iter().map(|migration| migration.name).collect())
    }

    async fn end<T>(
        &self,
        session: Session<'_>,
        outcome: Result<T, MigrateError>,
    ) -> Result<T, MigrateError> {
        match outcome {
            Ok(done) => {
                session.finish(&self.names).await?;
                Ok(done)
            }
            Err(error) => {
                // Only the first failure is reported, because a failed rollback adds nothing to it.
                let _ = session.abandon(&self.names).await;
                Err(error)
            }
        }
    }

    /// Creates the schema. Concurrent creations can fail even with `IF NOT EXISTS`, so a failure is ignored
    /// if the schema exists afterwards.
    async fn make_schema(&self, connection: &DatabaseConnection, schema: &str) -> Result<(), DbErr> {
        let made = connection.execute_unprepared(&create_schema(schema)).await;
        if made.is_err() && has_schema(connection, schema).await? {
            return Ok(());
        }
        made.map(drop)
    }

    /// Returns the names in the history. Empty if the history does not exist yet.
    async fn applied(&self, connection: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
        if !self.has_history(connection).await? {
            return Ok(Vec::new());
        }
        let select = Query::select()
            .column("version")
            .from(self.table(self.names.history(), connection.get_database_backend()))
            .order_by("version", sea_orm_migration::sea_query::Order::Asc)
            .take();
        let rows = connection.query_all(&select).await?;
        rows.iter().map(|row| row.try_get_by_index(0)).collect()
    }

    async fn has_history(&self, connection: &impl ConnectionTrait) -> Result<bool, DbErr> {
        let backend = connection.get_database_backend();
        let history = self.names.history();
        if let Some(schema) = self.schema_of(backend) {
            let sql = "SELECT to_regclass(quote_ident($1) || '.' || quote_ident($2)) IS NOT NULL";
            let values = [schema.name.as_str().into(), history.into()];
            return is_true(connection, Statement::from_sql_and_values(backend, sql, values)).await;
        }
        let sql = match backend {
            DbBackend::Postgres => "SELECT to_regclass(quote_ident($1)) IS NOT NULL",
            DbBackend::MySql => {
                "SELECT COUNT(*) > 0 FROM information_schema.tables \
                 WHERE table_schema = DATABASE() AND table_name = ?"
            }
            _ => "SELECT COUNT(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?",
        };
        is_true(connection, Statement::from_sql_and_values(backend, sql, [history.into()])).await
    }
}

async fn has_schema(connection: &DatabaseConnection, schema: &str) -> Result<bool, DbErr> {
    let sql = "SELECT COUNT(*) > 0 FROM pg_namespace WHERE nspname = $1";
    is_true(connection, Statement::from_sql_and_values(DbBackend::Postgres, sql, [schema.into()])).await
}

async fn is_true(connection: &impl ConnectionTrait, question: Statement) -> Result<bool, DbErr> {
    let row = connection.query_one_raw(question).await?;
    Ok(row.map(|row| row.try_get_by_index(0)).transpose()?.unwrap_or(false))
}

fn create_schema(schema: &str) -> String {
    format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(schema))
}

/// Returns the statement after which names of tables mean those of `schema`, for statements that are run by hand.
fn search_only(schema: &str) -> String {
    format!("SET search_path TO {}", quoted(schema))
}

/// Returns the name of a PostgreSQL schema as an identifier of SQL.
pub(crate) fn quoted(schema: &str) -> String {
    format!("\"{}\"", schema.replace('"', "\"\""))
}

fn name_of(migration: &crate::SqlMigration) -> String {
    use sea_orm_migration::MigrationName as _;
    migration.name().to_owned()
}
