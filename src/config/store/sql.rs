//! `[store.sql]`

use keyvouch_migration::{InvalidName, Names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Listening, StoreConfig};
use crate::config::{ConfigError, HumanDuration, StoreUrl};
use crate::repository::{PoolOptions, Pooling, SqlOptions};

/// SQL databases. The settings have no effect with other backends. SQLite has fixed numbers of connections and keeps
/// them open, so it ignores those of connections.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SqlStoreConfig {
    /// PostgreSQL schema of the tables. `migrate up` creates it. Empty: the default schema of the user.
    pub schema: String,
    /// Prefix of all table names, for a database that is shared with other applications.
    pub table_prefix: String,
    /// Table with the history of migrations. Empty: `seaql_migrations`, with the table prefix. For applications that
    /// run Keyvouch's migrations in a `Migrator` of their own.
    pub migrations_table: String,
    /// URL of a database replica for listings, which may lag behind. All other operations, including validation, use
    /// `store.url`. Empty: listings use `store.url` too.
    pub replica_url: StoreUrl,
    /// Mode of the pooler between Keyvouch and PostgreSQL: `session` (also without a pooler) or `transaction`.
    pub pooling: Pooling,
    /// URL by which notifications of PostgreSQL are received, without a pooler in transaction mode. `off`: none are received,
    /// so changes of other replicas are applied only after up to `feed.poll_interval`. Empty: `store.url`.
    pub listen_url: StoreUrl,
    /// Maximum time that a change waits for locks of other changes. PostgreSQL and MariaDB also end a transaction that
    /// is idle for this time. MySQL and MariaDB round it up to seconds. Must be more than 0.
    pub lock_timeout: HumanDuration,
    /// Maximum number of connections to a database server for reads.
    pub max_readers: u32,
    /// Maximum number of connections to a database server for changes. They are separate from those for reads, so that
    /// reads don't wait for changes.
    pub max_writers: u32,
    /// Maximum time that a call waits for a free or new connection to a database server. Must be more than 0.
    pub acquire_timeout: HumanDuration,
    /// Maximum idle time of a connection to a database server. Must be more than 0.
    pub idle_timeout: HumanDuration,
    /// Maximum lifetime of a connection to a database server. Connections are renewed up to a quarter earlier, so that
    /// never many are renewed at once. Must be more than 0.
    pub max_lifetime: HumanDuration,
}

impl Default for SqlStoreConfig {
    fn default() -> Self {
        let SqlOptions { lock_timeout, pool, .. } = SqlOptions::default();
        Self {
            schema: String::new(),
            table_prefix: String::new(),
            migrations_table: String::new(),
            replica_url: StoreUrl::from(String::new()),
            pooling: Pooling::default(),
            listen_url: StoreUrl::from(String::new()),
            lock_timeout: HumanDuration(lock_timeout),
            max_readers: pool.max_readers,
            max_writers: pool.max_writers,
            acquire_timeout: HumanDuration(pool.acquire_timeout),
            idle_timeout: HumanDuration(pool.idle_timeout),
            max_lifetime: HumanDuration(pool.max_lifetime),
        }
    }
}

impl SqlStoreConfig {
    /// Returns the options of an SQL backend, with the time limits of `store`.
    pub(super) fn parse(&self, store: &StoreConfig) -> Result<SqlOptions, ConfigError> {
        for (name, duration) in [
            ("store.sql.lock_timeout", self.lock_timeout),
            ("store.sql.acquire_timeout", self.acquire_timeout),
            ("store.sql.idle_timeout", self.idle_timeout),
            ("store.sql.max_lifetime", self.max_lifetime),
        ] {
            if duration.0.is_zero() {
                return Err(ConfigError::invalid(name, "must be more than zero"));
            }
        }
        for (name, count) in
            [("store.sql.max_readers", self.max_readers), ("store.sql.max_writers", self.max_writers)]
        {
            if count == 0 {
                return Err(ConfigError::invalid(name, "must be at least 1"));
            }
        }
        Ok(SqlOptions {
            timeout: store.timeout.0,
            lock_timeout: self.lock_timeout.0,
            names: self.names()?,
            schema: (!self.schema.is_empty()).then(|| self.schema.clone()),
            pooling: self.pooling,
            pool: PoolOptions {
                max_readers: self.max_readers,
                max_writers: self.max_writers,
                acquire_timeout: self.acquire_timeout.0,
                connect_timeout: store.connect_timeout.0,
                idle_timeout: self.idle_timeout.0,
                max_lifetime: self.max_lifetime.0,
            },
            ..SqlOptions::default()
        })
    }

    /// Returns where notifications are received, given whether the backend is PostgreSQL.
    pub(super) fn listening(&self, is_postgres: bool) -> Result<Listening, ConfigError> {
        let unsupported =
            |name| Err(ConfigError::invalid(name, "only supported by PostgreSQL; leave it at its default"));
        let url = self.listen_url.expose();
        if !is_postgres {
            return match (self.pooling, url) {
                (Pooling::Transaction, _) => unsupported("store.sql.pooling"),
                (Pooling::Session, "") => Ok(Listening::ByStore),
                (Pooling::Session, _) => unsupported("store.sql.listen_url"),
            };
        }
        match url {
            "" if self.pooling == Pooling::Transaction => Err(ConfigError::invalid(
                "store.sql.listen_url",
                "a pooler in transaction mode delivers no notifications; set it to a direct URL of the database, or to \"off\" \
                 (changes of other replicas are then applied only after up to feed.poll_interval)",
            )),
            "" => Ok(Listening::ByStore),
            "off" => Ok(Listening::Off),
            url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Listening::ByUrl(self.listen_url.clone()))
            }
            _ => Err(ConfigError::invalid(
                "store.sql.listen_url",
                "must be a URL of PostgreSQL (postgres://…), \"off\" or empty",
            )),
        }
    }

    fn names(&self) -> Result<Names, ConfigError> {
        let invalid = |name| move |error: InvalidName| ConfigError::invalid(name, error.to_string());
        if !self.schema.is_empty() {
            // Names of schemas follow the same rules as names of tables.
            Names::prefixed(&self.schema).map_err(invalid("store.sql.schema"))?;
        }
        let names = Names::prefixed(&self.table_prefix).map_err(invalid("store.sql.table_prefix"))?;
        if self.migrations_table.is_empty() {
            return Ok(names);
        }
        names.with_history(&self.migrations_table).map_err(invalid("store.sql.migrations_table"))
    }
}
