//! `[cache]`, `[cache.local]` and `[cache.redis]`

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{redis_files, require_pair};
use super::{ConfigError, FeedConfig, HumanDuration, StoreUrl};
use crate::cache::{Capacity, FeedOptions, LoadLimits, MokaOptions, RedisCacheOptions, StackOptions};
use crate::redis;

/// Upper limit of `max_loads`: more than any backend can serve concurrently.
const MAX_LOADS: usize = 1_000_000;
/// Upper limit of `redis.timeout`: changes and loads wait this long for a cache that does not respond.
const MAX_REDIS_TIMEOUT: Duration = Duration::from_secs(10);

/// Caches in front of the backend.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Maximum time that caches keep a record, counted from the start of its load. Shortened by up to a tenth, never
    /// prolonged. Must be more than 0.
    pub ttl: HumanDuration,
    /// Maximum time that caches keep a negative entry. Must be more than 0.
    pub negative_ttl: HumanDuration,
    /// Maximum number of negative entries. Counted separately from records, so that random keys can't evict any.
    pub max_negative: u64,
    /// Maximum staleness of a validation, and so the maximum delay of a revocation. A call can ask for less
    /// (`max_staleness`), but not for more.
    pub max_staleness: HumanDuration,
    /// Smallest `max_staleness` that clients without a credential can ask for. A call that asks for less than the
    /// staleness of the feed causes a read from the backend.
    pub min_staleness: HumanDuration,
    /// Maximum number of keys that are loaded at the same time; further lookups are rejected with `RESOURCE_EXHAUSTED`.
    pub max_loads: usize,
    /// Maximum time of a lookup that the cache in the process can't answer. Must be more than 0.
    pub load_timeout: HumanDuration,
    /// Cache in this process.
    pub local: LocalCacheConfig,
    /// Cache in Redis.
    pub redis: RedisCacheConfig,
}

/// Cache in this process.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LocalCacheConfig {
    /// Whether this process has a cache in memory.
    pub enabled: bool,
    /// Maximum number of records in the cache of the process, at about 1 KB each. Must be more than 0.
    pub max_entries: u64,
    /// Approximate maximum memory of these records in bytes, in place of `max_entries`. 0 means that `max_entries`
    /// applies.
    pub max_bytes: u64,
    /// Override of `cache.ttl` for the cache in the process. Unset: `cache.ttl`.
    pub ttl: Option<HumanDuration>,
}

/// Cache in Redis, shared by all replicas.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisCacheConfig {
    /// URL of a Redis cache that replicas share: `redis://…` (also `redis-sentinel:` and `redis-cluster:`). The cache
    /// may lose all entries at any time. Empty: no Redis cache.
    pub url: StoreUrl,
    /// Override of `cache.ttl` for the Redis cache. Unset: `cache.ttl`.
    pub ttl: Option<HumanDuration>,
    /// Prefix of all names of the cache in Redis.
    pub prefix: String,
    /// Maximum time of a command to the Redis cache. After a failure, the cache is not used for half a second. Must be
    /// more than 0.
    pub timeout: HumanDuration,
    /// PEM file with the root certificates for a Redis cache with TLS. Empty: the roots of the system.
    pub ca_file: PathBuf,
    /// PEM file of a client certificate, as `store.redis.cert_file`.
    pub cert_file: PathBuf,
    /// PEM file of the private key of `cache.redis.cert_file`.
    pub key_file: PathBuf,
    /// File with the password, as `store.redis.password_file`.
    pub password_file: PathBuf,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            ttl: HumanDuration(Duration::from_mins(5)),
            negative_ttl: HumanDuration(Duration::from_secs(10)),
            max_negative: 10_000,
            max_staleness: HumanDuration(Duration::from_mins(5)),
            min_staleness: HumanDuration(Duration::from_secs(1)),
            max_loads: 10_000,
            load_timeout: HumanDuration(Duration::from_secs(5)),
            local: LocalCacheConfig::default(),
            redis: RedisCacheConfig::default(),
        }
    }
}

impl Default for LocalCacheConfig {
    fn default() -> Self {
        Self { enabled: true, max_entries: 1_000_000, max_bytes: 0, ttl: None }
    }
}

