//! Telling clients of changes, for caches of their own.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Caller;
use super::caller_slots::{CallerSlot, CallerSlots};
use crate::cache::{FeedHandle, Knowledge, Seen};
use crate::domain::{KeyEvent, Moment};
use crate::repository::{ErrorKind, FeedPosition, KeyRepository, RepositoryError, Result, within};

/// How many events are told at once.
const BATCH: usize = 500;
/// How long it is silent at most.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent streams. Each reads changes from the backend.
const MAX_WATCHERS: usize = 64;
/// Maximum number of concurrent streams per caller.
const MAX_WATCHERS_OF_ONE: usize = 16;
/// A stream that was not read for so long loses its slot when another one needs it.
const UNREAD_FOR: Duration = Duration::from_secs(3 * HEARTBEAT.as_secs());
/// How long after a failure of the store it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Watches the change feed for clients.
#[derive(Clone, Debug)]
pub struct ChangeWatcher {
    repository: Arc<dyn KeyRepository>,
    knowledge: Arc<Knowledge>,
    feed: Option<FeedHandle>,
    slots: Arc<CallerSlots>,
}

/// What there is to tell.
#[derive(Clone, Debug)]
pub struct News {
    /// Behind what is told here.
    pub position: FeedPosition,
    /// What was changed; empty: nothing.
    pub events: Vec<KeyEvent>,
    /// How long ago, at most, there was nothing else; `None`: that is not known.
    pub staleness: Option<Duration>,
}

struct Watching {
    watcher: ChangeWatcher,
    seen: watch::Receiver<Seen>,
    position: FeedPosition,
    /// When there was nothing that this stream has not told.
    as_of: Option<Moment>,
    /// Whether there may be events that were not asked for yet.
    is_behind: bool,
    next_heartbeat: Instant,
    slot: CallerSlot,
}

impl ChangeWatcher {
    /// Tells of the changes of `repository`, as `feed` hears of them.
    pub fn new(
        repository: Arc<dyn KeyRepository>,
        knowledge: Arc<Knowledge>,
        feed: Option<FeedHandle>,
    ) -> Self {
        let slots = CallerSlots::new(MAX_WATCHERS, MAX_WATCHERS_OF_ONE, Some(UNREAD_FOR));
        Self { repository, knowledge, feed, slots }
    }

    /// What is new after `position`, as it comes, for `caller`; from now on without one.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] without a feed, [`ErrorKind::Overloaded`] with too many watchers. The stream ends with the same if it was not read and others need its slot, with
    /// [`ErrorKind::PositionLost`] if events may be missing, and with [`ErrorKind::Unavailable`] when the server ends.
    pub fn watch(
        &self,
        position: Option<FeedPosition>,
        caller: &Caller,
    ) -> Result<BoxStream<'static, Result<News>>> {
        let feed = self.feed.as_ref().ok_or_else(|| RepositoryError::not_offered("a change feed"))?;
        let too_many =
            || RepositoryError::new(ErrorKind::Overloaded, "too many concurrent WatchChanges streams");
        let slot = self.slots.take(caller).ok_or_else(too_many)?;
        let seen = feed.seen();
        let is_behind = position.is_some();
        let now = seen.borrow().clone();
        let watching = Watching {
            as_of: if is_behind { None } else { now.as_of },
            position: position.unwrap_or(now.position),
            watcher: self.clone(),
            seen,
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
            || RepositoryError::new(ErrorKind::Unavailable, "the change feed is not followed any more");
        if !self.slot.is_read() {
            return Err(RepositoryError::new(
                ErrorKind::Overloaded,
                "the stream was not read, and others needed its slot",
            ));
        }
        loop {
            if self.is_behind
                && let Some(news) = self.ask().await?
            {
                return Ok(news);
            }
            tokio::select! {
                changed = self.seen.changed() => {
                    changed.map_err(|_| ended())?;
                    let seen = self.seen.borrow_and_update().clone();
                    if seen.position == self.position {
                        self.as_of = self.as_of.max(seen.as_of);
                    } else {
                        self.is_behind = true;
                    }
                }
                () = tokio::time::sleep_until(self.next_heartbeat) => return Ok(self.news(Vec::new())),
            }
        }
    }

    /// Asks the store for what is new.
    async fn ask(&mut self) -> Result<Option<News>> {
        let asked_at = self.watcher.knowledge.moment();
        let asked = self.watcher.repository.changes(Some(&self.position), BATCH);
        match within(HEARTBEAT, asked).await {
            Ok(changes) => {
                self.is_behind = changes.events.len() == BATCH || !changes.unanswered.is_empty();
                self.position = changes.position;
                if !self.is_behind {
                    self.as_of = Some(asked_at);
                }
                Ok((!changes.events.is_empty()).then(|| self.news(changes.events)))
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                // The follower has told the log. The client sees by the heartbeats that nothing is known.
                tokio::time::sleep(RETRY_PAUSE).await;
                Ok((Instant::now() >= self.next_heartbeat).then(|| self.news(Vec::new())))
            }
            Err(error) => Err(error),
        }
    }

    fn news(&mut self, events: Vec<KeyEvent>) -> News {
        self.next_heartbeat = Instant::now() + HEARTBEAT;
        let staleness = self.as_of.map(|as_of| self.watcher.knowledge.moment().since(as_of));
        News { position: self.position.clone(), events, staleness }
    }
}
