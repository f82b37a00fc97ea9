//! Options of a SQL repository.

use std::sync::Arc;
use std::time::Duration;

use keyvouch_migration::Names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::{Entropy, SystemEntropy};

/// Options of a [`SqlRepository`](super::SqlRepository).
#[derive(Clone, Debug)]
pub struct SqlOptions {
    /// Timeout of a call, including the time to wait for a connection. It is also the database's statement
    /// timeout, so that the database aborts statements whose caller has given up.
    pub timeout: Duration,
    /// Timeout of a change that waits for others, and of an idle transaction, which the database aborts if it
    /// supports that (PostgreSQL, MariaDB). MySQL and MariaDB have whole seconds, so the value is rounded up.
    pub lock_timeout: Duration,
    /// The names of the tables.
    pub names: Names,
    /// The PostgreSQL schema of the tables. `None` means the default schema of the database user.
    pub schema: Option<String>,
    /// How a pooler between this process and PostgreSQL assigns sessions to connections.
    pub pooling: Pooling,
    /// Options of the connection pools.
    pub pool: PoolOptions,
    /// Source of the nonces of events.
    pub entropy: Arc<dyn Entropy>,
}

/// How a pooler such as `PgBouncer` assigns sessions of PostgreSQL to connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// A connection keeps its session. There is no pooler, or it is in session mode.
    #[default]
    Session,
    /// A connection has a session only during a transaction. Others use the session at other times.
    Transaction,
}

/// Options of the connections to a database server. SQLite ignores most of them. It has four connections for
/// reads and one for writes, and keeps them open.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Maximum number of connections for reads.
    pub max_readers: u32,
    /// Maximum number of connections for changes. They are separate from those for reads, so that changes
    /// that wait for each other don't delay reads.
    pub max_writers: u32,
    /// Maximum time that a call waits for a connection to become free or to be established.
    pub acquire_timeout: Duration,
    /// Timeout of the first connection, at startup and before a migration.
    pub connect_timeout: Duration,
    /// Time after which an unused connection is closed.
    pub idle_timeout: Duration,
    /// Maximum lifetime of a connection. Connections are replaced up to a quarter earlier, at random times
    /// and one after the other, so that they don't all reconnect at once.
    pub max_lifetime: Duration,
}

impl SqlOptions {
    /// Returns a sentence with the number of connections that a replica uses, for errors.
    pub(super) fn counts(&self) -> String {
        let PoolOptions { max_readers, max_writers, .. } = self.pool;
        format!(
            "a replica uses up to store.sql.max_readers + store.sql.max_writers + 1 (for notifications of PostgreSQL) = {} \
             connections; reduce them, or allow more",
            u64::from(max_readers) + u64::from(max_writers) + 1
        )
    }
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(2),
            names: Names::default(),
            schema: None,
            pooling: Pooling::default(),
            pool: PoolOptions::default(),
            entropy: Arc::new(SystemEntropy),
        }
    }
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            max_readers: 16,
            max_writers: 4,
            acquire_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(10),
            max_lifetime: Duration::from_mins(30),
        }
    }
}