impl Default for RedisCacheConfig {
    fn default() -> Self {
        Self {
            url: StoreUrl::from(String::new()),
            ttl: None,
            prefix: "keyvouch-cache:".to_owned(),
            timeout: HumanDuration(Duration::from_millis(100)),
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            password_file: PathBuf::new(),
        }
    }
}

/// The parsed settings of `[cache]` and `[feed]`.
#[derive(Clone, Debug)]
pub(crate) struct CacheSettings {
    pub(crate) stack: StackOptions,
    /// Smallest staleness that callers without a credential can ask for.
    pub(crate) min_staleness: Duration,
}

impl CacheConfig {
    pub(super) fn parse(&self, feed: &FeedConfig) -> Result<CacheSettings, ConfigError> {
        self.check()?;
        let poll_interval = feed.parse(self)?;
        Ok(CacheSettings { stack: self.stack_options(poll_interval), min_staleness: self.min_staleness.0 })
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (name, duration) in [
            ("cache.ttl", Some(self.ttl)),
            ("cache.negative_ttl", Some(self.negative_ttl)),
            ("cache.load_timeout", Some(self.load_timeout)),
            ("cache.local.ttl", self.local.ttl),
            ("cache.redis.ttl", self.redis.ttl),
            ("cache.redis.timeout", Some(self.redis.timeout)),
        ] {
            if duration.is_some_and(|duration| duration.0.is_zero()) {
                return Err(ConfigError::invalid(name, "must be more than zero"));
            }
        }
        if self.min_staleness.0 > self.max_staleness.0 {
            return Err(ConfigError::invalid(
                "cache.min_staleness",
                "must not be more than cache.max_staleness",
            ));
        }
        if !(1..=MAX_LOADS).contains(&self.max_loads) {
            return Err(ConfigError::invalid("cache.max_loads", "must be from 1 to 1000000"));
        }
        if self.local.max_entries == 0 {
            return Err(ConfigError::invalid(
                "cache.local.max_entries",
                "must be more than zero; to disable the cache, set cache.local.enabled to false",
            ));
        }
        if self.redis.timeout.0 > MAX_REDIS_TIMEOUT {
            return Err(ConfigError::invalid(
                "cache.redis.timeout",
                "must be at most 10s, because changes and loads wait for it",
            ));
        }
        let url = self.redis.url.expose();
        let is_redis = url.split_once(':').is_some_and(|(scheme, _)| redis::is_scheme(scheme));
        if !url.is_empty() && !is_redis {
            return Err(ConfigError::invalid(
                "cache.redis.url",
                "not a Redis URL; expected redis://HOST:PORT",
            ));
        }
        require_pair(
            ("cache.redis.cert_file", &self.redis.cert_file),
            ("cache.redis.key_file", &self.redis.key_file),
        )
    }

    fn stack_options(&self, poll_interval: Duration) -> StackOptions {
        StackOptions {
            local: self.local_options(),
            custom: None,
            redis: self.redis_options(),
            limits: LoadLimits { max_loads: self.max_loads, deadline: self.load_timeout.0 },
            // Longer than any command of a poll, so that the command that does not respond fails first and is reported.
            feed: FeedOptions { poll_interval, deadline: self.load_timeout.0 * 2 },
            max_staleness: self.max_staleness.0,
        }
    }

    fn local_options(&self) -> Option<MokaOptions> {
        let capacity = match self.local.max_bytes {
            0 => Capacity::Entries(self.local.max_entries),
            bytes => Capacity::Bytes(bytes),
        };
        self.local.enabled.then(|| MokaOptions {
            capacity,
            ttl: self.local.ttl.unwrap_or(self.ttl).0,
            max_negative: self.max_negative,
            negative_ttl: self.negative_ttl.0,
        })
    }

    fn redis_options(&self) -> Option<RedisCacheOptions> {
        let redis = &self.redis;
        (!redis.url.expose().is_empty()).then(|| RedisCacheOptions {
            url: redis.url.expose().to_owned(),
            key_prefix: redis.prefix.clone(),
            ttl: redis.ttl.unwrap_or(self.ttl).0,
            timeout: redis.timeout.0,
            files: redis_files(&redis.ca_file, &redis.cert_file, &redis.key_file, &redis.password_file),
        })
    }
}
