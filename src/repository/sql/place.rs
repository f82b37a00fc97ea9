//! The database of a URL, and connections to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::mysql::MySqlConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::{self, Database};
use sea_orm::{DatabaseConnection, DbBackend};

use super::error::waited_in_vain;
use super::pool::PoolHealth;
use super::sqlite::DatabaseFile;
use super::{SqlOptions, SqlRepository, mysql, postgres, sqlite};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// A database. `Display` and `Debug` hide credentials.
#[derive(Clone)]
pub(super) enum Place {
    Sqlite(Arc<DatabaseFile>),
    Postgres(PgConnectOptions),
    MySql(MySqlConnectOptions),
}

/// The connections for one purpose.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub connection: DatabaseConnection,
    pub health: Arc<PoolHealth>,
    place: Arc<Place>,
}

/// Timeout for determining why a pool can't connect.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Pool {
    fn connections(&self) -> Connections {
        fn of<DB: Database>(pool: &sqlx::Pool<DB>) -> Connections {
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
        if !waited_in_vain(&error) {
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
        match tokio::time::timeout(EXPLAIN_TIMEOUT, self.place.probe(options)).await {
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

/// The purpose of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Reads,
    Changes,
}

impl Place {
    /// Parses `url`. Errors contain no part of the URL.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let refused = |problem: &'static str| RepositoryError::new(ErrorKind::Refused, problem);
        let (scheme, rest) = url.split_once(':').ok_or_else(|| refused("the URL has no scheme"))?;
        let unreadable = "malformed URL; special characters in a password must be written as %XX";
        match scheme {
            "sqlite" => {
                let path = PathBuf::from(rest.strip_prefix("//").unwrap_or(rest));
                Ok(Self::Sqlite(Arc::new(DatabaseFile::create(path)?)))
            }
            "postgres" | "postgresql" => {
                // The driver's error quotes the URL.
                PgConnectOptions::from_str(url).map(Self::Postgres).map_err(|_| refused(unreadable))
            }
            "mysql" | "mariadb" => {
                MySqlConnectOptions::from_str(url).map(Self::MySql).map_err(|_| refused(unreadable))
            }
            _ => Err(refused("unsupported URL scheme; use sqlite, postgres, mysql or mariadb")),
        }
    }

    /// Creates a pool. Connections to a server are established when they are needed.
    pub(super) async fn pool(&self, purpose: Purpose, options: &SqlOptions) -> Result<Pool> {
        let max_connections = match (self, purpose) {
            (Self::Sqlite(_), Purpose::Reads) => sqlite::READERS,
            (Self::Sqlite(_), Purpose::Changes) => 1,
            (_, Purpose::Reads) => options.pool.max_readers,
            (_, Purpose::Changes) => options.pool.max_writers,
        };
        let health = Arc::new(PoolHealth::new(options, max_connections)?);
        let connection = match self {
            Self::Sqlite(file) => sqlite::pool(file, &health, max_connections, options).await?,
            Self::Postgres(server) => postgres::pool(server, &health, max_connections, options),
            Self::MySql(server) => mysql::pool(server, &health, max_connections, options),
        };
        Ok(Pool { connection, health, place: Arc::new(self.clone()) })
    }

    /// Connects once to get the error, because a pool only reports a timeout.
    pub(super) async fn probe(&self, options: &SqlOptions) -> Result<()> {
        let probe = async {
            match self {
                Self::Sqlite(_) => Ok(()),
                Self::Postgres(server) => postgres::probe(server, options).await,
                Self::MySql(server) => mysql::probe(server, options).await,
            }
        };
        match tokio::time::timeout(options.pool.connect_timeout, probe).await {
            Ok(outcome) => outcome,
            Err(elapsed) => Err(RepositoryError::new(ErrorKind::Unavailable, elapsed)),
        }
    }

    /// Returns a single connection without statement timeouts, for migrations.
    pub(super) async fn single(&self, options: &SqlOptions) -> Result<DatabaseConnection> {
        self.probe(options).await?;
        match self {
            Self::Sqlite(file) => {
                sqlite::single(file, &Arc::new(PoolHealth::new(options, 1)?), options).await
            }
            Self::Postgres(server) => Ok(postgres::single(server, options)),
            Self::MySql(server) => Ok(mysql::single(server, options)),
        }
    }

    /// Returns whether a connection must not be used again after `error`. SQLite may have rolled the
    /// transaction back by itself after any error except a violated constraint
    /// (<https://www.sqlite.org/lang_transaction.html#response_to_errors_within_a_transaction>). A new
    /// connection costs less than a check.
    pub(super) fn distrusts_connection_after(&self, error: &RepositoryError) -> bool {
        let is_of_the_database = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Corrupt | ErrorKind::Internal
        );
        matches!(self, Self::Sqlite(_)) && is_of_the_database
    }

    /// Checks that the database is still the one that was opened.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Sqlite(file) => file.check(),
            Self::Postgres(_) | Self::MySql(_) => Ok(()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "sqlite:{file}"),
            Self::Postgres(server) => {
                let database = server.get_database().unwrap_or(server.get_username());
                match server.get_socket() {
                    Some(socket) => write!(f, "postgres:{}/{database}", socket.display()),
                    None => write!(f, "postgres://{}:{}/{database}", server.get_host(), server.get_port()),
                }
            }
            Self::MySql(server) => {
                let database = server.get_database().unwrap_or_default();
                match server.get_socket() {
                    Some(socket) => write!(f, "mysql:{}/{database}", socket.display()),
                    None => write!(f, "mysql://{}:{}/{database}", server.get_host(), server.get_port()),
                }
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}
