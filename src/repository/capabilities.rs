//! Capabilities that a backend can offer in addition to keys. Each capability is a trait of its own, and a
//! [`Backend`] has a value for each capability that it offers.

use std::fmt::{self, Debug};
use std::ops::Deref;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use super::{
    Changes, EventPageRequest, FeedPosition, KeyRepository, ListedEvent, MemoryRepository, RecentChanges,
    RedisRepository, Result, SqlRepository,
};
use crate::domain::{KeyId, Timestamp};

/// Reports changes of keys to all replicas. With a change feed, all replicas apply an acknowledged change
/// within a bounded time. Without one, the caches of other replicas serve older records until their `ttl`
/// ends.
///
/// Every change of a key is an event of the feed from the moment at which it is acknowledged. The feed has
/// one or more partitions. Each has an order of its own. Within a partition, revisions grow in the order in
/// which changes are made.
#[async_trait]
pub trait ChangeFeed: Send + Sync + Debug {
    /// Returns the number of partitions, which never changes. The partition of a key is the first byte of its
    /// hash modulo this number.
    ///
    /// The default implementation returns 1.
    fn partitions(&self) -> u8 {
        1
    }

    /// Returns at most `limit` events after a position and the position after the last of them. Each event is
    /// returned once, and the events of a key are in their order. `None` begins with the oldest event that is
    /// stored.
    ///
    /// # Errors
    /// [`ErrorKind::PositionLost`](super::ErrorKind::PositionLost) if events after the position may be
    /// missing. They were pruned, or the backend was rewound, so that the event at the position is a
    /// different one. Otherwise the errors of a read of [`KeyRepository`].
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes>;

    /// Returns at most `limit` of the newest events, and the position after the newest of all. A follower
    /// begins here.
    ///
    /// # Errors
    /// The errors of a read of [`KeyRepository`]. All partitions have to answer.
    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges>;

    /// Returns a stream that yields after changes of any replica, so that followers need not wait for the
    /// next poll. A wake-up is only a hint. It may come without a change, and may be lost. `None` means that
    /// the backend has no wake-ups, so followers depend on polls.
    ///
    /// The default implementation returns `None`.
    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        None
    }
}

/// Stores events for administrators: what was changed, when and by whom.
#[async_trait]
pub trait AuditTrail: Send + Sync + Debug {
    /// Returns at most `request.limit` of the events that `request` selects, newest first, beginning after
    /// the event `request.after`. Events outlive their keys. An empty page means that no event follows.
    ///
    /// # Errors
    /// The errors of a read of [`KeyRepository`].
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>>;

    /// Deletes events from before `before` and returns their number. It never deletes the newest event of a
    /// partition. If several replicas prune at the same time, one of them may do all the work. Idempotent.
    ///
    /// Dropping the future may leave some of the events deleted. A later call deletes the others.
    ///
    /// # Errors
    /// The errors of a change of [`KeyRepository`]. Some of the events may have been deleted.
    async fn prune_events(&self, before: Timestamp) -> Result<u64>;
}

/// Stores the time of the last use of each key. It is not part of the record. Recording a use changes no
/// revision and makes no event.
#[async_trait]
pub trait UsageStore: Send + Sync + Debug {
    /// Records that keys were used. Idempotent: the latest time of each key is stored, whatever the order of
    /// calls. Ids of keys that don't exist are ignored.
    ///
    /// Dropping the future may leave some of the uses recorded. A later call records the others.
    ///
    /// # Errors
    /// The errors of a change of [`KeyRepository`]. Some of the uses may have been recorded.
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()>;

    /// Returns the last recorded use of each of `ids`, in the same order. `None` for a key that was never
    /// used or does not exist.
    ///
    /// # Errors
    /// The errors of a read of [`KeyRepository`].
    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>>;
}

/// A repository and its capabilities. Clones share them.
///
/// ```
/// use keyvouch::repository::{Backend, MemoryRepository};
///
/// let repository = MemoryRepository::new();
/// // Keys alone: no other replica learns of changes, and last uses are not recorded.
/// let keys_alone = Backend::new(repository.clone());
/// // Keys and a change feed.
/// let with_feed = Backend::new(repository.clone()).with_feed(repository.clone());
/// // All capabilities.
/// let complete = Backend::complete(repository);
/// ```
#[derive(Clone, Debug)]
pub struct Backend {
    /// The repository of keys.
    pub keys: Arc<dyn KeyRepository>,
    /// Reports changes to other replicas. `None` if the backend has no change feed.
    pub feed: Option<Arc<dyn ChangeFeed>>,
    /// Stores events for administrators. `None` if the backend has no audit trail.
    pub audit: Option<Arc<dyn AuditTrail>>,
    /// Stores last uses. `None` if the backend does not record them.
    pub usage: Option<Arc<dyn UsageStore>>,
}

impl Backend {
    /// Creates a backend with keys alone.
    pub fn new(keys: impl KeyRepository + 'static) -> Self {
        Self { keys: Arc::new(keys), feed: None, audit: None, usage: None }
    }

    /// Adds a change feed.
    #[must_use]
    pub fn with_feed(self, feed: impl ChangeFeed + 'static) -> Self {
        Self { feed: Some(Arc::new(feed)), ..self }
    }

    /// Adds an audit trail.
    #[must_use]
    pub fn with_audit_trail(self, audit: impl AuditTrail + 'static) -> Self {
        Self { audit: Some(Arc::new(audit)), ..self }
    }

    /// Adds a store of last uses.
    #[must_use]
    pub fn with_usage(self, usage: impl UsageStore + 'static) -> Self {
        Self { usage: Some(Arc::new(usage)), ..self }
    }

    /// Creates a backend from a repository that implements all capabilities.
    pub fn complete<R>(repository: R) -> Self
    where
        R: KeyRepository + ChangeFeed + AuditTrail + UsageStore + 'static,
    {
        let shared = Arc::new(repository);
        Self {
            keys: Arc::<R>::clone(&shared),
            feed: Some(Arc::<R>::clone(&shared)),
            audit: Some(Arc::<R>::clone(&shared)),
            usage: Some(shared),
        }
    }
}

/// Dereferences to the repository of keys.
impl Deref for Backend {
    type Target = dyn KeyRepository;

    fn deref(&self) -> &Self::Target {
        self.keys.as_ref()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.keys, f)
    }
}

impl From<MemoryRepository> for Backend {
    fn from(repository: MemoryRepository) -> Self {
        Self::complete(repository)
    }
}

impl From<SqlRepository> for Backend {
    fn from(repository: SqlRepository) -> Self {
        Self::complete(repository)
    }
}

impl From<RedisRepository> for Backend {
    fn from(repository: RedisRepository) -> Self {
        Self::complete(repository)
    }
}
