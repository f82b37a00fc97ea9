//! `[store]`

use std::path::PathBuf;
use std::sync::Arc;

use keyvouch_migration::{InvalidName, Names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{redis_files, require_pair};
use super::{ConfigError, HumanDuration, StoreUrl};
use crate::domain::Entropy;
use crate::redis;
use crate::repository::{PoolOptions, RedisOptions, SqlOptions};

const NAME: &str = "store.url";

/// Storage backend.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// URL of the backend: `sqlite://FILE`, `postgres://…`, `mysql://…` (also for MariaDB), `redis://…` (also
    /// `redis-sentinel:` and `redis-cluster:`), or `memory:` (keys are lost when the server ends).
    pub url: StoreUrl,
    /// Whether `serve` migrates the schema. If false, `serve` rejects an outdated schema, and `keyvouch migrate up`
    /// migrates it. Unset: true on SQLite, false on all others.
    pub auto_migrate: Option<bool>,
    /// URL of a database replica for listings, which may lag behind. All other operations, including validation, use
    /// `store.url`. Empty: listings use `store.url` too.
    pub replica_url: StoreUrl,
    /// Prefix of all table names, for a database that is shared with other applications.
    pub table_prefix: String,
    /// PostgreSQL schema of the tables. `migrate up` creates it. Empty: the default schema of the user.
    pub schema: String,
    /// Table with the history of migrations. Empty: `seaql_migrations`, with the table prefix. For applications that
    /// run Keyvouch's migrations in a `Migrator` of their own.
    pub migrations_table: String,
    /// Maximum time of one call to the backend. Also set as the statement timeout on database servers. Must be more
    /// than 0.
    pub timeout: HumanDuration,
    /// Maximum time that a change waits for locks of other changes. PostgreSQL and MariaDB also end a transaction that
    /// is idle for this time. MySQL and MariaDB round it up to seconds. Must be more than 0.
    pub lock_timeout: HumanDuration,
    /// Maximum number of connections to a database server for reads.
    pub max_readers: u32,
    /// Maximum number of connections to a database server for changes. They are separate from those for reads, so that
    /// reads don't wait for changes. For Redis, the exact number of connections; with `redis_min_replicas_ack`, each
    /// runs one change at a time. Reads from Redis share one connection, which is faster than several.
    pub max_writers: u32,
    /// Maximum time that a call waits for a free or new connection. Must be more than 0.
    pub acquire_timeout: HumanDuration,
    /// Maximum time of the first connection, at startup and before a migration. A database server or Redis that can't
    /// be reached is tried again until then. Must be more than 0.
    pub connect_timeout: HumanDuration,
    /// Maximum idle time of a connection to the backend. Must be more than 0.
    pub idle_timeout: HumanDuration,
    /// Maximum lifetime of a connection to the backend. Connections are renewed up to a quarter earlier, so that never
    /// many are renewed at once. Must be more than 0.
    pub max_lifetime: HumanDuration,
    /// Prefix of all names in Redis. Installations with different prefixes don't see each other's keys.
    pub redis_prefix: String,
    /// Number of Redis replicas that must have a change before it is acknowledged (`WAIT`). If too few confirm, the
    /// call fails with `UNAVAILABLE`, and the change may have been applied. 0 does not wait for replicas.
    pub redis_min_replicas_ack: u32,
    /// Approximate maximum number of events in each of the 64 Redis shards. Older events are deleted before
    /// `events.retention`.
    pub redis_max_events_per_shard: u64,
    /// PEM file with the root certificates for Redis with TLS (`rediss:`). Empty: the roots of the system.
    pub redis_ca_file: PathBuf,
    /// PEM file of the client certificate for a Redis server that requires one (`tls-auth-clients yes`). Reloaded for
    /// each connection. Empty: no certificate.
    pub redis_cert_file: PathBuf,
    /// PEM file of the private key of `store.redis_cert_file`.
    pub redis_key_file: PathBuf,
    /// File with the password. Reloaded for each connection, so that the password can change while the server runs. Not
    /// supported with Sentinel. Empty: the password in the URL.
    pub redis_password_file: PathBuf,
    /// Whether startup fails, instead of logging a warning, if the Redis server may lose keys (by eviction, without
    /// appending to disk, or by a failover without `min-replicas-to-write` or `store.redis_min_replicas_ack`), or if a
    /// Cluster does not report whether its nodes answer reads while they are cut off.
    pub redis_strict: bool,
}

