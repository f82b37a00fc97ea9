//! The cache in Redis, which replicas share.
//!
//! ```text
//! <prefix><identity>:epoch              the epoch of the backend that the entries belong to
//! <prefix><identity>:<epoch>:<hash>     the entry: format, revision and nonce of the applied revision, revision, record as JSON
//! ```
//!
//! The identity is that of the backend, so that installations that share a Redis server never read each
//! other's entries.
//!
//! The cache needs no order among writers. Each reader checks an entry against its own fences and applied
//! changes, so losing, flushing or late filling is harmless. Only records are stored here. With negative
//! entries, a flood of random keys could fill the server.

mod check;
mod epoch;
mod format;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use fred::clients::Client;
use fred::interfaces::{ClientLike as _, KeysInterface as _, PubsubInterface as _};
use fred::types::config::Config;
use fred::types::{Expiration, SetOptions};
use futures_util::stream::BoxStream;

use self::check::{CacheCheck, RunningCheck};
use self::epoch::Epoch;
use super::{Entry, KeyCache, Knowledge, Tier};
use crate::domain::{Entropy, KeyHash, KeyId};
use crate::redis::{RedisFiles, Watch, addresses, client, config};
use crate::repository::{BackendIdentity, Result};

/// Time after a failure during which Redis is not used.
const PAUSE: Duration = Duration::from_millis(500);

/// The server and the behaviour of the cache.
#[derive(Clone)]
pub struct RedisCacheOptions {
    /// URL of the server: `redis://…` or another form that
    /// [`RedisRepository`](crate::repository::RedisRepository) supports.
    pub url: String,
    /// Prefix of all names in Redis.
    pub key_prefix: String,
    /// Maximum lifetime of a record, from the beginning of its load.
    pub ttl: Duration,
    /// Timeout of a command. It is also the maximum delay of a change by the cache, per command.
    pub timeout: Duration,
    /// Certificates and a password.
    pub files: RedisFiles,
}

/// Hides the URL, which can contain a password.
impl fmt::Debug for RedisCacheOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCacheOptions").field("key_prefix", &self.key_prefix).finish_non_exhaustive()
    }
}

/// Stores records in Redis. An unreachable server is a miss.
pub struct RedisCache {
    client: Client,
    _watch: Watch,
    _check: RunningCheck,
    config: Config,
    options: RedisCacheOptions,
    address: String,
    knowledge: Arc<Knowledge>,
    entropy: Arc<dyn Entropy>,
    /// The namespace of the backend's entries, part of their names. Nothing is read or written before it is
    /// set.
    namespace: OnceLock<String>,
    epoch: RwLock<Epoch>,
    /// Held while the epoch is read from Redis, so that only one read is in flight.
    following: tokio::sync::Mutex<()>,
    /// The moment until which Redis is not used.
    paused_until: AtomicU64,
    is_failing: AtomicBool,
}

impl RedisCache {
    /// Creates a cache on the server of `options`. It connects in the background, because an unreachable
    /// cache must not prevent startup. The server and the user's permissions are checked there, too, and
    /// problems are logged.
    ///
    /// # Errors
    /// [`ErrorKind::Unusable`](crate::repository::ErrorKind::Unusable) if the URL or a file can't be used. Errors contain no part of the URL.
    pub fn open(
        options: RedisCacheOptions,
        knowledge: Arc<Knowledge>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        let config = config(&options.url, &options.files)?;
        let client = client(config.clone(), options.timeout)?;
        // The task reconnects for as long as the client lives.
        let task = client.connect();
        let address = addresses(&config.server);
        let check = CacheCheck {
            config: config.clone(),
            timeout: options.timeout,
            address: address.clone(),
            name: format!("{}probe", options.key_prefix),
            channel: format!("{}changes", options.key_prefix),
        };
        Ok(Self {
            address,
            _check: check.start(),
            _watch: Watch::start(vec![(client.clone(), task)], options.timeout),
            client,
            config,
            options,
            knowledge,
            entropy,
            namespace: OnceLock::new(),
            epoch: RwLock::default(),
            following: tokio::sync::Mutex::default(),
            paused_until: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
        })
    }

    /// Sets the identity of the backend whose entries are stored. `None` means that only the prefix separates
    /// them from those of other backends. Only the first call has an effect.
    pub fn identify(&self, identity: Option<BackendIdentity>) {
        // The identity of a backend never changes, so later calls are ignored.
        let _ = self.namespace.set(identity.map_or_else(String::new, |BackendIdentity(it)| format!("{it}:")));
    }

    /// Returns whether the identity is set.
    #[must_use]
    pub fn is_identified(&self) -> bool {
        self.namespace.get().is_some()
    }

    /// Wakes the other replicas after a change. They read the change from the backend. Failures are logged
    /// and otherwise ignored.
    pub async fn wake_others(&self) {
        if self.is_paused() {
            return;
        }
        let published: std::result::Result<i64, _> = self.client.publish(self.name("changes"), "").await;
        self.checked(published);
    }

