//! What a change means for the caches of this replica.

use std::sync::Arc;

use super::knowledge::{ChangeBegun, Made};
use super::{Entry, FeedHandle, KeyCache, Knowledge, RedisCache};
use crate::domain::{ApiKey, ChangeId, KeyHash, KeyId, Moment};
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, Result};

/// Brings changes of this replica into effect.
#[derive(Debug)]
pub(super) struct ChangeEffects {
    /// The outermost first.
    caches: Vec<Arc<dyn KeyCache>>,
    /// The cache of those by which other replicas are woken.
    redis: Option<Arc<RedisCache>>,
    knowledge: Arc<Knowledge>,
    feed: Option<FeedHandle>,
}

/// The effect of a change on one key.
pub(super) struct Effect {
    /// `None` if it is unknown which key was changed.
    hash: Option<KeyHash>,
    change: ChangeId,
    /// Whether the change was made after the call began. Otherwise it had been made before.
    is_new: bool,
    /// The record to be cached.
    key: Option<ApiKey>,
}

impl Effect {
    /// The key was changed, and is cached.
    pub(super) fn of(key: &ApiKey) -> Self {
        Self { hash: Some(key.hash), change: key.last_change(), is_new: true, key: Some(key.clone()) }
    }

    /// The key was changed, and is not cached.
    pub(super) fn uncached(key: &ApiKey) -> Self {
        Self { key: None, ..Self::of(key) }
    }

    /// The key is revoked: by this call, or since before.
    pub(super) fn revoked(key: &ApiKey, known: &KnownKeys) -> Self {
        let is_new = known.last_change.is_some_and(|before| before != key.last_change());
        Self { is_new, ..Self::of(key) }
    }

    /// The key was deleted.
    pub(super) fn deleted(hash: Option<KeyHash>, change: ChangeId) -> Self {
        Self { hash, change, is_new: true, key: None }
    }
}

/// The keys that a change is about.
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
    /// Fails with the errors of the backend; the change is not attempted then.
    pub(super) async fn look_up(self, keys: &dyn KeyRepository) -> Result<KnownKeys> {
        let id = match self {
            Self::Hashes(hashes) => return Ok(KnownKeys { hashes: Some(hashes), last_change: None }),
            Self::Id(id) => id,
        };
        let key = match keys.get(id).await {
            Ok(key) => key,
            // Unreadable records can be revoked and deleted, and an exhausted pool of readers does not affect the writers.
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

    /// Returns whether a change has effects: without caches it has none.
    pub(super) fn are_needed(&self) -> bool {
        !self.caches.is_empty()
    }

    pub(super) fn now(&self) -> Moment {
        self.knowledge.moment()
    }

    /// Begins a change.
    pub(super) fn begin(&self) -> ChangeBegun {
        self.knowledge.change_begins()
    }

    /// Makes sure that nothing older than a change that was made is served from now on.
    pub(super) async fn changed(&self, effects: Vec<Effect>, begun: &ChangeBegun) -> Result<()> {
        for Effect { hash, change, is_new, key } in effects {
            let Some(hash) = hash else {
                self.any_key_changed().await?;
                continue;
            };
            let Made::Here(through) = self.knowledge.raise(begun, &hash, change, is_new) else {
                // The backend's history became another one meanwhile: the feed reports what is left of the change.
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
            // The innermost first, so that none is filled from another one that has an older record.
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

    /// Handles a change that failed: it was not made, or it is unknown whether it was.
    ///
    /// A change that was answered with an error promises nothing. If it was made all the same, this replica reads it from the
    /// feed as all others do, within the same bound. So only the cached records of the keys that it is about are evicted, so
    /// that the next lookup returns what the backend has; without a feed, that is all that keeps them from being served until
    /// their `ttl` ends.
    pub(super) async fn failed(&self, error: &RepositoryError, known: &KnownKeys) -> Result<()> {
        match error.kind() {
            // Another replica may have deleted the key: then it must not be served here any more.
            ErrorKind::NotFound => {
                self.forget(known.hashes.as_deref().unwrap_or_default()).await;
                self.poll_feed().await
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Internal => {
                match &known.hashes {
                    Some(hashes) => self.forget(hashes).await,
                    // The feed reports which key it was.
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

    /// Handles a change of a key whose hash is unknown.
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
