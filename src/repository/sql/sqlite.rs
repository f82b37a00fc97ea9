//! The file of a SQLite database, and connections to it.

use std::fmt;
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::ConnectOptions as _;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};

use super::SqlOptions;
use super::error::from_driver;
use super::pool_health::PoolHealth;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// Number of connections for reads. More than one connection for writes would have no effect.
pub(super) const READERS: u32 = 4;
/// Delay before a file that another process has locked is opened again.
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Maximum time that a statement waits for the database's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum time that a migration waits for the database's lock. Another process may run a long migration.
const MIGRATION_BUSY_TIMEOUT: Duration = Duration::from_hours(1);

/// Opens a pool of connections to `file`, either for reads or for writes.
pub(super) async fn pool(
    file: &DatabaseFile,
    health: &Arc<PoolHealth>,
    connections: u32,
    options: &SqlOptions,
) -> Result<DatabaseConnection> {
    connect_patiently(file, health, connections, BUSY_TIMEOUT, options).await
}

/// Opens a connection that waits for other processes up to [`MIGRATION_BUSY_TIMEOUT`].
pub(super) async fn single(
    file: &DatabaseFile,
    health: &Arc<PoolHealth>,
    options: &SqlOptions,
) -> Result<DatabaseConnection> {
    connect_patiently(file, health, 1, MIGRATION_BUSY_TIMEOUT, options).await
}

/// The file that was opened. If the file is deleted or replaced, SQLite continues to use the old one, and
/// writes to it are lost.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl DatabaseFile {
    /// Creates the file with mode 0600 if it does not exist. Its folder has to exist.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        let identity = || -> io::Result<_> {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            Ok(identity(&file.metadata()?))
        };
        let identity = identity().map_err(|error| RepositoryError::new(ErrorKind::Unavailable, error))?;
        Ok(Self { path, identity })
    }

    pub(super) fn check(&self) -> Result<()> {
        match fs::metadata(&self.path) {
            Ok(found) if identity(&found) == self.identity => Ok(()),
            Ok(_) => Err(RepositoryError::new(
                ErrorKind::Unavailable,
                "the database file was replaced; restart the server",
            )),
            Err(error) => Err(RepositoryError::new(ErrorKind::Unavailable, error)),
        }
    }
}

impl fmt::Display for DatabaseFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Connects, and retries while another process has locked the file. Switching to a write-ahead log needs
/// exclusive access, and SQLite does not wait for that.
async fn connect_patiently(
    file: &DatabaseFile,
    health: &Arc<PoolHealth>,
    connections: u32,
    busy_timeout: Duration,
    options: &SqlOptions,
) -> Result<DatabaseConnection> {
    let patience = async {
        loop {
            match connect(file, health, connections, busy_timeout, options).await {
                Err(error) if error.kind() == ErrorKind::Timeout => tokio::time::sleep(LOCK_PAUSE).await,
                outcome => return outcome,
            }
        }
    };
    match tokio::time::timeout(options.timeout, patience).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(RepositoryError::new(ErrorKind::Timeout, elapsed)),
    }
}

/// Connects. The journal mode is WAL, so that readers and the writer don't wait for each other. The
/// synchronous mode is FULL, so that acknowledged changes survive a power loss.
async fn connect(
    file: &DatabaseFile,
    health: &Arc<PoolHealth>,
    connections: u32,
    busy_timeout: Duration,
    options: &SqlOptions,
) -> Result<DatabaseConnection> {
    let server = SqliteConnectOptions::new()
        .filename(&file.path)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(busy_timeout)
        .disable_statement_logging();
    let pool: SqlitePoolOptions = health.guard_file();
    let pool = pool.max_connections(connections).acquire_timeout(options.timeout).connect_with(server).await;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool.map_err(from_driver)?))
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

    use super::*;
    use crate::repository::SqlRepository;

    async fn pragma(connection: &DatabaseConnection, name: &str) -> String {
        let statement = Statement::from_string(DbBackend::Sqlite, format!("pragma {name}"));
        let row = connection.query_one_raw(statement).await.unwrap().unwrap();
        let number = row.try_get_by_index::<i64>(0).map(|number| number.to_string());
        number.or_else(|_| row.try_get_by_index(0)).unwrap()
    }

    #[tokio::test]
    async fn connections_use_durable_settings() {
        let folder = tempfile::tempdir().unwrap();
        let sql =
            SqlRepository::open_sqlite(&folder.path().join("kv.db"), SqlOptions::default()).await.unwrap();
        for connection in [&sql.reader.connection, &sql.writer.connection] {
            assert_eq!(pragma(connection, "journal_mode").await, "wal");
            // 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
            assert_eq!(pragma(connection, "synchronous").await, "2");
            assert_eq!(pragma(connection, "foreign_keys").await, "1");
            assert_eq!(pragma(connection, "busy_timeout").await, "4000");
        }
    }
}
