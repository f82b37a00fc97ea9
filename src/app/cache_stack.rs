//! From `[cache]` and `[feed]` to caches in front of a store.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Handle;

use super::Surroundings;
use crate::cache::{
    Breaker, CacheAside, CacheParts, CachedRepository, FeedFollower, FeedHandle, FeedOptions, KeyCache, KeySource,
    Knowledge, MokaCache, RedisCache, SingleFlight, StoreSource,
};
use crate::config::Config;
use crate::repository::{ErrorKind, KeyRepository};

/// A store with caches in front of it.
#[derive(Debug)]
pub(super) struct CacheStack {
    /// For changes and everything but validations. Its `Display` is the stack.
    pub repository: Arc<dyn KeyRepository>,
    /// For validations.
    pub source: Arc<dyn KeySource>,
    pub knowledge: Arc<Knowledge>,
    /// How changes of others are heard of, if the store has a feed.
    pub feed: Option<(FeedFollower, FeedHandle)>,
    pub redis: Option<Arc<RedisCache>>,
}

impl CacheStack {
    /// Builds it over `store`, and reads the end of the store's change feed. Has to be called on the runtime that is to
    /// carry its background work.
    pub(super) async fn build(
        config: &Config,
        store: Arc<dyn KeyRepository>,
        surroundings: &Surroundings,
    ) -> Result<Self> {
        let Surroundings { entropy, stopwatch, .. } = surroundings;
        let has_feed = has_feed(store.as_ref(), config.cache.load_timeout.0).await?;
        let knowledge = Arc::new(if has_feed {
            Knowledge::of_feed(store.feed_parts(), Arc::clone(stopwatch))
        } else {
            Knowledge::without_feed(Arc::clone(stopwatch))
        });
        let breaker = Arc::new(Breaker::new(Arc::clone(stopwatch), Arc::clone(entropy)));
        let redis = match config.cache.redis_options() {
            None => None,
            Some((url, options)) => {
                let redis = RedisCache::open(url, options, Arc::clone(&knowledge), Arc::clone(entropy));
                Some(Arc::new(redis.context("can't use the Redis cache (cache.redis.url)")?))
            }
        };
        let local = config.cache.local_options();
        let local =
            local.map(|options| MokaCache::new(options, Arc::clone(&knowledge), Arc::clone(stopwatch)));
        // The innermost first.
        let mut caches: Vec<Arc<dyn KeyCache>> = Vec::new();
        caches.extend(redis.as_ref().map(|redis| Arc::<RedisCache>::clone(redis) as Arc<dyn KeyCache>));
        caches.extend(local.map(|local| Arc::new(local) as Arc<dyn KeyCache>));
        if !has_feed && !caches.is_empty() {
            tracing::warn!(
                ttl = ?config.cache.ttl.0,
                "this store has no change feed: a revocation by another replica can take as long as cache.ttl to be seen"
            );
        }
        let feed = if has_feed {
            let options = FeedOptions {
                poll_interval: config.feed.poll_interval.0,
                deadline: config.cache.load_timeout.0,
            };
            let started = FeedFollower::start(
                Arc::clone(&store),
                Arc::clone(&knowledge),
                caches.clone(),
                redis.clone(),
                Arc::clone(&breaker),
                options,
            );
            Some(started.await.context("can't read the store's change feed")?)
        } else {
            None
        };

        let mut source: Arc<dyn KeySource> =
            Arc::new(StoreSource::new(Arc::clone(&store), Arc::clone(&knowledge), breaker));
        if caches.is_empty() {
            return Ok(Self { repository: store, source, knowledge, feed, redis });
        }
        for cache in &caches {
            source = Arc::new(CacheAside::new(Arc::clone(cache), source, Arc::clone(&knowledge)));
        }
        let flights = SingleFlight::new(
            source,
            Arc::clone(&knowledge),
            config.cache.load_limits(),
            Handle::current(),
        );
        let flights = Arc::new(flights);
        let repository = CachedRepository::new(CacheParts {
            repository: store,
            source: Arc::clone(&flights),
            caches,
            redis: redis.clone(),
            knowledge: Arc::clone(&knowledge),
            feed: feed.as_ref().map(|(_, handle)| handle.clone()),
            max_staleness: config.cache.max_staleness.0,
            handle: Handle::current(),
        });
        Ok(Self { repository: Arc::new(repository), source: flights, knowledge, feed, redis })
    }
}

async fn has_feed(store: &dyn KeyRepository, deadline: Duration) -> Result<bool> {
    let recent = tokio::time::timeout(deadline, store.recent_changes(1)).await;
    match recent.context("the store's change feed was not read in time")? {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotOffered => Ok(false),
        Err(error) => Err(error).context("can't read the store's change feed"),
    }
}