    /// Returns a stream that yields when any replica [wakes](Self::wake_others) the others, and when messages
    /// may have been lost.
    #[must_use]
    pub fn wake_ups(&self) -> BoxStream<'static, ()> {
        crate::redis::wake_ups(&self.config, self.options.timeout, self.name("changes"))
    }

    /// Returns whether entries are read and written at this moment.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.is_paused() && self.epoch().is_some() && self.is_identified()
    }

    /// Closes the connection.
    pub async fn close(&self) {
        // The cache has no state to lose, so an error has no effect.
        let _ = self.client.quit().await;
    }

    fn name(&self, what: &str) -> String {
        format!("{}{what}", self.options.key_prefix)
    }

    /// Returns a name in the backend's namespace. `None` while the identity is unset.
    fn namespaced(&self, what: &str) -> Option<String> {
        let namespace = self.namespace.get()?;
        Some(self.name(&format!("{namespace}{what}")))
    }

    fn entry_name(&self, hash: &KeyHash) -> Option<String> {
        let epoch = self.epoch()?;
        self.namespaced(&format!("{epoch}:{}", hash.to_hex()))
    }

    fn is_paused(&self) -> bool {
        self.knowledge.moment().as_nanos() < self.paused_until.load(Ordering::Relaxed)
    }

    /// Returns the value of a successful response, or `None` after a failure. Logs the first failure and the
    /// recovery.
    fn checked<T>(&self, answer: std::result::Result<T, fred::error::Error>) -> Option<T> {
        match answer {
            Ok(answer) => {
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the Redis cache is available again");
                }
                Some(answer)
            }
            Err(error) => {
                let until = self.knowledge.moment().after(PAUSE);
                self.paused_until.store(until.as_nanos(), Ordering::Relaxed);
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the Redis cache is unavailable; lookups continue without it");
                }
                None
            }
        }
    }

    async fn read(&self, hash: &KeyHash) -> Option<Entry> {
        if self.is_paused() {
            return None;
        }
        let start = self.knowledge.begin_load(hash)?;
        let name = self.entry_name(hash)?;
        // One round trip. Redis alone determines the remaining lifetime, independent of the replicas' clocks.
        let pipeline = self.client.pipeline();
        pipeline.get::<(), _>(name.clone()).await.ok()?;
        pipeline.pttl::<(), _>(name).await.ok()?;
        let answer: std::result::Result<(Option<String>, i64), _> = pipeline.all().await;
        let (stored, millis) = self.checked(answer)?;
        let (written, key) = format::decode(&stored?, hash)?;
        let kept_for = Duration::from_millis(u64::try_from(millis).ok()?);
        // Without a feed, the entry's age counts. It follows from the remaining lifetime.
        let age = self.options.ttl.checked_sub(kept_for);
        let began = if self.knowledge.has_feed() { None } else { Some(start.began.before(age?)) };
        Some(Entry {
            applied_revision: self.knowledge.verified_revision(hash, &start, written)?,
            key: Some(Arc::new(key)),
            epoch: start.epoch,
            began,
            kept_until: start.began.after(kept_for),
        })
    }
}

impl fmt::Display for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisCache({})", self.address)
    }
}

/// fred's own `Debug` shows the password.
impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisCache({})", self.address)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyCache for RedisCache {
    fn tier(&self) -> Tier {
        Tier::Shared
    }

    fn peek(&self, _: &KeyHash) -> Option<Entry> {
        None
    }

    // The entries are named by hash, and replicas share too many of them to search them all.
    fn find_hash(&self, _: KeyId) -> Option<KeyHash> {
        None
    }

    async fn get(&self, hash: &KeyHash) -> Option<Entry> {
        self.read(hash).await
    }

    async fn put(&self, hash: &KeyHash, entry: &Entry) {
        let Some(key) = entry.key.as_deref() else { return };
        let now = self.knowledge.moment();
        let kept_for = entry.kept_for(self.options.ttl, hash, now).kept_until.since(now);
        let Ok(millis @ 1..) = i64::try_from(kept_for.as_millis()) else { return };
        if self.is_paused() || !self.knowledge.fits(hash, entry) {
            return;
        }
        let Some(name) = self.entry_name(hash) else { return };
        let Ok(value) = format::encode(self.knowledge.revision_for_others(entry, key), key) else { return };
        let stored: std::result::Result<(), _> =
            self.client.set(name, value, Some(Expiration::PX(millis)), None::<SetOptions>, false).await;
        self.checked(stored);
    }

    async fn remove(&self, hash: &KeyHash) {
        self.forget(hash).await;
    }

    async fn forget(&self, hash: &KeyHash) {
        if self.is_paused() {
            return;
        }
        let Some(name) = self.entry_name(hash) else { return };
        let removed: std::result::Result<i64, _> = self.client.del(name).await;
        self.checked(removed);
    }

    async fn clear(&self) {
        self.follow_epoch(true).await;
    }
}
