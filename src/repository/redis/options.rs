//! Options of a Redis repository.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{Entropy, SystemEntropy};
use crate::redis::RedisFiles;

/// Options of a [`RedisRepository`](super::RedisRepository).
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Prefix of all names. Repositories with different prefixes can share a server without reading each
    /// other's data.
    pub key_prefix: String,
    /// Timeout of a command, including the time to wait for a connection.
    pub timeout: Duration,
    /// Number of connections for changes. With [`min_replicas_ack`](Self::min_replicas_ack), each connection
    /// has one change in flight at a time.
    pub change_connections: u32,
    /// Number of replicas that must have a change before it is acknowledged. 0 disables this. If too few
    /// replicas confirm a change in time, it fails with
    /// [`ErrorKind::Unavailable`](crate::repository::ErrorKind::Unavailable), although it may have been made.
    pub min_replicas_ack: u32,
    /// Approximate maximum number of stored events in each of the 64 shards. Older events are trimmed. A
    /// follower that has not read them yet gets
    /// [`ErrorKind::PositionLost`](crate::repository::ErrorKind::PositionLost).
    pub max_events_per_shard: u64,
    /// Whether to reject a server that may lose keys, instead of logging a warning. This is a server that
    /// evicts keys, does not persist them, or loses changes in a failover. A Cluster that does not report
    /// whether its nodes serve stale reads is rejected, too.
    pub strict: bool,
    /// Certificates and a password.
    pub files: RedisFiles,
    /// Source of the nonces of events.
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
