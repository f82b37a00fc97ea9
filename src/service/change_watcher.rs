//! Telling clients of changes, for caches of their own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Actor, Caller};
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
/// How long after a failure of the store it is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Watches the change feed for clients.
#[derive(Clone, Debug)]
pub struct ChangeWatcher {
    repository: Arc<dyn KeyRepository>,
    knowledge: Arc<Knowledge>,
    feed: Option<FeedHandle>,
    places: Arc<Places>,
}

/// Number of streams per caller.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<String, usize>>);

/// A stream that counts until this is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    caller: String,
}

impl Places {
    fn take(self: &Arc<Self>, caller: String) -> Option<Place> {
        let mut taken = self.lock();
        let all: usize = taken.values().sum();
        let of_caller = taken.get(&caller).copied().unwrap_or(0);
        if all >= MAX_WATCHERS || of_caller >= MAX_WATCHERS_OF_ONE {
            return None;
        }
        taken.insert(caller.clone(), of_caller + 1);
        Some(Place { places: Arc::clone(self), caller })
    }

    // Counts are whole whatever panicked.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.caller);
            }
        }
    }
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
    _place: Place,
}

impl ChangeWatcher {
    /// Tells of the changes of `repository`, as `feed` hears of them.
    pub fn new(
        repository: Arc<dyn KeyRepository>,
        knowledge: Arc<Knowledge>,
        feed: Option<FeedHandle>,
    ) -> Self {
        Self { repository, knowledge, feed, places: Arc::default() }
    }

    /// What is new after `position`, as it comes, for `caller`; from now on without one.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] without a feed, [`ErrorKind::Overloaded`] with too many watchers. The stream ends with
    /// [`ErrorKind::PositionLost`] if events may be missing, and with [`ErrorKind::Unavailable`] when the server ends.
    pub fn watch(
        &self,
        position: Option<FeedPosition>,
        caller: &Caller,
    ) -> Result<BoxStream<'static, Result<News>>> {
        let feed = self.feed.as_ref().ok_or_else(|| RepositoryError::not_offered("a change feed"))?;
        let Actor(name) = caller.actor();
        let too_many =
            || RepositoryError::new(ErrorKind::Overloaded, "too many concurrent WatchChanges streams");
        let place = self.places.take(name).ok_or_else(too_many)?;
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
            _place: place,
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
