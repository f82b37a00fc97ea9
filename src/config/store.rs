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

/// Where keys are kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `sqlite://FILE`, `postgres://…`, `mysql://…`, `redis://…` (also `redis-sentinel:`, `redis-cluster:`), or `memory:`.
    pub url: StoreUrl,
    /// Whether `serve` brings the tables up to date by itself. Unset: on SQLite alone.
    pub auto_migrate: Option<bool>,
    /// Listings are read from this replica of the database, which may lag behind. Empty: from the store itself.
    pub replica_url: StoreUrl,
    /// What the names of the tables begin with.
    pub table_prefix: String,
    /// The schema of PostgreSQL that the tables are in. Empty: the one that the database's user has by default.
    pub schema: String,
    /// The table with the history of migrations. Empty: `seaql_migrations`, behind the prefix.
    pub migrations_table: String,
    /// How long one call to the store may take.
    pub timeout: HumanDuration,
    /// How long a change may wait for others.
    pub lock_timeout: HumanDuration,
    /// Connections to a database server for reads, at most.
    pub max_readers: u32,
    /// Connections to a database server or Redis for changes, at most.
    pub max_writers: u32,
    /// How long a call may wait for a connection.
    pub acquire_timeout: HumanDuration,
    /// How long the first connection may take.
    pub connect_timeout: HumanDuration,
    /// A connection that was not used for so long is closed.
    pub idle_timeout: HumanDuration,
    /// How long a connection lives at most.
    pub max_lifetime: HumanDuration,
    /// What all names in Redis begin with.
    pub redis_prefix: String,
    /// How many replicas of Redis must have a change before it is answered.
    pub redis_min_replicas_ack: u32,
    /// How many events each of the 64 shards in Redis keeps, about.
    pub redis_max_events_per_shard: u64,
    /// A file of certificates that Redis with TLS is verified against. Empty: the system's.
    pub redis_ca_file: PathBuf,
    /// PEM file of the certificate for a Redis server that demands one, read again for each connection. Empty: no certificate.
    pub redis_cert_file: PathBuf,
    /// PEM file of the private key of `redis_cert_file`.
    pub redis_key_file: PathBuf,
    /// A file of the password for Redis, read again for each connection. Empty: that of the URL.
    pub redis_password_file: PathBuf,
    /// Refuse a Redis server that may lose keys or answer from its past, instead of warning.
    pub redis_strict: bool,
}

/// A store that this release speaks to.
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
    /// The store in `url`. No error holds the URL: it can have a password.
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
                "must not have braces, which choose the hash slot",
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
            return Err(ConfigError::invalid("store.schema", "is for PostgreSQL alone: leave it empty"));
        }
        if !self.replica_url.expose().is_empty() && place != StorePlace::Server {
            return Err(ConfigError::invalid("store.replica_url", "needs a database server in store.url"));
        }
        self.names()?;
        Ok(place)
    }

    /// Whether `serve` brings the tables up to date.
    #[must_use]
    pub fn migrates_itself(&self) -> bool {
        self.auto_migrate.unwrap_or_else(|| self.url.expose().starts_with("sqlite:"))
    }

    /// How the SQL store behaves.
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

    /// How the Redis store behaves.
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
            // A schema's name follows the rules of a table's.
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
                "is no URL: give sqlite://FILE, postgres://…, mysql://…, redis://… or memory:",
            ));
        };
        match scheme {
            "memory" if rest.is_empty() => Ok(StorePlace::Memory),
            "memory" => Err(ConfigError::invalid(NAME, "takes nothing after `memory:`")),
            "sqlite" => sqlite_file(rest),
            "postgres" | "postgresql" | "mysql" | "mariadb" => Ok(StorePlace::Server),
            scheme if redis::is_scheme(scheme) => Ok(StorePlace::Redis),
            _ => Err(ConfigError::invalid(
                NAME,
                "names a store that this release does not have: use sqlite:, postgres:, mysql:, redis:, redis-sentinel:, \
                 redis-cluster: or memory:",
            )),
        }
    }
}

fn sqlite_file(rest: &str) -> Result<StorePlace, ConfigError> {
    let file = rest.strip_prefix("//").unwrap_or(rest);
    if file.is_empty() {
        return Err(ConfigError::invalid(
            NAME,
            "has no file: give sqlite://FILE, for example sqlite://keyvouch.db",
        ));
    }
    if file == ":memory:" {
        return Err(ConfigError::invalid(NAME, "can't be SQLite in memory: use memory:"));
    }
    if file.contains(['?', '#', '%']) {
        return Err(ConfigError::invalid(
            NAME,
            "takes a plain file name after sqlite://, without ?, # and %",
        ));
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
