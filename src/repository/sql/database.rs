//! The database that a URL names, and connections to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use sea_orm::DatabaseConnection;
use sea_orm::sqlx::mysql::MySqlConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;

use super::pool::Pool;
use super::pool_health::PoolHealth;
use super::sqlite::DatabaseFile;
use super::{SqlOptions, mysql, postgres, sqlite};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// A database: a SQLite file, or a database of a server. `Display` and `Debug` hide credentials.
#[derive(Clone)]
pub(super) enum Database {
    Sqlite(Arc<DatabaseFile>),
    Postgres(PgConnectOptions),
    MySql(MySqlConnectOptions),
}

/// The purpose of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Reads,
    Changes,
}

impl Database {
    /// Parses `url`. Errors contain no part of the URL.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let refused = |problem: &'static str| RepositoryError::new(ErrorKind::Unusable, problem);
        let (scheme, rest) = url.split_once(':').ok_or_else(|| refused("the URL has no scheme"))?;
        let malformed = "malformed URL; special characters in a password must be written as %XX";
        match scheme {
            "sqlite" => {
                let path = PathBuf::from(rest.strip_prefix("//").unwrap_or(rest));
                Ok(Self::Sqlite(Arc::new(DatabaseFile::create(path)?)))
            }
            "postgres" | "postgresql" => {
                // The driver's error quotes the URL.
                PgConnectOptions::from_str(url).map(Self::Postgres).map_err(|_| refused(malformed))
            }
            "mysql" | "mariadb" => {
                MySqlConnectOptions::from_str(url).map(Self::MySql).map_err(|_| refused(malformed))
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
        Ok(Pool { connection, health, database: Arc::new(self.clone()) })
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

    /// Returns the PostgreSQL schema of the tables, or of the tables that a migration would create. `None` if the
    /// options name a schema, and on other databases.
    pub(super) async fn default_schema(&self, options: &SqlOptions) -> Result<Option<String>> {
        let Self::Postgres(server) = self else { return Ok(None) };
        if options.schema.is_some() {
            return Ok(None);
        }
        match tokio::time::timeout(
            options.pool.connect_timeout,
            postgres::default_schema(server, &options.names),
        )
        .await
        {
            Ok(schema) => schema.map(Some),
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
    pub(super) fn must_replace_connections_after(&self, error: &RepositoryError) -> bool {
        let is_of_database = matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Corrupt | ErrorKind::Internal
        );
        matches!(self, Self::Sqlite(_)) && is_of_database
    }

    /// Checks that the database is still the one that was opened.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Sqlite(file) => file.check(),
            Self::Postgres(_) | Self::MySql(_) => Ok(()),
        }
    }
}

impl fmt::Display for Database {
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

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}
