//! Caches of key records in front of a backend, and the rules by which they honour revocations.
//!
//! ```text
//! Validator ─→ Loader ─→ moka ─→ Redis ─→ the backend
//! KeyStore ──→ CachedRepository ─→ the backend, then fence, evict, put, acknowledge
//! feed ──────→ FeedFollower ─→ fence, evict ─→ watchers
//! ```
//!
//! Caches store records, never verdicts. Replicas can't depend on any order of events among each other,
//! because loads can be slow, writes of other replicas can be late, and messages can be lost. So every
//! [`Entry`] has an applied revision (`through`), and [`Knowledge`] has the smallest applied revisions that
//! may be served. They grow with this replica's own changes and with the change feed. [`protocol`] has the
//! rules, and `docs/consistency.md` describes the guarantees.
//!
//! Any number of caches can be stacked, in any order, in front of any backend. To add a cache, implement
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
pub use self::stack::{CacheStack, CustomCache, StackOptions};
use crate::domain::{ApiKey, ChangeId, KeyHash, KeyId, Moment};
use crate::repository::Result;
use protocol::Kind;

/// A cache entry: a key record, or a negative entry, and the revision up to which it reflects all changes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record. `None` in a negative entry: no key with this hash exists.
    pub key: Option<Arc<ApiKey>>,
    /// The applied revision. The entry reflects every change up to this one.
    pub through: ChangeId,
    /// The epoch that the entry belongs to, as this process counts epochs.
    pub history: u64,
    /// The moment at which the load of the entry began. `None` if another process loaded it, whose clock is
    /// not comparable.
    pub began: Option<Moment>,
    /// The moment until which a cache may keep the entry.
    pub kept_until: Moment,
}

impl Entry {
    /// Returns this entry for a cache with the lifetime `ttl`, counted from the beginning of the load. The
    /// lifetime is shortened by up to a tenth, so that entries that were loaded at the same time don't expire
    /// at the same time.
    #[must_use]
    pub fn kept_for(&self, ttl: Duration, hash: &KeyHash, now: Moment) -> Self {
        // The digest is uniformly distributed, so it serves as the random number.
        let ttl = ttl.saturating_sub(ttl / 10 * u32::from(hash.as_bytes()[KeyHash::BYTES - 1]) / 255);
        let kept_until = self.began.unwrap_or(now).after(ttl).min(self.kept_until);
        Self { kept_until, ..self.clone() }
    }

    /// Returns whether this is a record or a negative entry.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if self.key.is_some() { Kind::Present } else { Kind::Absent }
    }
}

/// The origin of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The cache in this process.
    Local,
    /// The cache in Redis.
    Redis,
    /// The backend.
    Store,
}

impl Tier {
    /// Returns the value of a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Store => "store",
        }
    }
}

/// The result of a lookup and its origin.
#[derive(Clone, Debug)]
pub struct Found {
    /// The entry that was found.
    pub entry: Entry,
    /// The origin of the entry.
    pub tier: Tier,
    /// The moment from which the staleness counts: the entry reflects the state of the backend at this moment
    /// or later.
    pub as_of: Moment,
}

/// The maximum staleness of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The moment of the call.
    pub asked_at: Moment,
    /// Maximum staleness of the answer at that moment. 0 requires a read of the backend.
    pub max_staleness: Duration,
}

impl Demand {
    /// Returns the earliest moment whose state of the backend the answer may reflect.
    #[must_use]
    pub fn oldest(&self) -> Moment {
        self.asked_at.before(self.max_staleness)
    }
}

/// Looks up entries, in a backend or in caches in front of one. `Display` shows the stack.
#[async_trait]
pub trait KeySource: Send + Sync + Debug + Display {
    /// Returns an entry that is available without waiting. It may be served, because it meets the fences and
    /// `demand`. `None` means that [`find`](Self::find) has to be called.
    ///
    /// The default implementation returns `None`.
    fn peek(&self, hash: &KeyHash, demand: &Demand) -> Option<Found> {
        let _ = (hash, demand);
        None
    }

    /// Looks up the entry of `hash`. A hash without a key results in a negative entry. The caller has to
    /// check the staleness again before it serves the entry, because time has passed.
    ///
    /// # Errors
    /// The errors of the backend. Failures of caches are never returned.
    async fn find(&self, hash: &KeyHash, demand: &Demand) -> Result<Found>;
}

/// Stores entries. A cache makes no decisions, and it never fails. A broken cache, or one that has evicted an
/// entry, has a miss. `Display` shows the kind of cache, without any credential.
///
/// The suite `conformance::cache` (feature `conformance`) tests each rule of this contract.
#[async_trait]
pub trait KeyCache: Send + Sync + Debug + Display {
    /// Returns the origin of answers from this cache: [`Tier::Local`] if it belongs to this process alone,
    /// [`Tier::Redis`] if other replicas use it too. Caches of the first kind are emptied after changes that this
    /// replica could not read.
    fn tier(&self) -> Tier;

    /// Returns the result of [`get`](Self::get) if it is available without waiting. Callers don't check the
    /// result against the fences. Only implement this for a cache that rejects entries which don't meet the
    /// fences, and that evicts them on [`remove`](Self::remove).
    ///
    /// The default implementation returns `None`.
    fn peek(&self, hash: &KeyHash) -> Option<Entry> {
        let _ = hash;
        None
    }

    /// Returns the hash of the cached record with this id. `None` if there is none, or if the cache can't find
    /// it. Only called without a change feed, after a change of a key whose hash is unknown, so it may search
    /// all entries.
    ///
    /// The default implementation returns `None`. The record is then served until it expires.
    fn find_hash(&self, id: KeyId) -> Option<KeyHash> {
        let _ = id;
        None
    }

    /// Returns the entry that was put for `hash`. `None` if it was evicted, has reached `kept_until`, or was
    /// never put.
    async fn get(&self, hash: &KeyHash) -> Option<Entry>;

    /// Stores `entry` if it may be served. May shorten its lifetime, but never extends it.
    async fn put(&self, hash: &KeyHash, entry: &Entry);

    /// Evicts the entries of `hash` that may not be served any more. Idempotent.
    async fn remove(&self, hash: &KeyHash);

    /// Evicts the entries of `hash`, whatever revision they reflect. Idempotent.
    async fn forget(&self, hash: &KeyHash);

    /// Evicts everything, because the backend's epoch changed. Idempotent.
    async fn clear(&self);
}
