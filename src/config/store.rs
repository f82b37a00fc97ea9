//! `[store]`, and the kind of backend that it names. Settings of one kind of backend are in [`sql`] and [`redis`].

mod redis;
mod sql;

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::redis::RedisStoreConfig;
pub use self::sql::SqlStoreConfig;
use super::{ConfigError, HumanDuration, StoreUrl};
use crate::redis::is_scheme;
use crate::repository::{RedisOptions, SqlOptions};

const NAME: &str = "store.url";

/// Backend.
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

/// The parsed settings of `[store]`.
#[derive(Clone, Debug)]
pub(crate) struct StoreSettings {
    pub(crate) backend: StoreBackend,
    /// Whether `serve` applies pending migrations at startup.
    pub(crate) migrates_itself: bool,
    /// Maximum time of the first connection.
    pub(crate) connect_timeout: Duration,
}

/// A backend, with its options.
#[derive(Clone, Debug)]
pub(crate) enum StoreBackend {
    /// This process's memory.
    Memory,
    /// An SQL database.
    Sql { place: SqlPlace, options: SqlOptions },
    /// Redis: a server, a Sentinel set or a Cluster.
    Redis { url: StoreUrl, options: RedisOptions },
}

/// The place of an SQL database.
#[derive(Clone, Debug)]
pub(crate) enum SqlPlace {
    /// A SQLite file.
    File(PathBuf),
    /// A database server, with its replica for listings.
    Server { url: StoreUrl, replica_url: Option<StoreUrl>, listening: Listening },
}

/// The connection that receives notifications of PostgreSQL.
#[derive(Clone, Debug)]
pub(crate) enum Listening {
    /// A connection by `store.url`.
    ByStore,
    /// A connection by this URL.
    ByUrl(StoreUrl),
    /// None.
    Off,
}

/// A kind of backend, as `store.url` names it.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Memory,
    Sqlite(PathBuf),
    Postgres,
    MySql,
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
    /// Parses the settings.
    ///
    /// # Errors
    /// A setting breaks a rule. The error never contains a URL, which can have a password.
    pub(super) fn parse(&self) -> Result<StoreSettings, ConfigError> {
        for (name, duration) in
            [("store.timeout", self.timeout), ("store.connect_timeout", self.connect_timeout)]
        {
            if duration.0.is_zero() {
                return Err(ConfigError::invalid(name, "must be more than zero"));
            }
        }
        // The settings of other kinds of backends have no effect, but mistakes in them are reported.
        let sql = self.sql.parse(self)?;
        let redis = self.redis.parse(self.timeout.0)?;
        let kind = parse_url(self.url.expose())?;
        if sql.schema.is_some() && kind != Kind::Postgres {
            return Err(ConfigError::invalid(
                "store.sql.schema",
                "only supported by PostgreSQL; leave it empty",
            ));
        }
        let replica_url = (!self.sql.replica_url.expose().is_empty()).then(|| self.sql.replica_url.clone());
        if replica_url.is_some() && !matches!(kind, Kind::Postgres | Kind::MySql) {
            return Err(ConfigError::invalid(
                "store.sql.replica_url",
                "only supported if store.url is a database server; leave it empty",
            ));
        }
        let listening = self.sql.listening(kind == Kind::Postgres)?;
        let migrates_itself = self.auto_migrate.unwrap_or(matches!(kind, Kind::Sqlite(_)));
        let url = self.url.clone();
        let backend = match kind {
            Kind::Memory => StoreBackend::Memory,
            Kind::Sqlite(file) => StoreBackend::Sql { place: SqlPlace::File(file), options: sql },
            Kind::Postgres | Kind::MySql => {
                StoreBackend::Sql { place: SqlPlace::Server { url, replica_url, listening }, options: sql }
            }
            Kind::Redis => StoreBackend::Redis { url, options: redis },
        };
        Ok(StoreSettings { backend, migrates_itself, connect_timeout: self.connect_timeout.0 })
    }
}

fn parse_url(url: &str) -> Result<Kind, ConfigError> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(ConfigError::invalid(
            NAME,
            "not a URL; expected sqlite://FILE, postgres://…, mysql://…, redis://… or memory:",
        ));
    };
    match scheme {
        "memory" if rest.is_empty() => Ok(Kind::Memory),
        "memory" => Err(ConfigError::invalid(NAME, "`memory:` takes no further parts; remove them")),
        "sqlite" => sqlite_file(rest).map(Kind::Sqlite),
        "postgres" | "postgresql" => Ok(Kind::Postgres),
        "mysql" | "mariadb" => Ok(Kind::MySql),
        scheme if is_scheme(scheme) => Ok(Kind::Redis),
        _ => Err(ConfigError::invalid(
            NAME,
            "unsupported scheme; use sqlite:, postgres:, mysql:, redis:, redis-sentinel:, redis-cluster: or memory:",
        )),
    }
}

