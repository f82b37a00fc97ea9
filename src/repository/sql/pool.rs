//! Pools of connections to a database.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::{DatabaseConnection, DbBackend, sqlx};

use super::database::Database;
use super::error::is_acquire_timeout;
use super::pool_health::PoolHealth;
use super::{SqlOptions, SqlRepository};
use crate::repository::{ErrorKind, RepositoryError};

/// The connections for one purpose.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub connection: DatabaseConnection,
    pub health: Arc<PoolHealth>,
    pub database: Arc<Database>,
}

/// Timeout for determining why a pool can't connect.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Pool {
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
            Ok(Ok(())) | Err(_) => error,
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
