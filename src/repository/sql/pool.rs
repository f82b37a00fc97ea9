//! Pools of connections to a database.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sea_query::SelectStatement;
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, QueryResult,
    SqliteTransactionMode, StatementBuilder, TransactionOptions, TransactionTrait as _, sqlx,
};

use super::database::Database;
use super::error::{from_db, is_acquire_timeout};
use super::pool_health::PoolHealth;
use super::{SqlOptions, SqlRepository};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// The connections for one purpose.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub connection: DatabaseConnection,
    pub health: Arc<PoolHealth>,
    pub database: Arc<Database>,
    /// Statements that each transaction begins with. Unset if the session has the settings.
    pub transaction_settings: Option<Arc<str>>,
}

/// Timeout for determining why a pool can't connect.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Pool {
    /// Begins a transaction of reads, or of one statement.
    pub(super) async fn begin(&self) -> Result<DatabaseTransaction> {
        self.begin_with(TransactionOptions::default()).await
    }

    /// Begins a transaction of changes. A deferred transaction of SQLite can fail when it begins to write.
    pub(super) async fn begin_changes(&self) -> Result<DatabaseTransaction> {
        self.begin_with(TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        })
        .await
    }

    async fn begin_with(&self, options: TransactionOptions) -> Result<DatabaseTransaction> {
        let transaction = self.connection.begin_with_options(options).await.map_err(from_db)?;
        if let Some(settings) = &self.transaction_settings {
            transaction.execute_unprepared(settings).await.map_err(from_db)?;
        }
        Ok(transaction)
    }

    /// Runs a read that can take long, with the time limits and settings of Keyvouch in any case. Short reads do
    /// without the transaction that this needs behind a pooler in transaction mode.
    pub(super) async fn query_limited(&self, select: &SelectStatement) -> Result<Vec<QueryResult>> {
        if self.transaction_settings.is_none() {
            return self.connection.query_all(select).await.map_err(from_db);
        }
        let transaction = self.begin().await?;
        let rows = transaction.query_all(select).await.map_err(from_db)?;
        transaction.commit().await.map_err(from_db)?;
        Ok(rows)
    }

    /// Runs a statement that changes data, in a transaction of its own.
    pub(super) async fn execute(&self, statement: &impl StatementBuilder) -> Result<()> {
        if self.transaction_settings.is_none() {
            return self.connection.execute(statement).await.map_err(from_db).map(drop);
        }
        let transaction = self.begin().await?;
        transaction.execute(statement).await.map_err(from_db)?;
        transaction.commit().await.map_err(from_db)
    }

    fn connections(&self) -> Connections {
        fn of<DB: sqlx::Database>(pool: &sqlx::Pool<DB>) -> Connections {
            let max = pool.options().get_max_connections();
            Connections { open: pool.size(), idle: pool.num_idle(), max }
        }

        match self.connection.get_database_backend() {
            DbBackend::Postgres => of(self.connection.get_postgres_connection_pool()),
            DbBackend::MySql => of(self.connection.get_mysql_connection_pool()),
            _ => of(self.connection.get_sqlite_connection_pool()),
        }
    }

    /// Replaces the timeout of a call that waited for a connection by its cause. The cause is
    /// [`ErrorKind::Overloaded`] if the pool was exhausted and the server answered recently, or the server's
    /// reason for rejecting connections. A pool retries without reporting that reason, so one call per second
    /// connects to determine it.
    pub(super) async fn explain(&self, error: RepositoryError, options: &SqlOptions) -> RepositoryError {
        if !is_acquire_timeout(&error) {
            return error;
        }
        let Connections { open, idle, max } = self.connections();
        if open >= max && idle == 0 && !self.health.is_suspect() {
            let problem = "all connections to the database are in use";
            return RepositoryError::new(ErrorKind::Overloaded, problem).unapplied();
        }
        if !self.health.takes_explanation() {
            return error;
        }
        match tokio::time::timeout(EXPLAIN_TIMEOUT, self.database.probe(options)).await {
            Ok(Err(cause)) => cause.unapplied(),
            Ok(Ok(())) => error,
            Err(_) => {
                let problem = format!(
                    "the database server or its pooler does not answer, or provides no further connection; {}",
                    options.counts()
                );
                RepositoryError::new(ErrorKind::Unavailable, problem).unapplied()
            }
        }
    }
}

/// The numbers of a pool's connections.
struct Connections {
    open: u32,
    idle: usize,
    max: u32,
}

impl SqlRepository {
    /// Returns for each pool its name, its number of open connections, and how many of them are idle.
    #[must_use]
    pub fn connections(&self) -> [(&'static str, u32, usize); 2] {
        [("reads", &self.reader), ("changes", &self.writer)].map(|(name, pool)| {
            let Connections { open, idle, .. } = pool.connections();
            (name, open, idle)
        })
    }
}
