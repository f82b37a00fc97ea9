//! A decorator that runs a repository on a runtime of its own.

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

use super::lookup_queue::LookupQueue;
use super::pages;
use super::{
    Changes, EventPageRequest, FeedPosition, KeyRepository, KeyStream, ListedEvent, ListedKey, PageRequest,
    RecentChanges, Result, StoreIdentity,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};

/// How long a look-up by hash takes at most, where several go to the store together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs every call on the runtime of `handle`, where the store's connections live. Calls come from the
/// single-threaded runtimes that serve clients.
///
/// A call that was begun is finished there even if its caller goes away, so a client that hangs up in the middle
/// of a change can't leave it half done. Look-ups by hash that wait at the same time go to a
/// store that prefers that together. A stream that is dropped is not read on.
#[derive(Clone, Debug)]
pub struct OnRuntime<R> {
    inner: Arc<R>,
    /// For a store that prefers many at once.
    lookups: Option<Arc<LookupQueue<R>>>,
    handle: Handle,
}

impl<R: KeyRepository + 'static> OnRuntime<R> {
    /// Runs the calls of `inner` on the runtime of `handle`.
    pub fn new(inner: R, handle: Handle) -> Self {
        Self::with_lookup_timeout(inner, handle, LOOKUP_TIMEOUT)
    }

    /// The same with a limit to how long a look-up by hash takes from its arrival on, where several go to the store
    /// together.
    pub fn with_lookup_timeout(inner: R, handle: Handle, timeout: Duration) -> Self {
        let inner = Arc::new(inner);
        let lookups = inner
            .prefers_many()
            .then(|| Arc::new(LookupQueue::new(Arc::clone(&inner), handle.clone(), timeout)));
        Self { inner, lookups, handle }
    }

    async fn run<T, F>(&self, call: impl FnOnce(Arc<R>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let span = tracing::debug_span!("store");
        let task = self.handle.spawn(call(Arc::clone(&self.inner)).instrument(span));
        task.await?
    }
}

impl<R: fmt::Display> fmt::Display for OnRuntime<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnRuntime({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<R: KeyRepository + 'static> KeyRepository for OnRuntime<R> {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        if let Some(lookups) = &self.lookups {
            return lookups.get(hash).instrument(tracing::debug_span!("store")).await;
        }
        let hash = *hash;
        self.run(move |inner| async move { inner.get_by_hash(&hash).await }).await
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        let hashes = hashes.to_vec();
        self.run(|inner| async move { inner.get_many_by_hash(&hashes).await }).await
    }

    fn prefers_many(&self) -> bool {
        self.inner.prefers_many()
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.run(|inner| async move { inner.get(id).await }).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let context = context.clone();
        self.run(|inner| async move { inner.create(key, &context).await }).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        let context = context.clone();
        self.run(move |inner| async move { inner.update(key, expected, &context).await }).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        let context = context.clone();
        self.run(move |inner| async move { inner.delete(id, &context).await }).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        let context = context.clone();
        self.run(move |inner| async move { inner.delete_unchanged(id, expected, &context).await }).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        let mut keys = self.inner.list_by_owner(owner, filter);
        let (sender, receiver) = mpsc::channel(1);
        let task = self.handle.spawn(async move {
            loop {
                let chunk = pages::next_chunk(&mut keys).await;
                if chunk.is_empty() || sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        // A list that was cut short must not look like a whole one.
        let end = stream::once(task).filter_map(async |ended| match ended {
            Ok(()) => None,
            Err(stopped) => Some(Err(stopped.into())),
        });
        ReceiverStream::new(receiver).flat_map(stream::iter).chain(end).boxed()
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        let context = context.clone();
        self.run(move |inner| async move { inner.revoke(id, reason, &context).await }).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let context = context.clone();
        self.run(|inner| async move { inner.rotate(rotation, &context).await }).await
    }

    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        self.inner.can_rotate(old, successor)
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let request = request.clone();
        self.run(|inner| async move { inner.list_page(&request).await }).await
    }

    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let usage = usage.to_vec();
        self.run(|inner| async move { inner.record_usage(&usage).await }).await
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let ids = ids.to_vec();
        self.run(|inner| async move { inner.usage(&ids).await }).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        let context = context.clone();
        self.run(move |inner| async move { inner.create_many(keys, &context).await }).await
    }

    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let request = request.clone();
        self.run(move |inner| async move { inner.list_events(&request).await }).await
    }

    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let after = after.cloned();
        self.run(move |inner| async move { inner.changes(after.as_ref(), limit).await }).await
    }

    fn feed_parts(&self) -> u8 {
        self.inner.feed_parts()
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.run(move |inner| async move { inner.recent_changes(limit).await }).await
    }

    fn wakes(&self) -> Option<BoxStream<'static, ()>> {
        let _on_runtime = self.handle.enter();
        self.inner.wakes()
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        self.run(move |inner| async move { inner.prune_events(before).await }).await
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let request = *request;
        self.run(move |inner| async move { inner.key_of_request(&request).await }).await
    }

    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        self.inner.can_create_for(request, hash)
    }

    async fn identity(&self) -> Result<Option<StoreIdentity>> {
        self.run(|inner| async move { inner.identity().await }).await
    }

    async fn check_changes(&self) -> Result<()> {
        self.run(|inner| async move { inner.check_changes().await }).await
    }

    async fn ping(&self) -> Result<()> {
        self.run(|inner| async move { inner.ping().await }).await
    }
}
