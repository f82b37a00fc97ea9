//! Bringing a database to the schema of this release, and taking that back.

use std::fmt;

use sea_orm_migration::MigratorTraitSelf;
use sea_orm_migration::prelude::{DynIden, IntoIden as _, MigrationTrait, Query};
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use sea_orm_migration::sea_query::Alias;

use crate::lock::{Session, lock};
use crate::sql_migration::BREAKING;
use crate::{Names, all, migrations, names};

/// Brings a database to the schema of this release.
///
/// Its methods take a connection pool with exactly one connection, whose statements have no deadline: a migration takes
/// as long as it needs.
#[derive(Clone, Debug)]
pub struct Migrator {
    names: Names,
    schema: Option<String>,
}

/// How a database's schema differs from that of this release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaState {
    /// The migrations that the database lacks, oldest first.
    pub pending: Vec<String>,
    /// Those that it has and that this release does not know: a newer release's, or those of another program that shares
    /// the history.
    pub unknown: Vec<String>,
}

/// One migration that would be run, or undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMigration {
    /// Its name.
    pub name: String,
    /// Its statements.
    pub sql: Vec<String>,
}

/// Why the schema was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database refused.
    #[error("the database refused")]
    Database(#[from] DbErr),
    /// Another process migrates, for an hour already.
    #[error("another process holds the migration lock")]
    Locked,
    /// The history has migrations of a newer release.
    #[error("the schema has migrations that this release does not know ({}): use the release that made them", .0.join(", "))]
    Newer(Vec<String>),
}

impl SchemaState {
    /// The unknown migrations that this release can't live with.
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
    /// Migrates the tables with these names.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self { names, schema: None }
    }

    /// Has the tables in this schema of PostgreSQL, which is made if it is missing. The connections have to name it as
    /// their `search_path`.
    ///
    /// # Errors
    /// The name breaks the rules of a prefix.
    pub fn in_schema(self, schema: &str) -> Result<Self, names::InvalidName> {
        names::check(schema)?;
        Ok(Self { schema: Some(schema.to_owned()), ..self })
    }

    /// How the schema differs from that of this release. Changes nothing.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn state(&self, connection: &impl ConnectionTrait) -> Result<SchemaState, DbErr> {
        let applied = self.applied(connection).await?;
        let known: Vec<String> = all(&self.names).iter().map(name_of).collect();
        Ok(SchemaState {
            pending: known.iter().filter(|name| !applied.contains(name)).cloned().collect(),
            unknown: applied.into_iter().filter(|name| !known.contains(name)).collect(),
        })
    }

    /// The migrations that [`Migrator::up`] would run.
    ///
    /// # Errors
    /// The database can't be asked.
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
        if let (Some(schema), Some(first)) = (&self.schema, plan.first_mut()) {
            first.sql.insert(0, create_schema(schema));
        }
        Ok(plan)
    }

    /// Runs all migrations that are pending and returns their names: in one transaction where the database can, otherwise
    /// one after the other. Of several processes one does the work while the others wait.
    ///
    /// # Errors
    /// The database refused, or has a newer schema that lacks a migration of this release.
    pub async fn up(&self, connection: &DatabaseConnection) -> Result<Vec<String>, MigrateError> {
        if self.state(connection).await?.pending.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(schema) = &self.schema
            && connection.get_database_backend() == DbBackend::Postgres
        {
            self.make_schema(connection, schema).await?;
        }
        let session = lock(connection, &self.names).await?;
        let outcome = match &session {
            Session::Transaction(transaction) => self.up_within(transaction).await,
            Session::Connection(connection) => self.up_within(*connection).await,
        };
        self.end(session, outcome).await
    }

    /// Undoes the last `steps` migrations and returns their names, the last first. What they added is lost, data too.
    ///
    /// # Errors
    /// The database refused, or has migrations of a newer release.
    pub async fn down(
        &self,
        connection: &DatabaseConnection,
        steps: u32,
    ) -> Result<Vec<String>, MigrateError> {
        let session = lock(connection, &self.names).await?;
        let outcome = match &session {
            Session::Transaction(transaction) => self.down_within(transaction, steps).await,
            Session::Connection(connection) => self.down_within(*connection, steps).await,
        };
        self.end(session, outcome).await
    }

    /// The migrations that [`Migrator::down`] would undo.
    ///
    /// # Errors
    /// The database can't be asked.
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
        Ok(undone
            .take(steps)
            .map(|migration| PlannedMigration { name: name_of(&migration), sql: migration.down_sql(backend) })
            .collect())
    }

    /// Whether the database has keys, which [`Migrator::down`] could delete.
    ///
    /// # Errors
    /// The database can't be asked.
    pub async fn has_keys(&self, connection: &impl ConnectionTrait) -> Result<bool, DbErr> {
        let applied = self.applied(connection).await?;
        if !all(&self.names).iter().any(|migration| applied.contains(&name_of(migration))) {
            return Ok(false);
        }
        let select = Query::select().column("id").from(Alias::new(self.names.api_key())).limit(1).take();
        Ok(connection.query_one(&select).await?.is_some())
    }

    async fn up_within<'c, C>(&self, connection: &'c C) -> Result<Vec<String>, MigrateError>
    where
        C: ConnectionTrait,
        &'c C: sea_orm_migration::IntoSchemaManagerConnection<'c>,
    {
        // Another process may have done the work meanwhile.
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
                // The first failure is the one to tell.
                let _ = session.abandon(&self.names).await;
                Err(error)
            }
        }
    }

    /// Two processes that make a schema at once can collide, even with `IF NOT EXISTS`: the loser looks again.
    async fn make_schema(&self, connection: &DatabaseConnection, schema: &str) -> Result<(), DbErr> {
        let made = connection.execute_unprepared(&create_schema(schema)).await;
        if made.is_err() && has_schema(connection, schema).await? {
            return Ok(());
        }
        made.map(drop)
    }

    /// The names in the history; none if there is no history yet.
    async fn applied(&self, connection: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
        if !self.has_history(connection).await? {
            return Ok(Vec::new());
        }
        let select = Query::select()
            .column("version")
            .from(Alias::new(self.names.history()))
            .order_by("version", sea_orm_migration::sea_query::Order::Asc)
            .take();
        let rows = connection.query_all(&select).await?;
        rows.iter().map(|row| row.try_get_by_index(0)).collect()
    }

    async fn has_history(&self, connection: &impl ConnectionTrait) -> Result<bool, DbErr> {
        let backend = connection.get_database_backend();
        let sql = match backend {
            DbBackend::Postgres => "SELECT to_regclass(quote_ident($1)) IS NOT NULL",
            DbBackend::MySql => {
                "SELECT COUNT(*) > 0 FROM information_schema.tables \
                 WHERE table_schema = DATABASE() AND table_name = ?"
            }
            _ => "SELECT COUNT(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?",
        };
        is_true(connection, Statement::from_sql_and_values(backend, sql, [self.names.history().into()])).await
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
    format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"")
}

fn name_of(migration: &crate::SqlMigration) -> String {
    use sea_orm_migration::MigrationName as _;
    migration.name().to_owned()
}
