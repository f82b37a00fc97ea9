//! Composes caches and a backend.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::change_effects::ChangeEffects;
use super::{
    Breaker, CachedRepository, FeedFollower, FeedHandle, FeedOptions, KeyCache, KeySource, Knowledge,
    LoadLimits, Loader, MokaCache, MokaOptions, RedisCache, RedisCacheOptions,
};
use crate::domain::{Entropy, Stopwatch};
use crate::repository::{Backend, Result, within};

/// The caches of a stack and their options.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// The cache in this process. `None` disables it.
    pub local: Option<MokaOptions>,
    /// A cache of another kind, looked up after the one in this process and before the one in Redis. `None` disables it.
    pub custom: Option<CustomCache>,
    /// The cache in Redis. `None` disables it.
    pub redis: Option<RedisCacheOptions>,
    /// Limits of concurrent loads.
    pub limits: LoadLimits,
    /// Options of the feed follower.
    pub feed: FeedOptions,
    /// Maximum staleness of lookups by hash.
    pub max_staleness: Duration,
}

/// Makes a cache of another kind than those of this crate.
#[derive(Clone)]
pub struct CustomCache(Arc<MakeCache>);

type MakeCache = dyn Fn(Arc<Knowledge>) -> Arc<dyn KeyCache> + Send + Sync;

impl CustomCache {
    /// Makes the cache by calling `make` once per server. Its argument decides which entries may be served.
    pub fn new<C: KeyCache + 'static>(make: impl Fn(Arc<Knowledge>) -> C + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |knowledge| Arc::new(make(knowledge))))
    }
}

impl fmt::Debug for CustomCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomCache")
    }
}

/// A backend with caches in front of it.
#[derive(Debug)]
pub struct CacheStack {
    /// The backend for everything except validations. Its `Display` shows the stack.
    pub backend: Backend,
    /// The source of keys for validations.
    pub source: Arc<dyn KeySource>,
    /// The state of this replica: applied changes and fences.
    pub knowledge: Arc<Knowledge>,
    /// The feed follower, which the caller has to run. `None` if the backend has no feed.
    pub follower: Option<FeedFollower>,
    /// The handle of the follower. `None` if the backend has no feed.
    pub feed: Option<FeedHandle>,
    /// Whether there is a cache of any kind.
    pub has_caches: bool,
    /// The cache in this process, if it is enabled.
    pub local: Option<MokaCache>,
    /// The cache in Redis, if it is enabled.
    pub redis: Option<Arc<RedisCache>>,
    /// The breaker, which is open while the backend does not answer.
    pub breaker: Arc<Breaker>,
}

impl CacheStack {
    /// Puts caches in front of `backend`, and reads the end of its change feed. Must be called on the runtime
    /// of the backend's connections, on which all calls run.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`](crate::repository::ErrorKind::Unusable) if the URL of Redis or one of its files
    /// can't be used.
    pub async fn build(
        backend: Backend,
        options: &StackOptions,
        entropy: &Arc<dyn Entropy>,
        stopwatch: &Arc<dyn Stopwatch>,
    ) -> Result<Self> {
        let partitions = backend.feed.as_ref().map_or(1, |feed| feed.partitions());
        let knowledge = Arc::new(match &backend.feed {
            Some(_) => Knowledge::of_feed(partitions, Arc::clone(stopwatch)),
            None => Knowledge::without_feed(Arc::clone(stopwatch)),
        });
        let breaker = Arc::new(Breaker::new(partitions, Arc::clone(stopwatch), Arc::clone(entropy)));
        let redis = options.redis.clone().map(|options| {
            RedisCache::open(options, Arc::clone(&knowledge), Arc::clone(entropy)).map(Arc::new)
        });
        let redis = redis.transpose()?;
        if let Some(redis) = &redis
            && let Ok(identity) = within(options.feed.deadline, backend.identity()).await
        {
            // If this fails, the follower reads the identity as soon as the backend answers.
            redis.identify(identity);
        }
        let local =
            options.local.map(|local| MokaCache::new(local, Arc::clone(&knowledge), Arc::clone(stopwatch)));
        let caches = outermost_first(local.as_ref(), options.custom.as_ref(), redis.as_ref(), &knowledge);

        let started = FeedFollower::start(
            &backend,
            Arc::clone(&knowledge),
            caches.clone(),
            redis.clone(),
            Arc::clone(&breaker),
            options.feed,
        );
        let (follower, feed) = started.await.unzip();
        let handle = Handle::current();
        let loader = Loader::new(
            caches.clone(),
            Arc::clone(&backend.keys),
            Arc::clone(&knowledge),
            Arc::clone(&breaker),
            options.limits,
            handle.clone(),
        );
        let has_caches = !caches.is_empty();
        let effects = ChangeEffects::new(caches, redis.clone(), Arc::clone(&knowledge), feed.clone());
        let backend = CachedRepository::new(backend, loader.clone(), effects, options.max_staleness, handle)
            .into_backend();
        Ok(Self {
            backend,
            source: Arc::new(loader),
            knowledge,
            follower,
            feed,
            has_caches,
            local,
            redis,
            breaker,
        })
    }
}

/// Returns the caches in the order of lookups.
fn outermost_first(
    local: Option<&MokaCache>,
    custom: Option<&CustomCache>,
    redis: Option<&Arc<RedisCache>>,
    knowledge: &Arc<Knowledge>,
) -> Vec<Arc<dyn KeyCache>> {
    let mut caches: Vec<Arc<dyn KeyCache>> = Vec::new();
    caches.extend(local.map(|local| Arc::new(local.clone()) as Arc<dyn KeyCache>));
    caches.extend(custom.map(|CustomCache(make)| make(Arc::clone(knowledge))));
    caches.extend(redis.map(|redis| Arc::<RedisCache>::clone(redis) as Arc<dyn KeyCache>));
    caches
}
