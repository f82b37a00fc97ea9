//! A repository with caches in front of it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::runtime::Handle;

use super::knowledge::{ChangeBegun, Made};
use super::{Demand, Entry, FeedHandle, KeyCache, KeySource as _, Knowledge, RedisCache, SingleFlight};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, Moment, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};
use crate::repository::{
    Changes, ErrorKind, EventPageRequest, FeedPosition, KeyRepository, KeyStream, ListedEvent, ListedKey,
    PageRequest, RecentChanges, RepositoryError, Result, StoreIdentity,
};

/// Look-ups by hash go through the caches; changes go to the store, and then into the caches, before they are answered.
/// All else goes to the store. `Display` is the stack.
#[derive(Clone, Debug)]
pub struct CachedRepository {
    parts: Arc<CacheParts>,
}

/// What a [`CachedRepository`] is made of.
#[derive(Debug)]
pub struct CacheParts {
    /// The store.
    pub repository: Arc<dyn KeyRepository>,
    /// The caches over it, as look-ups go.
    pub source: Arc<SingleFlight>,
    /// The caches, the innermost first.
    pub caches: Vec<Arc<dyn KeyCache>>,
    /// That of them by which other replicas are woken.
    pub redis: Option<Arc<RedisCache>>,
    /// What is known of changes.
    pub knowledge: Arc<Knowledge>,
    /// The change feed, if the store has one.
    pub feed: Option<FeedHandle>,
    /// How old the answers of [`KeyRepository::get_by_hash`] may be.
    pub max_staleness: Duration,
    /// Where changes are brought to their end, whatever becomes of their callers.
    pub handle: Handle,
}

/// What a change did to one key.
struct Effect {
    /// `None`: it is not known which key that was.
    hash: Option<KeyHash>,
    change: ChangeId,
    /// Whether the change was made after this call began; otherwise it stood already.
    is_new: bool,
    /// The record as it is now, if it is worth keeping.
    key: Option<ApiKey>,
}

impl Effect {
    fn of(key: &ApiKey) -> Self {
        Self { hash: Some(key.hash), change: key.last_change(), is_new: true, key: Some(key.clone()) }
    }
}

/// Which keys a change is about.
enum Target {
    /// The one with this id, whose hash is looked up first.
    Id(KeyId),
    /// Those with these hashes.
    Hashes(Vec<KeyHash>),
}

/// The keys of a change, read before the change.
struct Known {
    /// `None` if the key does not exist or its record can't be read.
    hashes: Option<Vec<KeyHash>>,
    /// The last change of the one key, if its record was read.
    last_change: Option<ChangeId>,
}

impl Known {
    /// The hash of the one key.
    fn hash(&self) -> Option<KeyHash> {
        self.hashes.as_ref().and_then(|hashes| hashes.first().copied())
    }
}

impl CachedRepository {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: CacheParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    /// Rule 2: makes a change in a task of its own, which no caller cancels, and answers when nothing older can be served
    /// here.
    async fn change<T, F>(
        &self,
        target: Target,
        change: impl FnOnce(Arc<CacheParts>) -> F,
        effects: impl FnOnce(&T, &Known) -> Vec<Effect> + Send + 'static,
    ) -> Result<T>
    where
        T: Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let parts = Arc::clone(&self.parts);
        let begun = parts.knowledge.change_begins();
        let change = change(Arc::clone(&parts));
        let task = self.parts.handle.spawn(async move {
            let known = parts.look_up(target).await?;
            let outcome = change.await;
            match &outcome {
                Ok(changed) => parts.changed(effects(changed, &known), &begun).await?,
                Err(error) => parts.failed(error, &known).await?,
            }
            outcome
        });
        task.await?
    }

    async fn delete_key<F>(
        &self,
        id: KeyId,
        delete: impl FnOnce(Arc<dyn KeyRepository>) -> F,
    ) -> Result<ChangeId>
    where
        F: Future<Output = Result<ChangeId>> + Send + 'static,
    {
        let deleted = |&change: &ChangeId, known: &Known| {
            vec![Effect { hash: known.hash(), change, is_new: true, key: None }]
        };
        let delete = |parts: Arc<CacheParts>| delete(Arc::clone(&parts.repository));
        self.change(Target::Id(id), delete, deleted).await
    }
}

impl CacheParts {
    /// Reads the keys of a change.
    ///
    /// # Errors
    /// Fails with the errors of the backend; the change is not attempted then.
    async fn look_up(&self, target: Target) -> Result<Known> {
        let id = match target {
            Target::Hashes(hashes) => return Ok(Known { hashes: Some(hashes), last_change: None }),
            Target::Id(id) => id,
        };
        let key = match self.repository.get(id).await {
            Ok(key) => key,
            // Unreadable records can be revoked and deleted, and an exhausted pool of readers does not affect the writers.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Overloaded) => None,
            Err(error) => return Err(error),
        };
        Ok(Known {
            hashes: key.as_ref().map(|key| vec![key.hash]),
            last_change: key.as_ref().map(ApiKey::last_change),
        })
    }