/// A kind of storage backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// This process's memory.
    Memory,
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A database server. The URL stays in the settings.
    Server,
    /// Redis: a server, a Sentinel set or a Cluster. The URL stays in the settings.
    Redis,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let (sql, redis) = (SqlOptions::default(), RedisOptions::default());
        Self {
            url: StoreUrl::from("sqlite://keyvouch.db".to_owned()),
            auto_migrate: None,
            replica_url: StoreUrl::from(String::new()),
            table_prefix: String::new(),
            schema: String::new(),
            migrations_table: String::new(),
            timeout: HumanDuration(sql.timeout),
            lock_timeout: HumanDuration(sql.lock_timeout),
            max_readers: sql.pool.max_readers,
            max_writers: sql.pool.max_writers,
            acquire_timeout: HumanDuration(sql.pool.acquire_timeout),
            connect_timeout: HumanDuration(sql.pool.connect_timeout),
            idle_timeout: HumanDuration(sql.pool.idle_timeout),
            max_lifetime: HumanDuration(sql.pool.max_lifetime),
            redis_prefix: redis.key_prefix,
            redis_min_replicas_ack: redis.min_replicas_ack,
            redis_max_events_per_shard: redis.max_events_per_shard,
            redis_ca_file: PathBuf::new(),
            redis_cert_file: PathBuf::new(),
            redis_key_file: PathBuf::new(),
            redis_password_file: PathBuf::new(),
            redis_strict: redis.strict,
        }
    }
}

impl StoreConfig {
    /// Checks the settings and returns the kind of backend that `url` names.
    ///
    /// # Errors
    /// A setting breaks a rule. The error never contains the URL, which can have a password.
    pub fn place(&self) -> Result<StorePlace, ConfigError> {
        for (name, duration) in [
            ("store.timeout", self.timeout),
            ("store.lock_timeout", self.lock_timeout),
            ("store.acquire_timeout", self.acquire_timeout),
            ("store.connect_timeout", self.connect_timeout),
            ("store.idle_timeout", self.idle_timeout),
            ("store.max_lifetime", self.max_lifetime),
        ] {
            if duration.0.is_zero() {
                return Err(ConfigError::invalid(name, "must be more than zero"));
            }
        }
        for (name, count) in
            [("store.max_readers", self.max_readers), ("store.max_writers", self.max_writers)]
        {
            if count == 0 {
                return Err(ConfigError::invalid(name, "must be at least 1"));
            }
        }
        if self.redis_prefix.contains(['{', '}']) || self.redis_prefix.chars().any(char::is_control) {
            return Err(ConfigError::invalid(
                "store.redis_prefix",
                "must not contain control characters or braces, which choose the hash slot",
            ));
        }
        if self.redis_max_events_per_shard == 0 {
            return Err(ConfigError::invalid("store.redis_max_events_per_shard", "must be at least 1"));
        }
        require_pair(
            ("store.redis_cert_file", &self.redis_cert_file),
            ("store.redis_key_file", &self.redis_key_file),
        )?;
        let place = self.parse_url()?;
        let is_postgres = self.url.expose().starts_with("postgres");
        if !self.schema.is_empty() && !is_postgres {
            return Err(ConfigError::invalid("store.schema", "only supported by PostgreSQL; leave it empty"));
        }
        if !self.replica_url.expose().is_empty() && place != StorePlace::Server {
            return Err(ConfigError::invalid(
                "store.replica_url",
                "only supported if store.url is a database server; leave it empty",
            ));
        }
        self.names()?;
        Ok(place)
    }

    /// Returns whether `serve` applies pending migrations at startup.
    #[must_use]
    pub fn migrates_itself(&self) -> bool {
        self.auto_migrate.unwrap_or_else(|| self.url.expose().starts_with("sqlite:"))
    }

    /// Returns the options of an SQL backend.
    ///
    /// # Errors
    /// A table or schema name is invalid.
    pub fn sql_options(&self, entropy: Arc<dyn Entropy>) -> Result<SqlOptions, ConfigError> {
        Ok(SqlOptions {
            timeout: self.timeout.0,
            lock_timeout: self.lock_timeout.0,
            names: self.names()?,
            schema: (!self.schema.is_empty()).then(|| self.schema.clone()),
            pool: PoolOptions {
                max_readers: self.max_readers,
                max_writers: self.max_writers,
                acquire_timeout: self.acquire_timeout.0,
                connect_timeout: self.connect_timeout.0,
                idle_timeout: self.idle_timeout.0,
                max_lifetime: self.max_lifetime.0,
            },
            entropy,
        })
    }

