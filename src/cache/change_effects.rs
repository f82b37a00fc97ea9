//! The effects of a change on the caches of this replica.

use std::sync::Arc;

use super::knowledge::{ChangeBegun, Made};
use super::{Entry, FeedHandle, KeyCache, Knowledge, RedisCache};
use crate::domain::{ApiKey, ChangeId, KeyHash, KeyId, Moment};
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, Result};

/// Applies changes of this replica to its caches.
#[derive(Debug)]
pub(super) struct ChangeEffects {
    /// The caches, the outermost first.
    caches: Vec<Arc<dyn KeyCache>>,
    /// The Redis cache among them, which also wakes other replicas.
    redis: Option<Arc<RedisCache>>,
    knowledge: Arc<Knowledge>,
    feed: Option<FeedHandle>,
}

/// The effect of a change on one key.
pub(super) struct Effect {
    /// The hash of the changed key, or `None` if it is unknown.
    hash: Option<KeyHash>,
    change: ChangeId,
    /// Whether the change was made after the call began. Otherwise it had been made before.
    is_new: bool,
    /// The record to be cached.
    key: Option<ApiKey>,
}

impl Effect {
    /// Returns the effect of a change whose record is to be cached.
    pub(super) fn of(key: &ApiKey) -> Self {
        Self { hash: Some(key.hash), change: key.last_change(), is_new: true, key: Some(key.clone()) }
    }

    /// Returns the effect of a change whose record is not to be cached.
    pub(super) fn uncached(key: &ApiKey) -> Self {
        Self { key: None, ..Self::of(key) }
    }

    /// Returns the effect of a revocation, made by this call or by an earlier one.
    pub(super) fn revoked(key: &ApiKey, known: &KnownKeys) -> Self {
        let is_new = known.last_change.is_some_and(|before| before != key.last_change());
        Self { is_new, ..Self::of(key) }
    }

    /// Returns the effect of a deletion.
    pub(super) fn deleted(hash: Option<KeyHash>, change: ChangeId) -> Self {
        Self { hash, change, is_new: true, key: None }
    }
}

/// The keys of a change.
pub(super) enum Target {
    /// The key with this id, whose hash has to be looked up.
    Id(KeyId),
    /// The keys with these hashes.
    Hashes(Vec<KeyHash>),
}

/// The keys of a change, read before the change.
pub(super) struct KnownKeys {
    /// `None` if the key does not exist or its record can't be read.
    hashes: Option<Vec<KeyHash>>,
    /// The last change of the one key, if its record was read.
    last_change: Option<ChangeId>,
}

impl KnownKeys {
    /// Returns the hash of the one key.
    pub(super) fn hash(&self) -> Option<KeyHash> {
        self.hashes.as_ref().and_then(|hashes| hashes.first().copied())
    }
}

impl Target {
    /// Reads the keys of a change.
    ///
    /// # Errors
    /// The errors of the backend. The change must not be attempted then.
    pub(super) async fn look_up(self, keys: &dyn KeyRepository) -> Result<KnownKeys> {
        let id = match self {
            Self::Hashes(hashes) => return Ok(KnownKeys { hashes: Some(hashes), last_change: None }),
            Self::Id(id) => id,
        };
        let key = match keys.get(id).await {
            Ok(key) => key,
            // Unreadable records can be revoked and deleted, and an exhausted pool of readers does not affect
            // the writers.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Overloaded) => None,
            Err(error) => return Err(error),
        };
        Ok(KnownKeys {
            hashes: key.as_ref().map(|key| vec![key.hash]),
            last_change: key.as_ref().map(ApiKey::last_change),
        })
    }
}

impl ChangeEffects {
    /// Creates the effects on `caches`, the outermost first.
    pub(super) fn new(
        caches: Vec<Arc<dyn KeyCache>>,
        redis: Option<Arc<RedisCache>>,
        knowledge: Arc<Knowledge>,
        feed: Option<FeedHandle>,
    ) -> Self {
        Self { caches, redis, knowledge, feed }
    }

    /// Returns whether changes have effects. They have none without caches.
    pub(super) fn are_needed(&self) -> bool {
        !self.caches.is_empty()
    }

    pub(super) fn now(&self) -> Moment {
        self.knowledge.moment()
    }

    /// Returns the state before a change, which the change is compared with later.
    pub(super) fn begin(&self) -> ChangeBegun {
        self.knowledge.change_begins()
    }

    /// Ensures that nothing older than the changes in `effects` is served from now on.
    ///
    /// # Errors
    /// The errors of a poll of the feed, if one was needed.
    pub(super) async fn changed(&self, effects: Vec<Effect>, begun: &ChangeBegun) -> Result<()> {
        for Effect { hash, change, is_new, key } in effects {
            let Some(hash) = hash else {
                self.any_key_changed().await?;
                continue;
            };
            let Made::Here(through) = self.knowledge.raise(begun, &hash, change, is_new) else {
                // The backend's epoch ended meanwhile. The feed reports whether the change is part of the new
                // one.
                self.poll_feed().await?;
                continue;
            };
            let entry = key.map(|key| Entry {
                key: Some(Arc::new(key)),
                through,
                history: begun.history,
                began: Some(begun.at),
                kept_until: Moment::NEVER,
            });
            // Update the innermost cache first, so that no cache is filled with an older record from another
            // one.
            for cache in self.caches.iter().rev() {
                match &entry {
                    Some(entry) => cache.put(&hash, entry).await,
                    None => cache.remove(&hash).await,
                }
            }
        }
        if let Some(redis) = &self.redis {
            redis.wake_others().await;
        }
        Ok(())
    }

    /// Applies the effects of a change that failed: it was not made, or its outcome is unknown.
    ///
    /// Nothing is guaranteed for a change that was answered with an error. If it was made nevertheless, this
    /// replica reads it from the feed as all others do, within the same bound. So only the cached records of
    /// the affected keys are evicted, so that the next lookup returns the backend's record. Without a feed,
    /// nothing else prevents the records from being served until their `ttl` ends.
    pub(super) async fn failed(&self, error: &RepositoryError, known: &KnownKeys) -> Result<()> {
        match error.kind() {
            // Another replica may have deleted the key. It must not be served here any more.
            ErrorKind::NotFound => {
                self.forget(known.hashes.as_deref().unwrap_or_default()).await;
                self.poll_feed().await
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Internal => {
                match &known.hashes {
                    Some(hashes) => self.forget(hashes).await,
                    // The feed reports which key was changed.
                    None if self.feed.is_some() => {}
                    None => self.clear().await,
                }
                Ok(())
            }
            ErrorKind::AlreadyExists
            | ErrorKind::RevokedHash
            | ErrorKind::Conflict
            | ErrorKind::Refused
            | ErrorKind::NotOffered
            | ErrorKind::Overloaded
            | ErrorKind::Corrupt
            | ErrorKind::PositionLost => Ok(()),
        }
    }

    /// Completes a poll of the feed, if there is one.
    pub(super) async fn poll_feed(&self) -> Result<()> {
        match &self.feed {
            Some(feed) => feed.poll().await,
            None => Ok(()),
        }
    }

    /// Applies a change of a key whose hash is unknown.
    async fn any_key_changed(&self) -> Result<()> {
        if self.feed.is_none() {
            self.clear().await;
        }
        self.poll_feed().await
    }

    async fn forget(&self, hashes: &[KeyHash]) {
        for hash in hashes {
            for cache in &self.caches {
                cache.forget(hash).await;
            }
        }
    }

    async fn clear(&self) {
        for cache in &self.caches {
            cache.clear().await;
        }
    }
}