fn sqlite_file(rest: &str) -> Result<PathBuf, ConfigError> {
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
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::Pooling;

    fn parse(url: &str) -> Result<StoreBackend, ConfigError> {
        let config = StoreConfig { url: StoreUrl::from(url.to_owned()), ..StoreConfig::default() };
        config.parse().map(|settings| settings.backend)
    }

    #[test]
    fn the_scheme_chooses_the_backend() {
        assert!(matches!(parse("memory:").unwrap(), StoreBackend::Memory));
        for (url, expected) in [
            ("sqlite://keyvouch.db", "keyvouch.db"),
            ("sqlite:///var/kv.db", "/var/kv.db"),
            ("sqlite:kv.db", "kv.db"),
        ] {
            let StoreBackend::Sql { place: SqlPlace::File(file), .. } = parse(url).unwrap() else {
                panic!("{url}");
            };
            assert_eq!(file, PathBuf::from(expected));
        }
        for server in
            ["postgres://u:hunter2@h/d", "postgresql://h/d", "mysql://u:hunter2@h/d", "mariadb://h/d"]
        {
            let StoreBackend::Sql { place: SqlPlace::Server { url, replica_url: None, .. }, .. } =
                parse(server).unwrap()
            else {
                panic!("{server}");
            };
            assert_eq!(url.expose(), server);
        }
        for redis in [
            "redis://u:hunter2@h/0",
            "rediss-cluster://h:1?node=g:1",
            "redis+unix:///run/redis",
            "valkeys-sentinel://h:1?sentinelServiceName=n",
        ] {
            let StoreBackend::Redis { url, .. } = parse(redis).unwrap() else { panic!("{redis}") };
            assert_eq!(url.expose(), redis);
        }
    }

    #[test]
    fn only_sqlite_is_migrated_by_default() {
        let migrates = |url: &str, auto_migrate| {
            let url = StoreUrl::from(url.to_owned());
            StoreConfig { url, auto_migrate, ..StoreConfig::default() }.parse().unwrap().migrates_itself
        };
        assert!(migrates("sqlite://kv.db", None) && !migrates("sqlite://kv.db", Some(false)));
        assert!(!migrates("postgres://h/d", None) && migrates("postgres://h/d", Some(true)));
    }

    #[test]
    fn settings_of_one_kind_of_backend_are_rejected_with_another() {
        let config =
            |url: &str| StoreConfig { url: StoreUrl::from(url.to_owned()), ..StoreConfig::default() };
        for url in ["mysql://h/d", "sqlite://kv.db", "redis://h"] {
            let mut config = config(url);
            config.sql.schema = "own".to_owned();
            assert_eq!(config.parse().unwrap_err().setting(), Some("store.sql.schema"), "{url}");
        }
        for url in ["sqlite://kv.db", "redis://h", "memory:"] {
            let mut config = config(url);
            config.sql.replica_url = StoreUrl::from("postgres://u:hunter2@h/d".to_owned());
            let error = config.parse().unwrap_err();
            assert_eq!(error.setting(), Some("store.sql.replica_url"), "{url}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_pooler_in_transaction_mode_needs_a_decision_about_notifications() {
        let parse = |url: &str, pooling, listen_url: &str| -> Result<Listening, ConfigError> {
            let mut config = StoreConfig { url: StoreUrl::from(url.to_owned()), ..StoreConfig::default() };
            config.sql.pooling = pooling;
            config.sql.listen_url = StoreUrl::from(listen_url.to_owned());
            match config.parse()?.backend {
                StoreBackend::Sql { place: SqlPlace::Server { listening, .. }, .. } => Ok(listening),
                other => panic!("{other:?}"),
            }
        };
        let (session, transaction) = (Pooling::Session, Pooling::Transaction);
        assert!(matches!(parse("postgres://h/d", session, "").unwrap(), Listening::ByStore));
        assert!(matches!(parse("postgres://h/d", transaction, "off").unwrap(), Listening::Off));
        let direct = parse("postgres://h/d", transaction, "postgres://u:hunter2@h/d").unwrap();
        assert!(matches!(&direct, Listening::ByUrl(_)) && !format!("{direct:?}").contains("hunter2"));

        let error = parse("postgres://h/d", transaction, "").unwrap_err();
        assert_eq!(error.setting(), Some("store.sql.listen_url"));
        assert!(error.to_string().contains("\"off\""), "{error}");
        for (url, pooling, listen_url, setting) in [
            ("mysql://h/d", transaction, "", "store.sql.pooling"),
            ("sqlite://kv.db", transaction, "off", "store.sql.pooling"),
            ("mysql://h/d", session, "off", "store.sql.listen_url"),
            ("postgres://h/d", session, "mysql://u:hunter2@h/d", "store.sql.listen_url"),
        ] {
            let error = parse(url, pooling, listen_url).unwrap_err();
            assert_eq!(error.setting(), Some(setting), "{url}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
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
            let error = parse(url).unwrap_err();
            assert_eq!(error.setting(), Some("store.url"), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
