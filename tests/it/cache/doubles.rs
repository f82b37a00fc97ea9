//! Backends with controllable behaviour.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision, RevokeReason,
};
use keyvouch::repository::{
    Backend, BackendIdentity, ChangeFeed, Changes, ErrorKind, FeedPosition, KeyRepository, KeyStream,
    MemoryRepository, RecentChanges, Result,
};
use tokio::sync::watch;

/// A backend whose lookups read at once and return when the test releases them.
#[derive(Clone, Debug)]
pub(super) struct SlowLookups {
    inner: Arc<MemoryRepository>,
    hold: watch::Sender<bool>,
    held: Arc<AtomicUsize>,
}

impl SlowLookups {
    pub(super) fn new(inner: MemoryRepository) -> Self {
        Self { inner: Arc::new(inner), hold: watch::Sender::new(false), held: Arc::default() }
    }

    pub(super) fn hold(&self) {
        self.hold.send_replace(true);
    }

    pub(super) fn release(&self) {
        self.hold.send_replace(false);
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

/// A backend that can be replaced by another one.
#[derive(Clone, Debug)]
pub(super) struct Swapped(Arc<RwLock<Backend>>);

impl Swapped {
    pub(super) fn new(inner: impl Into<Backend>) -> Self {
        Self(Arc::new(RwLock::new(inner.into())))
    }

    pub(super) fn swap(&self, inner: impl Into<Backend>) {
        *self.0.write().unwrap() = inner.into();
    }

    pub(super) fn inner(&self) -> Backend {
        self.0.read().unwrap().clone()
    }
}

macro_rules! double {
    ($double:ty, $self:ident => $inner:expr, $feed:expr, $hash:ident => $lookup:expr) => {
        impl fmt::Display for $double {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($double))
            }
        }

        #[async_trait]
        impl KeyRepository for $double {
            async fn get_by_hash(&$self, $hash: &KeyHash) -> Result<Option<ApiKey>> {
                $lookup
            }

            async fn get(&$self, id: KeyId) -> Result<Option<ApiKey>> {
                $inner.get(id).await
            }

            async fn create(&$self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
                $inner.create(key, context).await
            }

            async fn update(&$self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
                $inner.update(key, expected, context).await
            }

            async fn delete(&$self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
                $inner.delete(id, context).await
            }

            fn list_by_owner(&$self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
                $inner.list_by_owner(owner, filter)
            }

            async fn identity(&$self) -> Result<Option<BackendIdentity>> {
                $inner.identity().await
            }

        }

        #[async_trait]
        impl ChangeFeed for $double {
            async fn changes(&$self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
                $feed.changes(after, limit).await
            }

            async fn recent_changes(&$self, limit: usize) -> Result<RecentChanges> {
                $feed.recent_changes(limit).await
            }
        }

        impl From<$double> for Backend {
            fn from(double: $double) -> Self {
                Self::new(double.clone()).with_feed(double)
            }
        }
    };
}

double!(Swapped, self => self.inner(), self.inner().feed.unwrap(), hash => self.inner().get_by_hash(hash).await);

double!(SlowLookups, self => self.inner, self.inner, hash => {
    let found = self.inner.get_by_hash(hash).await;
    if *self.hold.borrow() {
        self.held.fetch_add(1, Ordering::SeqCst);
        self.hold.subscribe().wait_for(|hold| !hold).await.unwrap();
    }
    found
});

/// A backend whose answers a test controls. Without a change feed, unless one is added.
#[derive(Clone, Debug, Default)]
pub(super) struct WithoutFeed {
    inner: Arc<MemoryRepository>,
    loses_answers: Arc<AtomicBool>,
    failure_of_reads: Arc<RwLock<Option<ErrorKind>>>,
}

impl WithoutFeed {
    /// Returns the backend with its change feed.
    pub(super) fn with_feed(&self) -> Backend {
        Backend::new(self.clone()).with_feed(MemoryRepository::clone(&self.inner))
    }

    /// Makes all later changes take effect but fail with a timeout.
    pub(super) fn lose_answers(&self) {
        self.loses_answers.store(true, Ordering::SeqCst);
    }

    /// Makes all later reads by id fail. Changes work.
    pub(super) fn fail_reads(&self, kind: ErrorKind) {
        *self.failure_of_reads.write().unwrap() = Some(kind);
    }

    fn answer<T>(&self, made: T) -> Result<T> {
        if self.loses_answers.load(Ordering::SeqCst) { Err(ErrorKind::Timeout.into()) } else { Ok(made) }
    }
}

impl fmt::Display for WithoutFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WithoutFeed")
    }
}

impl From<WithoutFeed> for Backend {
    fn from(double: WithoutFeed) -> Self {
        Self::new(double)
    }
}

#[async_trait]
impl KeyRepository for WithoutFeed {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.inner.get_by_hash(hash).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        let failure = *self.failure_of_reads.read().unwrap();
        match failure {
            Some(kind) => Err(kind.into()),
            None => self.inner.get(id).await,
        }
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.inner.create(key, context).await.and_then(|made| self.answer(made))
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.inner.update(key, expected, context).await.and_then(|made| self.answer(made))
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.inner.delete(id, context).await.and_then(|made| self.answer(made))
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        self.inner.revoke(id, reason, context).await.and_then(|made| self.answer(made))
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.inner.list_by_owner(owner, filter)
    }
}
