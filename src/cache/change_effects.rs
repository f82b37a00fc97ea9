//! The effects of a change on the caches of this replica.

use std::sync::Arc;

use super::knowledge::{ChangeStart, OwnChange};
use super::protocol::{Certainty, Novelty};
use super::{Entry, FeedHandle, KeyCache, Knowledge, RedisCache};
use crate::domain::{ApiKey, ChangeId, KeyHash, KeyId, Moment};
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, Result};
use crate::telemetry::error_chain;

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
    novelty: Novelty,
    /// The record to be cached.
    key: Option<ApiKey>,
}

impl Effect {
    /// Returns the effect of a change whose record is to be cached.
    pub(super) fn of(key: &ApiKey) -> Self {
        Self {
            hash: Some(key.hash),
            change: key.last_change(),
            novelty: Novelty::New,
            key: Some(key.clone()),
        }
    }

    /// Returns the effect of a change whose record is not to be cached.
    pub(super) fn uncached(key: &ApiKey) -> Self {
        Self { key: None, ..Self::of(key) }
    }

    /// Returns the effect of a revocation, made by this call or by an earlier one.
    pub(super) fn revoked(key: &ApiKey, known: &KnownKeys) -> Self {
        let novelty = match known {
            KnownKeys::Read { last_change, .. } if *last_change != Some(key.last_change()) => Novelty::New,
            // The revocation was in effect, or the key was created or could be read again between the two calls.
            KnownKeys::Read { .. }
            | KnownKeys::Missing(_)
            | KnownKeys::Unreadable(_)
            | KnownKeys::Unanswered(_) => Novelty::Unknown,
        };
        Self { novelty, ..Self::of(key) }
    }

    /// Returns the effect of a deletion.
    pub(super) fn deleted(hash: Option<KeyHash>, change: ChangeId) -> Self {
        Self { hash, change, novelty: Novelty::New, key: None }
    }
}

/// The keys of a change.
pub(super) enum Target {
    /// The key with this id, whose hash has to be looked up.
    Id(KeyId),
    /// The keys with these hashes.
    Hashes(Vec<KeyHash>),
}

/// The keys of a change, as known before the change.
pub(super) enum KnownKeys {
    /// The keys have these hashes. `last_change` is the last change of the one key if its record was read.
    Read { hashes: Vec<KeyHash>, last_change: Option<ChangeId> },
    /// There was no key with this id.
    Missing(KeyId),
    /// The record of this key is invalid.
    Unreadable(KeyId),
    /// The backend did not return the record of this key.
    Unanswered(KeyId),
}

impl KnownKeys {
    /// Returns the hash of the one key. `None` if it is unknown.
    pub(super) fn hash(&self) -> Option<KeyHash> {
        match self {
            Self::Read { hashes, .. } => hashes.first().copied(),
            Self::Missing(_) | Self::Unreadable(_) | Self::Unanswered(_) => None,
        }
    }
}

impl Target {
    /// Reads the keys of a change. The change does not depend on the outcome: an unreadable record can be
    /// revoked and deleted, and a backend that fails a read may accept a change.
    pub(super) async fn look_up(self, keys: &dyn KeyRepository) -> KnownKeys {
        let id = match self {
            Self::Hashes(hashes) => return KnownKeys::Read { hashes, last_change: None },
            Self::Id(id) => id,
        };
        match keys.get(id).await {
            Ok(Some(key)) => KnownKeys::Read { hashes: vec![key.hash], last_change: Some(key.last_change()) },
            Ok(None) => KnownKeys::Missing(id),
            Err(error) if error.kind() == ErrorKind::Corrupt => KnownKeys::Unreadable(id),
            Err(error) => {
                let error = error_chain(&error);
                tracing::debug!(%error, %id, "the key can't be read before it is changed");
                KnownKeys::Unanswered(id)
            }
        }
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
    pub(super) fn begin(&self) -> ChangeStart {
        self.knowledge.begin_change()
    }

    /// Ensures that nothing older than the changes in `effects` is served from now on.
    ///
    /// # Errors
    /// The errors of a poll of the feed, if one was needed.
    pub(super) async fn changed(&self, effects: Vec<Effect>, start: &ChangeStart) -> Result<()> {
        let mut needs_poll = false;
        for Effect { hash, change, novelty, key } in effects {
            let Some(hash) = hash else {
                self.any_key_changed().await?;
                continue;
            };
            let OwnChange::Current(applied_revision, certainty) =
                self.knowledge.apply_own(start, &hash, change, novelty)
            else {
                // The backend's epoch ended meanwhile. The feed reports whether the change is part of the new
                // one.
                self.poll_feed().await?;
                continue;
            };
            needs_poll |= certainty == Certainty::NeedsPoll;
            let entry = key.map(|key| Entry {
                key: Some(Arc::new(key)),
                applied_revision,
                epoch: start.epoch,
                began: Some(start.at),
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
        if needs_poll { self.poll_feed().await } else { Ok(()) }
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
                match known {
                    KnownKeys::Read { hashes, .. } => self.forget(hashes).await,
                    KnownKeys::Missing(id) | KnownKeys::Unreadable(id) | KnownKeys::Unanswered(id) => {
                        self.forget_id(*id).await;
                    }
                }
                self.poll_feed().await
            }
            ErrorKind::Unavailable | ErrorKind::Unusable | ErrorKind::Timeout | ErrorKind::Internal => {
                match known {
                    KnownKeys::Read { hashes, .. } => self.forget(hashes).await,
                    // An outage must not cost the entries of other keys.
                    KnownKeys::Missing(id) | KnownKeys::Unanswered(id) => self.forget_id(*id).await,
                    // The feed reports which key was changed.
                    KnownKeys::Unreadable(_) if self.feed.is_some() => {}
                    KnownKeys::Unreadable(_) => self.clear().await,
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

    /// Evicts the record of a key whose hash is unknown, if a cache can find it. With a feed, the event of the
    /// change has the hash, so no cache is searched.
    async fn forget_id(&self, id: KeyId) {
        if self.feed.is_none() {
            let hashes: Vec<_> = self.caches.iter().filter_map(|cache| cache.find_hash(id)).collect();
            self.forget(&hashes).await;
        }
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
