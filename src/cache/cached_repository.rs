//! A backend with caches in front of it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument as _;

use super::change_effects::{ChangeEffects, Effect, KnownKeys, Target};
use super::{Demand, KeySource as _, Loader};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};
use crate::repository::{
    AuditTrail, Backend, BackendIdentity, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition,
    KeyRepository, KeyStream, ListedEvent, ListedKey, PageRequest, RecentChanges, RepositoryError, Result,
    UsageStore, pages,
};

/// A backend as the services use it. Lookups by hash go through the caches. Changes go to the backend, and
/// into the caches before they are acknowledged. Everything else goes to the backend. `Display` shows the
/// stack.
///
/// All calls run on the runtime of the backend's connections, since they come from the single-threaded
/// runtimes that serve clients. A call that was begun completes even if its caller goes away. So a client
/// that disconnects can't leave a change half done, that is, committed but not in effect in the caches of
/// this replica.
#[derive(Clone, Debug)]
pub(super) struct CachedRepository {
    backend: Backend,
    loader: Loader,
    effects: Arc<ChangeEffects>,
    max_staleness: Duration,
    handle: Handle,
}

impl CachedRepository {
    /// Creates a repository that looks up keys with `loader`. Lookups by hash have at most the staleness
    /// `max_staleness`. Calls run on the runtime of `handle`.
    pub(super) fn new(
        backend: Backend,
        loader: Loader,
        effects: ChangeEffects,
        max_staleness: Duration,
        handle: Handle,
    ) -> Self {
        Self { backend, loader, effects: Arc::new(effects), max_staleness, handle }
    }

    /// Returns the backend with this repository in place of its own, for the services.
    pub(super) fn into_backend(self) -> Backend {
        let offered = self.backend.clone();
        let shared = Arc::new(self);
        Backend {
            feed: offered.feed.map(|_| Arc::<Self>::clone(&shared) as _),
            audit: offered.audit.map(|_| Arc::<Self>::clone(&shared) as _),
            usage: offered.usage.map(|_| Arc::<Self>::clone(&shared) as _),
            keys: shared,
        }
    }

    /// Runs a call on the runtime of the backend. It completes even if the caller goes away.
    async fn run<T, F>(&self, call: impl FnOnce(Backend) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let call = call(self.backend.clone()).instrument(tracing::debug_span!("store"));
        self.handle.spawn(call).await?
    }

    /// Makes a change (rule 2). It completes when this replica can't serve anything older any more.
    async fn change<T, F>(
        &self,
        target: Target,
        change: impl FnOnce(Backend) -> F,
        changed_keys: impl FnOnce(&T, &KnownKeys) -> Vec<Effect> + Send + 'static,
    ) -> Result<T>
    where
        T: Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let effects = Arc::clone(&self.effects);
        if !effects.are_needed() {
            return self.run(change).await;
        }
        let start = effects.begin();
        self.run(|backend| {
            let change = change(backend.clone());
            async move {
                let known = target.look_up(backend.keys.as_ref()).await;
                let outcome = change.await;
                match &outcome {
                    Ok(changed) => effects.changed(changed_keys(changed, &known), &start).await?,
                    Err(error) => effects.failed(error, &known).await?,
                }
                outcome
            }
        })
        .await
    }

    async fn delete_key<F>(&self, id: KeyId, delete: impl FnOnce(Backend) -> F) -> Result<ChangeId>
    where
        F: Future<Output = Result<ChangeId>> + Send + 'static,
    {
        let deleted = |&change: &ChangeId, known: &KnownKeys| vec![Effect::deleted(known.hash(), change)];
        self.change(Target::Id(id), delete, deleted).await
    }
}

