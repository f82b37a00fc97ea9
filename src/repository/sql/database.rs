//! The database that a URL names, and connections to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use sea_orm::DatabaseConnection;
use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
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
                let server = PgConnectOptions::from_str(url).map_err(|_| refused(malformed))?;
                Ok(Self::Postgres(match ipv6_literal(server.get_host()) {
                    Some(address) => server.host(&address),
                    None => server,
                }))
            }
            "mysql" | "mariadb" => {
                let server = MySqlConnectOptions::from_str(url).map_err(|_| refused(malformed))?;
                Ok(Self::MySql(match ipv6_literal(server.get_host()) {
                    Some(address) => server.host(&address),
                    None => without_tls_on_a_socket(server),
                }))
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
        let transaction_settings = match self {
            Self::Postgres(_) => postgres::transaction_settings(options),
            Self::Sqlite(_) | Self::MySql(_) => None,
        };
        Ok(Pool { connection, health, database: Arc::new(self.clone()), transaction_settings })
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

    /// Connects at startup, and also checks the pooler in front of PostgreSQL, if there is one. Returns the default
    /// schema of the tables: see [`postgres::inspect`]. `None` if the options name a schema, and on other databases.
    pub(super) async fn inspect(&self, options: &SqlOptions) -> Result<Option<String>> {
        match self {
            Self::Postgres(server) => Box::pin(postgres::inspect(server, options)).await,
            Self::Sqlite(_) | Self::MySql(_) => self.probe(options).await.map(|()| None),
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
                    None => {
                        write!(f, "postgres://{}:{}/{database}", Host(server.get_host()), server.get_port())
                    }
                }
            }
            Self::MySql(server) => {
                let database = server.get_database().unwrap_or_default();
                match server.get_socket() {
                    Some(socket) => write!(f, "mysql:{}/{database}", socket.display()),
                    None => write!(f, "mysql://{}:{}/{database}", Host(server.get_host()), server.get_port()),
                }
            }
        }
    }
}

/// A host in a URL.
struct Host<'h>(&'h str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

/// Returns the IPv6 address that `host` of a URL is, without the brackets. The drivers would resolve it as a name.
fn ipv6_literal(host: &str) -> Option<String> {
    host.strip_prefix('[')?.strip_suffix(']').map(str::to_owned)
}

/// Disables TLS on a Unix socket if TLS is optional. The server offers it, but the driver's handshake fails there.
fn without_tls_on_a_socket(server: MySqlConnectOptions) -> MySqlConnectOptions {
    if server.get_socket().is_some() && matches!(server.get_ssl_mode(), MySqlSslMode::Preferred) {
        return server.ssl_mode(MySqlSslMode::Disabled);
    }
    server
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_are_parsed_without_brackets() {
        let Database::Postgres(server) = Database::parse("postgres://u@[::1]:5432/d").unwrap() else {
            panic!()
        };
        assert_eq!(server.get_host(), "::1");
        let Database::MySql(server) = Database::parse("mysql://u@[2001:db8::7]/d").unwrap() else { panic!() };
        assert_eq!(server.get_host(), "2001:db8::7");
        for (url, shown) in [
            ("postgres://u@[::1]:5432/d", "postgres://[::1]:5432/d"),
            ("mysql://u@[::1]:3306/d", "mysql://[::1]:3306/d"),
            ("postgres://u@db.example:5432/d", "postgres://db.example:5432/d"),
        ] {
            assert_eq!(Database::parse(url).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn optional_tls_is_disabled_on_sockets_of_mysql() {
        let tls = |url: &str| match Database::parse(url).unwrap() {
            Database::MySql(server) => format!("{:?}", server.get_ssl_mode()),
            other => panic!("{other}"),
        };
        assert_eq!(tls("mysql://u@localhost/d?socket=/run/mysqld.sock"), "Disabled");
        assert_eq!(tls("mysql://u@localhost/d?socket=/run/mysqld.sock&ssl-mode=REQUIRED"), "Required");
        assert_eq!(tls("mysql://u@localhost/d"), "Preferred");
    }
}
