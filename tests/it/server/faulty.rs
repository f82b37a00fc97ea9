//! A backend whose failures a test controls.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision, Timestamp,
};
use keyvouch::repository::{
    AuditTrail, Backend, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition, KeyRepository,
    KeyStream, ListedEvent, ListedKey, MemoryRepository, PageRequest, RecentChanges, RepositoryError, Result,
    UsageStore,
};
use tokio::sync::watch;

/// Behaviour of the methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Work,
    Fail(ErrorKind),
    Hang,
}

/// Text of an internal error, which no client may ever receive.
pub(crate) const DRIVER_TEXT: &str = "driver text with hunter2";

#[derive(Clone, Debug)]
pub(crate) struct Faulty {
    inner: MemoryRepository,
    mode: watch::Sender<Mode>,
    usage_mode: watch::Sender<Mode>,
    listing_mode: watch::Sender<Mode>,
    listings: Arc<AtomicUsize>,
    rejects_revivals: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    panics_in_background: Arc<AtomicBool>,
    lookups: Arc<AtomicUsize>,
    flushes: Arc<AtomicUsize>,
    pings: watch::Sender<Pings>,
}

/// Pings of the backend.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pings {
    pub(crate) begun: usize,
    pub(crate) running: usize,
    /// Maximum number of pings that were running at the same time.
    pub(crate) most: usize,
}

/// A running ping. It ends when it returns or is dropped.
struct Ping<'p>(&'p watch::Sender<Pings>);

impl<'p> Ping<'p> {
    fn begin(pings: &'p watch::Sender<Pings>) -> Self {
        pings.send_modify(|pings| {
            pings.begun += 1;
            pings.running += 1;
            pings.most = pings.most.max(pings.running);
        });
        Self(pings)
    }
}

impl Drop for Ping<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|pings| pings.running -= 1);
    }
}

impl Faulty {
    pub(crate) fn new() -> Self {
        Self {
            inner: MemoryRepository::new(),
            mode: watch::Sender::new(Mode::Work),
            usage_mode: watch::Sender::new(Mode::Work),
            listing_mode: watch::Sender::new(Mode::Work),
            listings: Arc::default(),
            rejects_revivals: Arc::default(),
            panics: Arc::default(),
            panics_in_background: Arc::default(),
            lookups: Arc::default(),
            flushes: Arc::default(),
            pings: watch::Sender::default(),
        }
    }

    /// Sets the behaviour of all methods except those of usage.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Sets the behaviour of the methods of usage.
    pub(crate) fn set_usage(&self, mode: Mode) {
        self.usage_mode.send_replace(mode);
    }

    /// Sets the behaviour of listings of keys.
    pub(crate) fn set_listing(&self, mode: Mode) {
        self.listing_mode.send_replace(mode);
    }

    /// Returns the number of listings of keys.
    pub(crate) fn listings(&self) -> usize {
        self.listings.load(Ordering::SeqCst)
    }

    /// Makes creations fail that may revive a revoked hash.
    pub(crate) fn reject_revivals(&self) {
        self.rejects_revivals.store(true, Ordering::SeqCst);
    }

    /// Makes the next lookup by hash panic.
    pub(crate) fn panic_once(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// Makes the next pruning of events panic.
    pub(crate) fn panic_in_background(&self) {
        self.panics_in_background.store(true, Ordering::SeqCst);
    }

    /// Returns the number of lookups by hash.
    pub(crate) fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }

    /// Returns the number of pings.
    pub(crate) fn pings(&self) -> Pings {
        *self.pings.borrow()
    }

    /// Returns the number of attempts to record usage.
    pub(crate) fn flushes(&self) -> usize {
        self.flushes.load(Ordering::SeqCst)
    }
}

async fn obey(order: &watch::Sender<Mode>) -> Result<()> {
    let mode = *order.borrow();
    follow(mode, order).await
}

/// Behaves according to `mode`, which was read before.
async fn follow(mode: Mode, order: &watch::Sender<Mode>) -> Result<()> {
    match mode {
        Mode::Work => Ok(()),
        Mode::Fail(kind) => Err(RepositoryError::new(kind, DRIVER_TEXT)),
        Mode::Hang => {
            order.subscribe().wait_for(|&mode| mode != Mode::Hang).await.unwrap();
            Ok(())
        }
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl KeyRepository for Faulty {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        // The mode is read before the call is counted, because a test that waits for the count may change the
        // mode then.
        let is_to_panic = self.panics.swap(false, Ordering::SeqCst);
        let mode = *self.mode.borrow();
        self.lookups.fetch_add(1, Ordering::SeqCst);
        assert!(!is_to_panic, "a panic of the test");
        follow(mode, &self.mode).await?;
        self.inner.get_by_hash(hash).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        obey(&self.mode).await?;
        self.inner.get(id).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        obey(&self.mode).await?;
        if context.may_revive && self.rejects_revivals.load(Ordering::SeqCst) {
            return Err(RepositoryError::new(ErrorKind::Timeout, DRIVER_TEXT));
        }
        self.inner.create(key, context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        obey(&self.mode).await?;
        self.inner.update(key, expected, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        obey(&self.mode).await?;
        self.inner.delete(id, context).await
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        self.listings.fetch_add(1, Ordering::SeqCst);
        obey(&self.listing_mode).await?;
        self.inner.list_page(request).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.inner.list_by_owner(owner, filter)
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        obey(&self.mode).await?;
        self.inner.key_of_request(request).await
    }

    async fn ping(&self) -> Result<()> {
        let _running = Ping::begin(&self.pings);
        obey(&self.mode).await
    }
}

#[async_trait]
impl ChangeFeed for Faulty {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        obey(&self.mode).await?;
        self.inner.changes(after, limit).await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        obey(&self.mode).await?;
        self.inner.recent_changes(limit).await
    }
}

#[async_trait]
impl UsageStore for Faulty {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        obey(&self.usage_mode).await?;
        self.inner.record_usage(usage).await
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        obey(&self.usage_mode).await?;
        self.inner.usage(ids).await
    }
}

#[async_trait]
impl AuditTrail for Faulty {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.inner.list_events(request).await
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        assert!(!self.panics_in_background.load(Ordering::SeqCst), "a panic of the test");
        self.inner.prune_events(before).await
    }
}

impl From<Faulty> for Backend {
    fn from(faulty: Faulty) -> Self {
        Self::complete(faulty)
    }
}
