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
//! [`Entry`] has an applied revision, and [`Knowledge`] has the smallest applied revisions that
//! may be served. They grow with this replica's own changes and with the change feed. `protocol` lists the
//! rules, and `docs/consistency.md` describes the guarantees.
//!
//! Any number of caches can be stacked, in any order, in front of any backend. To add a cache, implement
//! [`KeyCache`].

#![cfg_attr(
    not(feature = "test-support"),
    allow(unreachable_pub, reason = "without this feature, the types behind `CacheStack` are internal")
)]

mod breaker;
mod cached_repository;
mod change_effects;
mod feed_follower;
pub(crate) mod knowledge;
mod loader;
mod moka;
pub(crate) mod protocol;
mod redis;
mod source;
mod stack;

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub(crate) use self::breaker::Breaker;
use self::cached_repository::CachedRepository;
pub use self::feed_follower::FeedOptions;
pub(crate) use self::feed_follower::{FeedFollower, FeedHandle, FeedProgress, FeedUpdate};
pub use self::knowledge::Knowledge;
use self::knowledge::LoadStart;
pub use self::loader::LoadLimits;
use self::loader::Loader;
pub(crate) use self::moka::MokaCache;
pub use self::moka::{Capacity, MokaOptions};
pub use self::protocol::EntryKind;
pub(crate) use self::redis::RedisCache;
pub use self::redis::RedisCacheOptions;
pub(crate) use self::source::KeySource;
#[cfg(not(feature = "test-support"))]
pub(crate) use self::source::{Demand, Found};
#[cfg(feature = "test-support")]
pub use self::source::{Demand, Found};
#[cfg(not(feature = "test-support"))]
pub(crate) use self::stack::CacheStack;
#[cfg(feature = "test-support")]
pub use self::stack::CacheStack;
pub use self::stack::{CustomCache, StackOptions};
use crate::domain::{ApiKey, ChangeId, KeyHash, KeyId, Moment};

/// A cache entry: a key record, or a negative entry, and the revision up to which it reflects all changes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The record. `None` in a negative entry: no key with this hash exists.
    pub key: Option<Arc<ApiKey>>,
    /// The applied revision. The entry reflects every change up to this one.
    pub applied_revision: ChangeId,
    /// The epoch that the entry belongs to, as this process counts epochs.
    pub epoch: u64,
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
    pub fn kind(&self) -> EntryKind {
        if self.key.is_some() { EntryKind::Record } else { EntryKind::Negative }
    }
}

/// The origin of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The cache in this process.
    Local,
    /// A cache that replicas share.
    Shared,
    /// The backend.
    Backend,
}

impl Tier {
    /// Returns the value of a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Shared => "redis",
            Self::Backend => "store",
        }
    }
}

/// Stores entries. A cache makes no decisions, and it never fails. A broken cache, or one that has evicted an
/// entry, has a miss. `Display` shows the kind of cache, without any credential.
///
/// The suite `conformance::cache` (feature `conformance`) tests each rule of this contract.
#[async_trait]
pub trait KeyCache: Send + Sync + Debug + Display {
    /// Returns the origin of answers from this cache: [`Tier::Local`] if it belongs to this process alone,
    /// [`Tier::Shared`] if other replicas use it too. Caches of the first kind are emptied after changes that this
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

    /// Returns the hash of the cached record with this id. `None` if the cache has no such record, or can't find
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
