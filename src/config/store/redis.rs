//! `[store.redis]`

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::config::tls::{redis_files, require_pair};
use crate::repository::RedisOptions;

/// Redis. The settings have no effect with other backends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisStoreConfig {
    /// Prefix of all names in Redis. Installations with different prefixes can share one
    /// Redis.
    pub prefix: String,
    /// Number of connections for changes. With `store.redis.min_replicas_ack`, each runs one change at a time. Reads
    /// share one connection of their own, which is faster than several.
    pub change_connections: u32,
    /// Number of Redis replicas that must have a change before it is acknowledged (`WAIT`). If too few confirm, the
    /// call fails with `UNAVAILABLE`, and the change may have been applied. 0 does not wait for Redis
    /// replicas.
    pub min_replicas_ack: u32,
    /// Approximate maximum number of events in each of the 64 Redis shards. Older events are deleted before
    /// `events.retention`.
    pub max_events_per_shard: u64,
    /// PEM file with the root certificates for Redis with TLS (`rediss:`). Empty: the roots of the system.
    pub ca_file: PathBuf,
    /// PEM file of the client certificate for a Redis server that requires one (`tls-auth-clients yes`). Reloaded for
    /// each connection. Empty: no certificate.
    pub cert_file: PathBuf,
    /// PEM file of the private key of `store.redis.cert_file`.
    pub key_file: PathBuf,
    /// File with the password. Reloaded for each connection, so that the password can change while the server runs. Not
    /// supported with Sentinel. Empty: the password in the URL.
    pub password_file: PathBuf,
    /// Whether startup fails if the Redis server may lose keys. If false, a warning is logged instead. Keys may be lost
    /// by eviction, by a crash if changes are not appended to disk, or by a failover without `min-replicas-to-write` and
    /// `store.redis.min_replicas_ack`. The setting also applies to a Cluster that does not report whether its nodes
    /// answer reads while they are cut off.
    pub strict: bool,
}

impl Default for RedisStoreConfig {
    fn default() -> Self {
        let options = RedisOptions::default();
        Self {
            prefix: options.key_prefix,
            change_connections: options.change_connections,
            min_replicas_ack: options.min_replicas_ack,
            max_events_per_shard: options.max_events_per_shard,
            ca_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            password_file: PathBuf::new(),
            strict: options.strict,
        }
    }
}

impl RedisStoreConfig {
    /// Returns the options of a Redis backend, whose commands time out after `timeout`.
    pub(super) fn parse(&self, timeout: Duration) -> Result<RedisOptions, ConfigError> {
        if self.prefix.contains(['{', '}']) || self.prefix.chars().any(char::is_control) {
            return Err(ConfigError::invalid(
                "store.redis.prefix",
                "must not contain control characters or braces, which choose the hash slot",
            ));
        }
        if self.change_connections == 0 {
            return Err(ConfigError::invalid("store.redis.change_connections", "must be at least 1"));
        }
        if self.max_events_per_shard == 0 {
            return Err(ConfigError::invalid("store.redis.max_events_per_shard", "must be at least 1"));
        }
        require_pair(("store.redis.cert_file", &self.cert_file), ("store.redis.key_file", &self.key_file))?;
        Ok(RedisOptions {
            key_prefix: self.prefix.clone(),
            timeout,
            change_connections: self.change_connections,
            min_replicas_ack: self.min_replicas_ack,
            max_events_per_shard: self.max_events_per_shard,
            strict: self.strict,
            files: redis_files(&self.ca_file, &self.cert_file, &self.key_file, &self.password_file),
            ..RedisOptions::default()
        })
    }
}
