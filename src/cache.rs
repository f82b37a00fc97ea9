//! Caches of key records in front of a store, and what makes a revocation hold in spite of them.
//!
//! ```text
//! Validator ─→ Loader ─→ moka ─→ Redis ─→ the backend
//! KeyStore ──→ CachedRepository ─→ the backend, then fence, evict, put, acknowledge
//! feed ──────→ FeedFollower ─→ fence, evict ─→ watchers
//! ```
//!
//! Caches keep facts, never verdicts, and no order of events among several replicas can be relied upon: a slow load, a late
//! write of another replica, a lost message. So every [`Entry`] carries what it knows (`through`), and [`Knowledge`] what
//! an entry has to know to be served, which grows by this replica's own changes and by the change feed. [`protocol`] has
//! the rules; `docs/consistency.md` what they promise.
//!
//! Any number of caches can stand one behind the other, in any order, over any backend. An author of one implements
//! [`KeyCache`].

mod breaker;
mod cached_repository;
mod change_effects;
mod feed_follower;
pub(crate) mod knowledge;
mod loader;
mod moka;
pub mod protocol;
mod redis;
mod stack;

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use self::breaker::Breaker;
pub use self::cached_repository::CachedRepository;
pub use self::feed_follower::{FeedFollower, FeedHandle, FeedOptions, FeedUpdate, Seen};
pub use self::knowledge::{Knowledge, Noted};
pub use self::loader::{LoadLimits, Loader};
pub use self::moka::{Capacity, MokaCache, MokaOptions};
pub use self::redis::{RedisCache, RedisCacheOptions};
pub use self::stack::{CacheStack, StackOptions};
use crate::domain::{ApiKey, ChangeId, KeyHash, Moment};
use crate::repository::Result;
use protocol::Kind;

/// A key record, or that there is none, and what that knows.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record; `None`: there is no key with this hash.
    pub key: Option<Arc<ApiKey>>,
    /// Every change up to this one is reflected.
    pub through: ChangeId,
    /// Which history of the store that revision belongs to, as this process counts them.
    pub history: u64,
    /// When the load of it began. `None` if another process loaded it, whose clock is not ours.
    pub began: Option<Moment>,
    /// Until when a cache may keep it.
    pub kept_until: Moment,
}

impl Entry {
    /// This entry in a cache that keeps for `ttl`, counted from when the load began; shorter by up to a tenth, so that what
    /// was loaded at once does not end at once.
    #[must_use]
    pub fn kept_for(&self, ttl: Duration, hash: &KeyHash, now: Moment) -> Self {
        // The digest is as good as random.
        let ttl = ttl.saturating_sub(ttl / 10 * u32::from(hash.as_bytes()[KeyHash::BYTES - 1]) / 255);
        let kept_until = self.began.unwrap_or(now).after(ttl).min(self.kept_until);
        Self { kept_until, ..self.clone() }
    }

    /// What the entry is about.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.key.is_some() { Kind::Present } else { Kind::Absent }
    }
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The cache in this process.
    Local,
    /// The cache in Redis.
    Redis,
    /// The store.
    Store,
}

impl Tier {
    /// A name for a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Store => "store",
        }
    }
}

/// What was found, and where.
#[derive(Clone, Debug)]
pub struct Found {
    /// What was found.
    pub entry: Entry,
    /// Where.
    pub tier: Tier,
    /// The store was as the entry says at this moment, if not later.
    pub as_of: Moment,
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// When it was asked.
    pub asked_at: Moment,
    /// How long before that the store may have been as the answer says. 0: not at all.
    pub max_staleness: Duration,
}

impl Demand {
    /// The store has to have been as the answer says at this moment or later.
    #[must_use]
    pub fn oldest(&self) -> Moment {
        self.asked_at.before(self.max_staleness)
    }
}

/// Finds entries: a store, or a cache in front of one. `Display` is the stack.
#[async_trait]
pub trait KeySource: Send + Sync + Debug + Display {
    /// What can be said without waiting; `None` says nothing. What it gives may be served: it fits, and it is as fresh as
    /// `demand` asks for.
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        let _ = (hash, demand);
        None
    }

    /// The entry of `hash`. Who hands it on judges it once more: it may have become too old on the way.
    ///
    /// # Errors
    /// Those of the store; none of a cache.
    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found>;
}

/// Keeps entries. It is asked and told, and decides nothing: a cache that is broken, or has let go of an entry, has a
/// miss, which is never an error. `Display` says what it is, without any credential.
///
/// The suite `conformance::cache` (feature `conformance`) has a clause for each sentence.
#[async_trait]
pub trait KeyCache: Send + Sync + Debug + Display {
    /// What answers from here are called.
    fn tier(&self) -> Tier;

    /// What [`get`](Self::get) would give, if that is known without waiting. Only for a cache that lets nothing in that does not
    /// fit, and takes it out when it is told: what it gives is not judged by fences any more.
    fn peek(&self, hash: &KeyHash) -> Option<Entry> {
        let _ = hash;
        None
    }

    /// The entry that was put for `hash`, unless it was taken out, has reached `kept_until`, or was let go for room.
    async fn get(&self, hash: &KeyHash) -> Option<Entry>;

    /// Keeps `entry`, if it may be served. Cuts short how long, never prolongs it.
    async fn put(&self, hash: &KeyHash, entry: &Entry);

    /// Takes out what is kept for `hash` and may not be served any more.
    async fn remove(&self, hash: &KeyHash);

    /// Takes out what is kept for `hash`, whatever it knows.
    async fn forget(&self, hash: &KeyHash);

    /// Forgets everything: the store's history is another one.
    async fn clear(&self);
}
