//! Streams changes to clients, for caches of their own. Clients get the events that this replica reads from
//! the feed anyway. The backend is read only to catch up.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::Caller;
use super::caller_slots::{CallerSlot, CallerSlots};
use crate::cache::{FeedHandle, FeedProgress, FeedUpdate, Knowledge};
use crate::domain::{KeyEvent, Moment};
use crate::repository::{
    ChangeFeed, Changes, ErrorKind, FeedPosition, RepositoryError, Result, UnreadableEvent, partition_of,
    within,
};

/// Maximum number of events per read.
const BATCH: usize = 500;
/// Maximum time between two messages of a stream.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent streams.
const MAX_WATCHERS: usize = 64;
/// Maximum number of concurrent streams per caller.
const MAX_WATCHERS_OF_ONE: usize = 16;
/// Time without reading after which a stream loses its slot if another stream needs one.
const UNREAD_FOR: Duration = Duration::from_secs(3 * HEARTBEAT.as_secs());
/// Delay before a failed read is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Streams the change feed to clients.
#[derive(Clone, Debug)]
pub struct ChangeWatcher {
    followed: Option<Followed>,
    knowledge: Arc<Knowledge>,
    slots: Arc<CallerSlots>,
}

/// A change feed, and the follower that reads it for this replica.
#[derive(Clone, Debug)]
struct Followed {
    source: Arc<dyn ChangeFeed>,
    handle: FeedHandle,
}

/// A message of a stream.
#[derive(Clone, Debug)]
pub struct News {
    /// The position after the events.
    pub position: FeedPosition,
    /// The changes. Empty in a heartbeat.
    pub events: Vec<KeyEvent>,
    /// Upper bound on the age of the stream: every change older than this has been delivered. `None` if the
    /// bound is unknown.
    pub staleness: Option<Duration>,
}

struct Watching {
    followed: Followed,
    knowledge: Arc<Knowledge>,
    progress: watch::Receiver<FeedProgress>,
    updates: broadcast::Receiver<FeedUpdate>,
    position: FeedPosition,
    /// The latest time at which the stream had delivered every change.
    as_of: Option<Moment>,
    /// Whether changes have to be read from the backend, because the follower read them before this stream
    /// began, or because updates were lost.
    is_behind: bool,
    next_heartbeat: Instant,
    slot: CallerSlot,
}

impl ChangeWatcher {
    /// Creates a watcher of the changes of `feed`, which `handle` follows.
    pub fn new(
        feed: Option<Arc<dyn ChangeFeed>>,
        handle: Option<FeedHandle>,
        knowledge: Arc<Knowledge>,
    ) -> Self {
        let slots = CallerSlots::new(MAX_WATCHERS, MAX_WATCHERS_OF_ONE, Some(UNREAD_FOR));
        let followed = feed.zip(handle).map(|(source, handle)| Followed { source, handle });
        Self { followed, knowledge, slots }
    }

    /// Streams changes to `caller`, beginning after `position`. Without a position, the stream begins with
    /// the next change.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] without a feed, and [`ErrorKind::Overloaded`] if there are too many
    /// streams. The stream ends with [`ErrorKind::Overloaded`] if it was not read and others need its slot,
    /// with [`ErrorKind::PositionLost`] if events are missing or can't be read, and with [`ErrorKind::Unavailable`] when
    /// the server shuts down.
    pub fn watch(
        &self,
        position: Option<FeedPosition>,
        caller: &Caller,
    ) -> Result<BoxStream<'static, Result<News>>> {
        let followed = self.followed.clone().ok_or_else(|| RepositoryError::not_offered("a change feed"))?;
        let too_many =
            || RepositoryError::new(ErrorKind::Overloaded, "too many concurrent WatchChanges streams");
        let slot = self.slots.take(caller, self.knowledge.moment()).ok_or_else(too_many)?;
        let (progress, updates) = followed.handle.subscribe();
        if position.is_none() && self.knowledge.epoch() == 0 {
            // The present is not known yet.
            return Err(RepositoryError::new(ErrorKind::Unavailable, "the change feed was not read yet"));
        }
        let is_behind = position.is_some();
        let now = progress.borrow().clone();
        let watching = Watching {
            followed,
            knowledge: Arc::clone(&self.knowledge),
            as_of: if is_behind { None } else { now.as_of },
            position: position.unwrap_or(now.position),
            progress,
            updates,
            is_behind,
            next_heartbeat: Instant::now(),
            slot,
        };
        let news = stream::try_unfold(watching, |mut watching| async move {
            let news = watching.next().await?;
            Ok(Some((news, watching)))
        });
        Ok(news.boxed())
    }
}

