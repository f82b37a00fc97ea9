//! How a Redis store behaves.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{Entropy, SystemEntropy};
use crate::redis::RedisFiles;

/// How a [`RedisRepository`](super::RedisRepository) behaves.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// What all names begin with. Two stores with different prefixes on one server never see each other.
    pub key_prefix: String,
    /// How long a command may take, waiting for the connection included.
    pub timeout: Duration,
    /// Connections for changes. With [`min_replicas_ack`](Self::min_replicas_ack) each takes one change at a time.
    pub change_connections: u32,
    /// How many replicas must have a change before it is answered; 0: none. A change that too few confirm in time is
    /// answered as unavailable: it may have been made.
    pub min_replicas_ack: u32,
    /// How many events of each of the 64 shards are kept, about. Older ones are let go: a follower that was further behind
    /// is told.
    pub max_events_per_shard: u64,
    /// Refuse a server that may lose keys, instead of warning: one that evicts keys, does not persist them, or loses changes in
    /// a failover. The same for a Cluster that does not tell whether its nodes answer from their past.
    pub strict: bool,
    /// Certificates and a password.
    pub files: RedisFiles,
    /// Where the nonces of events come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            key_prefix: "keyvouch:".to_owned(),
            timeout: Duration::from_secs(2),
            change_connections: 4,
            min_replicas_ack: 0,
            max_events_per_shard: 10_000,
            strict: false,
            files: RedisFiles::default(),
            entropy: Arc::new(SystemEntropy),
        }
    }
}
