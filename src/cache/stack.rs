//! Puts caches in front of a store.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{
    Breaker, CacheAside, CacheParts, CachedRepository, FeedFollower, FeedHandle, FeedOptions, KeyCache,
    KeySource, Knowledge, LoadLimits, MokaCache, MokaOptions, RedisCache, RedisCacheOptions, SingleFlight,
    StoreSource,
};
use crate::domain::{Entropy, Stopwatch};
use crate::repository::{ErrorKind, KeyRepository, Result, within};

/// Which caches there are, and how they behave.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// The cache in this process, if there is one.
    pub local: Option<MokaOptions>,
    /// The cache in Redis, if there is one.
    pub redis: Option<RedisCacheOptions>,
    /// How much is loaded at one time.
    pub limits: LoadLimits,
    /// How the change feed is followed.
    pub feed: FeedOptions,
    /// How old an answer may be.
    pub max_staleness: Duration,
}

/// A store with caches in front of it.
#[derive(Debug)]
pub struct CacheStack {
    /// For changes and everything but validations. Its `Display` is the stack.
    pub repository: Arc<dyn KeyRepository>,
    /// For validations.
    pub source: Arc<dyn KeySource>,
    /// What is known of the store's changes.
    pub knowledge: Arc<Knowledge>,
    /// Follows the changes of other replicas, if the store has a feed: has to be run.
    pub follower: Option<FeedFollower>,
    /// Asks the follower.
    pub feed: Option<FeedHandle>,
    /// The cache in this process.
    pub local: Option<MokaCache>,
    /// The cache in Redis.
    pub redis: Option<Arc<RedisCache>>,
    /// Knows whether the store answers.
    pub breaker: Arc<Breaker>,
}

impl CacheStack {
    /// Puts caches in front of `store`, and reads the end of its change feed. Has to be called on the runtime that is to carry
    /// the work in the background.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the URL of Redis can't be used.
    pub async fn build(
        store: Arc<dyn KeyRepository>,
        options: &StackOptions,
        entropy: &Arc<dyn Entropy>,
        stopwatch: &Arc<dyn Stopwatch>,
    ) -> Result<Self> {
        let recent = FeedFollower::read_recent(store.as_ref(), options.feed.deadline).await;
        // A store that does not answer now may have one.
        let has_feed = !recent.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotOffered);
        let knowledge = Arc::new(if has_feed {
            Knowledge::of_feed(store.feed_parts(), Arc::clone(stopwatch))
        } else {
            Knowledge::without_feed(Arc::clone(stopwatch))
        });
        let breaker = Arc::new(Breaker::new(store.feed_parts(), Arc::clone(stopwatch), Arc::clone(entropy)));
        let redis = match &options.redis {
            None => None,
            Some(options) => Some(Arc::new(RedisCache::open(
                options.clone(),
                Arc::clone(&knowledge),
                Arc::clone(entropy),
            )?)),
        };
        if let Some(redis) = &redis
            && let Ok(identity) = within(options.feed.deadline, store.identity()).await
        {
            // Otherwise the follower asks for it as soon as the store answers.
            redis.identify(identity);
        }
        let local =
            options.local.map(|local| MokaCache::new(local, Arc::clone(&knowledge), Arc::clone(stopwatch)));
        // The innermost first.
        let mut caches: Vec<Arc<dyn KeyCache>> = Vec::new();
        caches.extend(redis.as_ref().map(|redis| Arc::<RedisCache>::clone(redis) as Arc<dyn KeyCache>));
        caches.extend(local.clone().map(|local| Arc::new(local) as Arc<dyn KeyCache>));

        let (follower, feed) = if has_feed {
            let (follower, feed) = FeedFollower::start(
                Arc::clone(&store),
                Arc::clone(&knowledge),
                recent,
                caches.clone(),
                redis.clone(),
                Arc::clone(&breaker),
                options.feed,
            );
            (Some(follower), Some(feed))
        } else {
            (None, None)
        };
        let mut source: Arc<dyn KeySource> =
            Arc::new(StoreSource::new(Arc::clone(&store), Arc::clone(&knowledge), Arc::clone(&breaker)));
        let mut repository = Arc::clone(&store);
        if !caches.is_empty() {
            for cache in &caches {
                source = Arc::new(CacheAside::new(Arc::clone(cache), source, Arc::clone(&knowledge)));
            }
            let handle = Handle::current();
            let flights =
                Arc::new(SingleFlight::new(source, Arc::clone(&knowledge), options.limits, handle.clone()));
            source = Arc::<SingleFlight>::clone(&flights);
            repository = Arc::new(CachedRepository::new(CacheParts {
                repository: store,
                source: flights,
                caches,
                redis: redis.clone(),
                knowledge: Arc::clone(&knowledge),
                feed: feed.clone(),
                max_staleness: options.max_staleness,
                handle,
            }));
        }
        Ok(Self { repository, source, knowledge, follower, feed, local, redis, breaker })
    }
}