impl Watching {
    async fn next(&mut self) -> Result<News> {
        let ended =
            || RepositoryError::new(ErrorKind::Unavailable, "the server no longer reads the change feed");
        if !self.slot.record_read(self.knowledge.moment()) {
            return Err(RepositoryError::new(
                ErrorKind::Overloaded,
                "the client did not read the stream, and another one needed its slot",
            ));
        }
        loop {
            if self.is_behind
                && let Some(news) = self.catch_up().await?
            {
                return Ok(news);
            }
            tokio::select! {
                update = self.updates.recv(), if !self.is_behind => match update {
                    Ok(FeedUpdate::Changes(changes)) => {
                        if let Some(news) = self.deliver(&changes)? {
                            return Ok(news);
                        }
                    }
                    Ok(FeedUpdate::Restarted) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.is_behind = true;
                    }
                    Err(broadcast::error::RecvError::Closed) => return Err(ended()),
                },
                changed = self.progress.changed() => {
                    changed.map_err(|_| ended())?;
                    self.refresh();
                }
                () = tokio::time::sleep_until(self.next_heartbeat) => return Ok(self.news(Vec::new())),
            }
        }
    }

    /// Returns the events of an update that were not delivered yet, or `None` if all were.
    ///
    /// # Errors
    /// [`ErrorKind::PositionLost`] if one of them can't be read.
    fn deliver(&mut self, changes: &Changes) -> Result<Option<News>> {
        let is_new = |event: &&UnreadableEvent| !self.position.includes(event.partition, event.revision);
        if let Some(event) = changes.unreadable.iter().find(is_new) {
            return Err(position_lost(event));
        }
        let partitions = usize::from(self.followed.source.partitions().max(1));
        let is_new = |event: &&KeyEvent| {
            let partition = u8::try_from(partition_of(event.hash.as_bytes()[0], partitions)).unwrap_or(0);
            !self.position.includes(partition, event.revision)
        };
        let new: Vec<_> = changes.events.iter().filter(is_new).cloned().collect();
        self.position.advance_to(&changes.position);
        self.refresh();
        Ok((!new.is_empty()).then(|| self.news(new)))
    }

    /// Takes over the follower's `as_of` if everything that the follower has read was delivered.
    fn refresh(&mut self) {
        // Read in this order, because the follower publishes its `as_of` together with an update.
        let as_of = self.progress.borrow_and_update().as_of;
        if !self.is_behind && self.updates.is_empty() {
            self.as_of = self.as_of.max(as_of);
        }
    }

    /// Reads changes from the backend.
    async fn catch_up(&mut self) -> Result<Option<News>> {
        let asked_at = self.knowledge.moment();
        let asked = self.followed.source.changes(Some(&self.position), BATCH);
        match within(HEARTBEAT, asked).await {
            Ok(changes) => {
                if let Some(event) = changes.unreadable.first() {
                    return Err(position_lost(event));
                }
                self.is_behind = changes.is_full(BATCH) || !changes.unanswered.is_empty();
                self.position = changes.position;
                if !self.is_behind {
                    self.as_of = Some(asked_at);
                }
                Ok((!changes.events.is_empty()).then(|| self.news(changes.events)))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Unavailable | ErrorKind::Unusable | ErrorKind::Timeout
                ) =>
            {
                // The follower logs the failure. The heartbeats report the growing staleness to the client.
                tokio::time::sleep(RETRY_PAUSE).await;
                Ok((Instant::now() >= self.next_heartbeat).then(|| self.news(Vec::new())))
            }
            Err(error) => Err(error),
        }
    }

    fn news(&mut self, events: Vec<KeyEvent>) -> News {
        self.next_heartbeat = Instant::now() + HEARTBEAT;
        let staleness = self.as_of.map(|as_of| self.knowledge.moment().since(as_of));
        News { position: self.position.clone(), events, staleness }
    }
}

/// Returns the error that ends a stream at an event that can't be read. Any key may have changed, so the client
/// has to empty its cache. A stream that it then begins without a position begins after the event. Resuming at a
/// position before the event fails again, for as long as the event is stored.
fn position_lost(event: &UnreadableEvent) -> RepositoryError {
    let UnreadableEvent { partition, revision } = event;
    let cause = format!("the event with revision {revision} in partition {partition} can't be read");
    RepositoryError::new(ErrorKind::PositionLost, cause)
}