    /// A change was made: nothing older is served from now on.
    async fn changed(&self, effects: Vec<Effect>, begun: &ChangeBegun) -> Result<()> {
        for Effect { hash, change, is_new, key } in effects {
            let Some(hash) = hash else {
                self.any_key_changed().await?;
                continue;
            };
            let Made::Here(through) = self.knowledge.raise(begun, &hash, change, is_new) else {
                // The store's history became another one meanwhile: what is left of the change is told by the feed.
                self.hear_of_changes().await?;
                continue;
            };
            let entry = key.map(|key| Entry {
                key: Some(Arc::new(key)),
                through,
                history: begun.history,
                began: Some(begun.at),
                kept_until: Moment::NEVER,
            });
            for cache in &self.caches {
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

    /// A change was not made, or it is not known whether it was.
    ///
    /// A change that was answered with an error promises nothing. If it was made all the same, this replica reads it from the
    /// feed as all others do, within the same bound. So only the cached records of the keys that it is about are evicted, so
    /// that the next lookup returns what the store has; without a feed, that is all that keeps them from being served until
    /// their `ttl` ends.
    async fn failed(&self, error: &RepositoryError, known: &Known) -> Result<()> {
        match error.kind() {
            // Another replica may have deleted it: then it must not be served here any more.
            ErrorKind::NotFound => {
                self.forget(known.hashes.as_deref().unwrap_or_default()).await;
                self.hear_of_changes().await
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Internal => {
                match &known.hashes {
                    Some(hashes) => self.forget(hashes).await,
                    // The feed tells which it was.
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

    /// A change was made, of a key whose hash is not known.
    async fn any_key_changed(&self) -> Result<()> {
        if self.feed.is_none() {
            self.clear().await;
        }
        self.hear_of_changes().await
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

    /// Completes a poll of the feed, if there is one.
    async fn hear_of_changes(&self) -> Result<()> {
        match &self.feed {
            Some(feed) => feed.poll().await,
            None => Ok(()),
        }
    }
}

impl fmt::Display for CachedRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.source.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for CachedRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let CacheParts { knowledge, source, max_staleness, .. } = self.parts.as_ref();
        let demand = Demand { asked_at: knowledge.moment(), max_staleness: *max_staleness };
        let found = source.find(hash, &demand).await?;
        Ok(found.entry.key.map(|key| ApiKey::clone(&key)))
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        let found = hashes.iter().map(|hash| self.get_by_hash(hash));
        let found = futures_util::future::join_all(found).await;
        // The error of one record is its own; any other is that of all.
        let outage =
            found.iter().find_map(|it| it.as_ref().err().filter(|it| it.kind() != ErrorKind::Corrupt));
        match outage {
            Some(error) => Err(error.clone()),
            None => Ok(found),
        }
    }

    fn prefers_many(&self) -> bool {
        // They are joined behind the caches.
        false
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.parts.repository.get(id).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let (target, context) = (Target::Hashes(vec![key.hash]), context.clone());
        let change = |parts: Arc<CacheParts>| async move { parts.repository.create(key, &context).await };
        self.change(target, change, |created, _| vec![Effect::of(created)]).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        let target = Target::Hashes(keys.iter().map(|key| key.hash).collect());
        let context = context.clone();
        let change = |parts: Arc<CacheParts>| async move {
            let outcomes = parts.repository.create_many(keys, &context).await?;
            // The feed tells of many creations without costing others their records.
            parts.hear_of_changes().await?;
            Ok(outcomes)
        };
        // An import is no use: its keys take nobody's place.
        let created = |key: &ApiKey| Effect { key: None, ..Effect::of(key) };
        let has_feed = self.parts.feed.is_some();
        let effects = move |outcomes: &Vec<Result<ApiKey>>, _: &Known| {
            if has_feed { Vec::new() } else { outcomes.iter().flatten().map(created).collect() }
        };
        self.change(target, change, effects).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        let (target, context) = (Target::Hashes(vec![key.hash]), context.clone());
        let change = move |parts: Arc<CacheParts>| async move {
            parts.repository.update(key, expected, &context).await
        };
        self.change(target, change, |updated, _| vec![Effect::of(updated)]).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        let context = context.clone();
        self.delete_key(id, move |repository| async move { repository.delete(id, &context).await }).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        let context = context.clone();
        let delete = move |repository: Arc<dyn KeyRepository>| async move {
            repository.delete_unchanged(id, expected, &context).await
        };
        self.delete_key(id, delete).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.parts.repository.list_by_owner(owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        let context = context.clone();
        let change =
            move |parts: Arc<CacheParts>| async move { parts.repository.revoke(id, reason, &context).await };
        // One that changed nothing counts too: this replica may not have read the first one yet.
        let effects = |revoked: &ApiKey, known: &Known| {
            let is_new = known.last_change.is_some_and(|before| before != revoked.last_change());
            vec![Effect { is_new, ..Effect::of(revoked) }]
        };
        self.change(Target::Id(id), change, effects).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let target = Target::Hashes(vec![rotation.replaced.hash, rotation.successor.hash]);
        let context = context.clone();
        let change =
            |parts: Arc<CacheParts>| async move { parts.repository.rotate(rotation, &context).await };
        let effects = |rotated: &Rotation, _: &Known| {
            vec![Effect::of(&rotated.replaced), Effect::of(&rotated.successor)]
        };
        self.change(target, change, effects).await
    }

    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        self.parts.repository.can_rotate(old, successor)
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        self.parts.repository.list_page(request).await
    }

    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        self.parts.repository.record_usage(usage).await
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        self.parts.repository.usage(ids).await
    }

    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.parts.repository.list_events(request).await
    }

    fn feed_parts(&self) -> u8 {
        self.parts.repository.feed_parts()
    }

    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.parts.repository.changes(after, limit).await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.parts.repository.recent_changes(limit).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        self.parts.repository.wakes()
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        self.parts.repository.prune_events(before).await
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        self.parts.repository.key_of_request(request).await
    }

    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        self.parts.repository.can_create_for(request, hash)
    }

    async fn identity(&self) -> Result<Option<StoreIdentity>> {
        self.parts.repository.identity().await
    }

    async fn check_changes(&self) -> Result<()> {
        self.parts.repository.check_changes().await
    }

    async fn ping(&self) -> Result<()> {
        self.parts.repository.ping().await
    }
}
