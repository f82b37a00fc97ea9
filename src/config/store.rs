//! `[store]`, and the kind of backend that it names. Settings of one kind of backend are in [`sql`] and [`redis`].

mod redis;
mod sql;

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::redis::RedisStoreConfig;
pub use self::sql::SqlStoreConfig;
use super::{ConfigError, HumanDuration, StoreUrl};
use crate::domain::Entropy;
use crate::redis::is_scheme;
use crate::repository::{RedisOptions, SqlOptions};

const NAME: &str = "store.url";

/// Storage backend.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// URL of the backend: `sqlite://FILE`, `postgres://…`, `mysql://…` (also for MariaDB), `redis://…` (also
    /// `redis-sentinel:` and `redis-cluster:`), or `memory:` (keys are lost when the server ends).
    pub url: StoreUrl,
    /// Whether `serve` migrates the schema of an SQL database. If false, `serve` rejects an outdated schema, and
    /// `keyvouch migrate up` migrates it. Unset: true on SQLite, false on all others.
    pub auto_migrate: Option<bool>,
    /// Maximum time of one call to the backend. Also set as the statement timeout on database servers. Must be more
    /// than 0.
    pub timeout: HumanDuration,
    /// Maximum time of the first connection, at startup and before a migration. A database server or Redis that can't
    /// be reached is tried again until then. Must be more than 0.
    pub connect_timeout: HumanDuration,
    /// SQL databases.
    pub sql: SqlStoreConfig,
    /// Redis.
    pub redis: RedisStoreConfig,
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
        let SqlOptions { timeout, pool, .. } = SqlOptions::default();
        Self {
            url: StoreUrl::from("sqlite://keyvouch.db".to_owned()),
            auto_migrate: None,
            timeout: HumanDuration(timeout),
            connect_timeout: HumanDuration(pool.connect_timeout),
            sql: SqlStoreConfig::default(),
            redis: RedisStoreConfig::default(),
        }
    }
}

impl StoreConfig {
    /// Checks the settings and returns the kind of backend that `url` names.
    ///
    /// # Errors
    /// A setting breaks a rule. The error never contains the URL, which can have a password.
    pub fn place(&self) -> Result<StorePlace, ConfigError> {
        for (name, duration) in
            [("store.timeout", self.timeout), ("store.connect_timeout", self.connect_timeout)]
        {
            if duration.0.is_zero() {
                return Err(ConfigError::invalid(name, "must be more than zero"));
            }
        }
        self.sql.check()?;
        self.redis.check()?;
        let place = self.parse_url()?;
        let is_postgres = self.url.expose().starts_with("postgres");
        if !self.sql.schema.is_empty() && !is_postgres {
            return Err(ConfigError::invalid(
                "store.sql.schema",
                "only supported by PostgreSQL; leave it empty",
            ));
        }
        if !self.sql.replica_url.expose().is_empty() && place != StorePlace::Server {
            return Err(ConfigError::invalid(
                "store.sql.replica_url",
                "only supported if store.url is a database server; leave it empty",
            ));
        }
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
        self.sql.options(self, entropy)
    }

    /// Returns the options of a Redis backend.
    #[must_use]
    pub fn redis_options(&self, entropy: Arc<dyn Entropy>) -> RedisOptions {
        self.redis.options(self.timeout.0, entropy)
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
            scheme if is_scheme(scheme) => Ok(StorePlace::Redis),
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