impl fmt::Display for CachedRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.loader.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for CachedRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let demand = Demand { asked_at: self.effects.now(), max_staleness: self.max_staleness };
        let found = self.loader.find(hash, &demand).await?;
        Ok(found.entry.key.map(|key| ApiKey::clone(&key)))
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        let found = hashes.iter().map(|hash| self.get_by_hash(hash));
        let found = futures_util::future::join_all(found).await;
        // An error of one record affects only that record. Any other error affects all.
        let outage =
            found.iter().find_map(|it| it.as_ref().err().filter(|it| it.kind() != ErrorKind::Corrupt));
        match outage {
            Some(error) => Err(error.clone()),
            None => Ok(found),
        }
    }

    fn supports_batching(&self) -> bool {
        // The loader already makes batches.
        false
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.run(move |backend| async move { backend.get(id).await }).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let (target, context) = (Target::Hashes(vec![key.hash]), context.clone());
        let create = |backend: Backend| async move { backend.create(key, &context).await };
        self.change(target, create, |created, _| vec![Effect::of(created)]).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        let target = Target::Hashes(keys.iter().map(|key| key.hash).collect());
        let (effects, context) = (Arc::clone(&self.effects), context.clone());
        let create = |backend: Backend| async move {
            let outcomes = backend.create_many(keys, &context).await?;
            if effects.are_needed() {
                // The feed reports many creations at once, and evicts only negative entries for them.
                effects.poll_feed().await?;
            }
            Ok(outcomes)
        };
        let has_feed = self.backend.feed.is_some();
        let created = move |outcomes: &Vec<Result<ApiKey>>, _: &KnownKeys| {
            // Imported keys are not cached: they are not in use yet, and would evict keys that are.
            if has_feed { Vec::new() } else { outcomes.iter().flatten().map(Effect::uncached).collect() }
        };
        self.change(target, create, created).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        let (target, context) = (Target::Hashes(vec![key.hash]), context.clone());
        let update = move |backend: Backend| async move { backend.update(key, expected, &context).await };
        self.change(target, update, |updated, _| vec![Effect::of(updated)]).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        let context = context.clone();
        self.delete_key(id, move |backend| async move { backend.delete(id, &context).await }).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        let context = context.clone();
        let delete =
            move |backend: Backend| async move { backend.delete_unchanged(id, expected, &context).await };
        self.delete_key(id, delete).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        let mut keys = self.backend.list_by_owner(owner, filter);
        let (sender, receiver) = mpsc::channel(1);
        let task = self.handle.spawn(async move {
            loop {
                let chunk = pages::next_chunk(&mut keys).await;
                if chunk.is_empty() || sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        // A listing that was cut short must not look complete.
        let end = stream::once(task).filter_map(async |ended| match ended {
            Ok(()) => None,
            Err(stopped) => Some(Err(stopped.into())),
        });
        ReceiverStream::new(receiver).flat_map(stream::iter).chain(end).boxed()
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        let context = context.clone();
        let revoke = move |backend: Backend| async move { backend.revoke(id, reason, &context).await };
        // A repeated revocation raises the fence, too, because this replica may not have read the first one
        // from the feed yet.
        let revoked = |key: &ApiKey, known: &KnownKeys| vec![Effect::revoked(key, known)];
        self.change(Target::Id(id), revoke, revoked).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let target = Target::Hashes(vec![rotation.replaced.hash, rotation.successor.hash]);
        let context = context.clone();
        let rotate = |backend: Backend| async move { backend.rotate(rotation, &context).await };
        let rotated = |rotation: &Rotation, _: &KnownKeys| {
            vec![Effect::of(&rotation.replaced), Effect::of(&rotation.successor)]
        };
        self.change(target, rotate, rotated).await
    }

    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        self.backend.can_rotate(old, successor)
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let request = request.clone();
        self.run(|backend| async move { backend.list_page(&request).await }).await
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let request = *request;
        self.run(move |backend| async move { backend.key_of_request(&request).await }).await
    }

    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        self.backend.can_create_for(request, hash)
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        self.run(|backend| async move { backend.identity().await }).await
    }

    async fn check_changes(&self) -> Result<()> {
        self.run(|backend| async move { backend.check_changes().await }).await
    }

    async fn ping(&self) -> Result<()> {
        self.run(|backend| async move { backend.ping().await }).await
    }

    async fn close(&self) -> Result<()> {
        self.run(|backend| async move { backend.close().await }).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeFeed for CachedRepository {
    fn partitions(&self) -> u8 {
        self.backend.feed.as_ref().map_or(1, |feed| feed.partitions())
    }

    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let (feed, after) = (offered(self.backend.feed.as_ref(), "a change feed")?, after.cloned());
        self.run(move |_| async move { feed.changes(after.as_ref(), limit).await }).await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        let feed = offered(self.backend.feed.as_ref(), "a change feed")?;
        self.run(move |_| async move { feed.recent_changes(limit).await }).await
    }

    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        let _on_runtime = self.handle.enter();
        self.backend.feed.as_ref().and_then(|feed| feed.wake_ups())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditTrail for CachedRepository {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let (audit, request) = (offered(self.backend.audit.as_ref(), "an audit trail")?, request.clone());
        self.run(move |_| async move { audit.list_events(&request).await }).await
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        let audit = offered(self.backend.audit.as_ref(), "an audit trail")?;
        self.run(move |_| async move { audit.prune_events(before).await }).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl UsageStore for CachedRepository {
    async fn record_usage(&self, used: &[(KeyId, Timestamp)]) -> Result<()> {
        let (usage, used) = (offered(self.backend.usage.as_ref(), "last uses")?, used.to_vec());
        self.run(move |_| async move { usage.record_usage(&used).await }).await
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let (usage, ids) = (offered(self.backend.usage.as_ref(), "last uses")?, ids.to_vec());
        self.run(move |_| async move { usage.usage(&ids).await }).await
    }
}

/// Returns a capability of the backend. It is always present: [`CachedRepository::into_backend`] only offers
/// the capabilities that the backend has.
fn offered<T: ?Sized>(capability: Option<&Arc<T>>, what: &'static str) -> Result<Arc<T>> {
    capability.cloned().ok_or_else(|| RepositoryError::not_offered(what))
}