    /// Returns the options of a Redis backend.
    #[must_use]
    pub fn redis_options(&self, entropy: Arc<dyn Entropy>) -> RedisOptions {
        RedisOptions {
            key_prefix: self.redis_prefix.clone(),
            timeout: self.timeout.0,
            change_connections: self.max_writers,
            min_replicas_ack: self.redis_min_replicas_ack,
            max_events_per_shard: self.redis_max_events_per_shard,
            strict: self.redis_strict,
            files: redis_files(
                &self.redis_ca_file,
                &self.redis_cert_file,
                &self.redis_key_file,
                &self.redis_password_file,
            ),
            entropy,
        }
    }

    fn names(&self) -> Result<Names, ConfigError> {
        let invalid = |name| move |error: InvalidName| ConfigError::invalid(name, error.to_string());
        if !self.schema.is_empty() {
            // Names of schemas follow the same rules as names of tables.
            Names::prefixed(&self.schema).map_err(invalid("store.schema"))?;
        }
        let names = Names::prefixed(&self.table_prefix).map_err(invalid("store.table_prefix"))?;
        if self.migrations_table.is_empty() {
            return Ok(names);
        }
        names.with_history(&self.migrations_table).map_err(invalid("store.migrations_table"))
    }

    fn parse_url(&self) -> Result<StorePlace, ConfigError> {
        let Some((scheme, rest)) = self.url.expose().split_once(':') else {
            return Err(ConfigError::invalid(
                NAME,
                "not a URL; expected sqlite://FILE, postgres://…, mysql://…, redis://… or memory:",
            ));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(StorePlace::Memory),
            "memory" => Err(ConfigError::invalid(NAME, "`memory:` takes no further parts; remove them")),
            "sqlite" => sqlite_file(rest),
            "postgres" | "postgresql" | "mysql" | "mariadb" => Ok(StorePlace::Server),
            scheme if redis::is_scheme(scheme) => Ok(StorePlace::Redis),
            _ => Err(ConfigError::invalid(
                NAME,
                "unsupported scheme; use sqlite:, postgres:, mysql:, redis:, redis-sentinel:, redis-cluster: or memory:",
            )),
        }
    }
}

fn sqlite_file(rest: &str) -> Result<StorePlace, ConfigError> {
    let file = rest.strip_prefix("//").unwrap_or(rest);
    if file.is_empty() {
        return Err(ConfigError::invalid(
            NAME,
            "the file is missing; expected sqlite://FILE, for example sqlite://keyvouch.db",
        ));
    }
    if file == ":memory:" {
        return Err(ConfigError::invalid(NAME, "SQLite in memory is not supported; use memory:"));
    }
    if file.contains(['?', '#', '%']) {
        return Err(ConfigError::invalid(NAME, "the file name after sqlite:// must not contain ?, # or %"));
    }
    Ok(StorePlace::Sqlite(file.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<StorePlace, ConfigError> {
        StoreConfig { url: StoreUrl::from(url.to_owned()), ..StoreConfig::default() }.place()
    }

    #[test]
    fn the_scheme_chooses_the_store() {
        assert_eq!(place("memory:").unwrap(), StorePlace::Memory);
        assert_eq!(place("sqlite://keyvouch.db").unwrap(), StorePlace::Sqlite("keyvouch.db".into()));
        assert_eq!(place("sqlite:///var/kv.db").unwrap(), StorePlace::Sqlite("/var/kv.db".into()));
        assert_eq!(place("sqlite:kv.db").unwrap(), StorePlace::Sqlite("kv.db".into()));
        assert_eq!(place("postgres://u:hunter2@h/d").unwrap(), StorePlace::Server);
        assert_eq!(place("mysql://u:hunter2@h/d").unwrap(), StorePlace::Server);
        for redis in [
            "redis://u:hunter2@h/0",
            "rediss-cluster://h:1?node=g:1",
            "redis+unix:///run/redis",
            "valkeys-sentinel://h:1?sentinelServiceName=n",
        ] {
            assert_eq!(place(redis).unwrap(), StorePlace::Redis);
        }
    }

    #[test]
    fn other_urls_are_refused_without_showing_them() {
        for url in [
            "",
            "kv.db",
            "sqlite://",
            "sqlite::memory:",
            "sqlite://a?mode=rw",
            "memory:x",
            "oracle://u:hunter2@h/0",
        ] {
            let error = place(url).unwrap_err().to_string();
            assert!(error.starts_with("store.url: ") && !error.contains("hunter2"), "{error}");
        }
    }
}
