//! How a SQL store behaves.

use std::sync::Arc;
use std::time::Duration;

use keyvouch_migration::Names;

use crate::domain::{Entropy, SystemEntropy};

/// How a [`SqlRepository`](super::SqlRepository) behaves.
#[derive(Clone, Debug)]
pub struct SqlOptions {
    /// How long a call may take, waiting for a connection included. The database is told too, so that it ends a statement
    /// that nobody waits for any more.
    pub timeout: Duration,
    /// How long a change may wait for others, and how long one may hold them up: a transaction that stands still for
    /// longer is ended by the database, where it can do that (PostgreSQL, MariaDB). MySQL and MariaDB count in seconds,
    /// rounded up.
    pub lock_timeout: Duration,
    /// What the tables are called.
    pub names: Names,
    /// The schema of PostgreSQL that the tables are in; `None`: the one that the database's user has by default.
    pub schema: Option<String>,
    /// The connections.
    pub pool: PoolOptions,
    /// Where the nonces of events come from.
    pub entropy: Arc<dyn Entropy>,
}

/// The connections to a database server. SQLite has four that read and one that writes, and keeps them.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Connections for reads, at most.
    pub max_readers: u32,
    /// Connections for changes, at most. They are apart from those for reads, so that changes that wait for each other
    /// hold up no read.
    pub max_writers: u32,
    /// How long a call may wait for a connection, until one is free or made.
    pub acquire_timeout: Duration,
    /// How long the first connection may take, at the start and before a migration.
    pub connect_timeout: Duration,
    /// A connection that was not used for so long is closed.
    pub idle_timeout: Duration,
    /// How long a connection lives at most. It is replaced up to a quarter earlier, by chance and never many at once, so
    /// that a database is not stormed.
    pub max_lifetime: Duration,
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(2),
            names: Names::default(),
            schema: None,
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
