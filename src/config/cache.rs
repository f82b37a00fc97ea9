//! `[cache]`, `[cache.local]` and `[cache.redis]`

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{redis_files, require_pair};
use super::{ConfigError, FeedConfig, HumanDuration, StoreUrl};
use crate::cache::{Capacity, FeedOptions, LoadLimits, MokaOptions, RedisCacheOptions, StackOptions};
use crate::redis;

/// More loads than any store takes at once.
const MAX_LOADS: usize = 1_000_000;
/// How long a change and a load may be held up by a cache.
const MAX_REDIS_TIMEOUT: Duration = Duration::from_secs(10);

/// The caches in front of the store.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// How long records are kept, from when they were loaded.
    pub ttl: HumanDuration,
    /// How long it is kept that there is no key with a hash.
    pub negative_ttl: HumanDuration,
    /// For how many hashes that is kept.
    pub max_negative: u64,
    /// How old an answer may be.
    pub max_staleness: HumanDuration,
    /// What callers without a credential can lower that to.
    pub min_staleness: HumanDuration,
    /// Maximum number of keys that are loaded at the same time.
    pub max_loads: usize,
    /// How long a load may take.
    pub load_timeout: HumanDuration,
    /// The cache in this process.
    pub local: LocalCacheConfig,
    /// The cache in Redis.
    pub redis: RedisCacheConfig,
}

/// The cache in this process.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LocalCacheConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// How many records it keeps.
    pub max_entries: u64,
    /// How much memory they may take, about; 0: whatever `max_entries` take.
    pub max_bytes: u64,
    /// In place of `cache.ttl`.
    pub ttl: Option<HumanDuration>,
}

/// The cache in Redis, which replicas share.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisCacheConfig {
    /// The server; empty: there is none.
    pub url: StoreUrl,
    /// In place of `cache.ttl`.
    pub ttl: Option<HumanDuration>,
    /// What all names begin with.
    pub prefix: String,
    /// How long a command may take.
    pub timeout: HumanDuration,
    /// A file of certificates that a server with TLS is verified against. Empty: the system's.
    pub ca_file: PathBuf,
    /// PEM file of the certificate for a server that demands one, read again for each connection. Empty: no certificate.
    pub cert_file: PathBuf,
    /// PEM file of the private key of `cert_file`.
    pub key_file: PathBuf,
    /// A file of the password, read again for each connection. Empty: that of the URL.
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

impl CacheConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
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
                "must be more than zero: cache.local.enabled = false turns the cache off",
            ));
        }
        if self.redis.timeout.0 > MAX_REDIS_TIMEOUT {
            return Err(ConfigError::invalid(
                "cache.redis.timeout",
                "must be at most 10s: changes and loads wait for it",
            ));
        }
        let url = self.redis.url.expose();
        let is_redis = url.split_once(':').is_some_and(|(scheme, _)| redis::is_scheme(scheme));
        if !url.is_empty() && !is_redis {
            return Err(ConfigError::invalid(
                "cache.redis.url",
                "is no URL of Redis: write redis://HOST:PORT",
            ));
        }
        require_pair(
            ("cache.redis.cert_file", &self.redis.cert_file),
            ("cache.redis.key_file", &self.redis.key_file),
        )
    }

    /// The caches, and how `feed` is followed for them.
    #[must_use]
    pub fn stack_options(&self, feed: &FeedConfig) -> StackOptions {
        StackOptions {
            local: self.local_options(),
            redis: self.redis_options(),
            limits: LoadLimits { max_loads: self.max_loads, deadline: self.load_timeout.0 },
            // Longer than any of its commands: what does not answer is then known by itself.
            feed: FeedOptions { poll_interval: feed.poll_interval.0, deadline: self.load_timeout.0 * 2 },
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
            max_absent: self.max_negative,
            absent_ttl: self.negative_ttl.0,
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
