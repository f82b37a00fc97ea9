//! Replicas in this process: backends with caches in front of them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use keyvouch::cache::{
    CacheStack, Capacity, FeedOptions, LoadLimits, MokaOptions, RedisCacheOptions, StackOptions,
};
use keyvouch::domain::{BootClock, Entropy, Stopwatch, SystemEntropy};
use keyvouch::repository::{Backend, RedisFiles};
use tokio::task::JoinHandle;

use crate::support::until;

/// A running replica. Dropping it stops the replica.
pub(crate) struct Replica {
    stack: CacheStack,
    follower: Option<JoinHandle<()>>,
}

/// Returns options with only a local cache, and with short intervals.
pub(crate) fn options() -> StackOptions {
    StackOptions {
        local: Some(MokaOptions {
            capacity: Capacity::Entries(10_000),
            ttl: Duration::from_mins(5),
            max_negative: 1_000,
            negative_ttl: Duration::from_secs(10),
        }),
        custom: None,
        redis: None,
        limits: LoadLimits { max_loads: 1_000, deadline: Duration::from_secs(5) },
        feed: FeedOptions { poll_interval: Duration::from_millis(20), deadline: Duration::from_secs(5) },
        max_staleness: Duration::from_mins(5),
    }
}

/// Returns options of a cache in Redis whose key names begin with `prefix`.
pub(crate) fn redis(url: &str, prefix: &str) -> RedisCacheOptions {
    RedisCacheOptions {
        url: url.to_owned(),
        key_prefix: prefix.to_owned(),
        ttl: Duration::from_mins(5),
        timeout: Duration::from_millis(500),
        files: RedisFiles::default(),
    }
}

impl Replica {
    pub(crate) async fn start(store: impl Into<Backend>, options: &StackOptions) -> Self {
        Self::start_at(store, options, Arc::new(BootClock)).await
    }

    /// Starts a replica that measures time with `stopwatch`.
    pub(crate) async fn start_at(
        store: impl Into<Backend>,
        options: &StackOptions,
        stopwatch: Arc<dyn Stopwatch>,
    ) -> Self {
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let mut stack = CacheStack::build(store.into(), options, &entropy, &stopwatch).await.unwrap();
        let follower = stack.follower.take().map(|follower| tokio::spawn(follower.run()));
        if let Some(redis) = &stack.redis {
            // Redis connects in the background, and tests need it to be connected.
            until("the cache in Redis", async || {
                redis.follow_epoch(false).await;
                redis.is_ready()
            })
            .await;
        }
        Self { stack, follower }
    }

    /// Completes a poll, and polls never again. A test can then apply changes that the backend does not have, which
    /// a later poll would take for a rewound history. A wake-up, such as the one when Redis is connected, can
    /// start such a poll at any time.
    pub(crate) async fn stop_following(&mut self) {
        let Some(follower) = self.follower.take() else { return };
        self.feed.as_ref().unwrap().poll().await.unwrap();
        follower.abort();
        assert!(follower.await.unwrap_err().is_cancelled());
    }
}

impl Deref for Replica {
    type Target = CacheStack;

    fn deref(&self) -> &CacheStack {
        &self.stack
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}
