//! Keys in a SQL database, through SeaORM: SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! Every change is one transaction ([`transaction::ChangeTransaction`]). It first takes the next revision from
//! the row of `revision_head`, which it locks until it commits, so the order of revisions is the order of
//! commits. It writes the record and its event together. Reads use a pool of their own, so that they never wait
//! for a writer.

mod capabilities;
mod database;
mod error;
mod execution;
#[cfg(feature = "test-support")]
mod explain;
mod feed;
mod keys;
mod lookup;
mod mysql;
mod notifications;
mod operations;
mod options;
mod pool;
mod pool_health;
mod postgres;
mod query;
mod row;
mod schema;
mod sqlite;
mod tables;
mod transaction;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use self::database::{Database, Purpose};
use self::lookup::LookupStatements;
use self::notifications::Notifications;
use self::pool::Pool;
use self::tables::Tables;
use super::{ErrorKind, RepositoryError, Result};
use crate::telemetry::error_chain;

pub use self::options::{PoolOptions, Pooling, SqlOptions};

/// Stores keys in a SQL database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct SqlRepository {
    reader: Pool,
    /// A single connection on SQLite, which supports one writer at a time.
    writer: Pool,
    /// The pool for listings, which may belong to a replica.
    lister: Pool,
    tables: Arc<Tables>,
    /// The PostgreSQL schema of the tables if the options don't name one.
    default_schema: Option<Arc<str>>,
    lookups: Arc<LookupStatements>,
    options: Arc<SqlOptions>,
    database: Database,
    notifications: Notifications,
}

impl SqlRepository {
    /// Opens the database of `url`: `sqlite://FILE`, `postgres://…` or `mysql://…` (also for MariaDB).
    /// [`SqlRepository::migrate`] creates its tables.
    ///
    /// # Errors
    /// - [`ErrorKind::Unusable`] if the URL can't be used, or a pooler does not work as [`SqlOptions::pooling`] states.
    /// - [`ErrorKind::Unavailable`] if the database can't be reached.
    /// - [`ErrorKind::Corrupt`] if a file is not a database.
    ///
    /// Errors contain no part of the URL.
    pub async fn open(url: &str, options: SqlOptions) -> Result<Self> {
        Self::open_database(Database::parse(url)?, options).await
    }

    /// Opens the SQLite database in the file `path`. The file is created with mode 0600 if it does not exist.
    /// Its folder has to exist.
    ///
    /// # Errors
    /// The errors of [`SqlRepository::open`].
    pub async fn open_sqlite(path: &Path, options: SqlOptions) -> Result<Self> {
        let file = sqlite::DatabaseFile::create(path.to_owned())?;
        Self::open_database(Database::Sqlite(Arc::new(file)), options).await
    }

    async fn open_database(database: Database, options: SqlOptions) -> Result<Self> {
        let default_schema = database.inspect(&options).await?;
        let writer = database.pool(Purpose::Changes, &options).await?;
        let reader = database.pool(Purpose::Reads, &options).await?;
        let schema = options.schema.as_deref().or(default_schema.as_deref());
        let tables = Tables::new(&options.names, schema, reader.connection.get_database_backend());
        let lookups = LookupStatements::new(&tables);
        Ok(Self {
            lister: reader.clone(),
            reader,
            writer,
            tables: Arc::new(tables),
            default_schema: default_schema.map(Arc::from),
            lookups: Arc::new(lookups),
            options: Arc::new(options),
            database,
            notifications: Notifications::OfStore,
        })
    }

    /// Reads listings (pages of keys and of events, and streams) from the replica of `url`. The replica may
    /// lag behind, and may be unreachable at startup. Everything else, in particular validation, uses the
    /// primary.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`] if the URL can't be used or the replica is another kind of database. Errors
    /// contain no part of the URL.
    pub async fn with_replica(self, url: &str) -> Result<Self> {
        let replica = Database::parse(url)?;
        match replica.inspect(&self.options).await.map(drop) {
            // Startup must not depend on the replica. It only serves listings, which fail until it is
            // available.
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                tracing::warn!(error = %error_chain(&error), "can't reach the read replica for listings (store.sql.replica_url)");
            }
            reached => reached?,
        }
        let lister = replica.pool(Purpose::Reads, &self.options).await?;
        if lister.connection.get_database_backend() != self.tables.backend {
            return Err(RepositoryError::new(
                ErrorKind::Unusable,
                "store.sql.replica_url: the replica is a different kind of database than the primary",
            ));
        }
        Ok(Self { lister, ..self })
    }
}

impl fmt::Display for SqlRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sql({})", self.database)
    }
}
