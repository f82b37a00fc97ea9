//! Follows the store's change feed, so that this replica knows what others changed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::protocol::Rewound;
use super::{Breaker, KeyCache, Knowledge, RedisCache, Tier};
use crate::domain::{Clock as _, KeyEvent, Moment, SystemClock};
use crate::repository::{
    Backend, ChangeFeed, Changes, ErrorKind, FeedPosition, KeyRepository, Listed, RecentChanges,
    RepositoryError, Result, within,
};
use crate::telemetry::{error_chain, seconds};

/// How many events one poll reads.
const BATCH: usize = 1_000;
/// How many polls can be asked for at one time; more wait.
const REQUESTS: usize = 64;
/// Maximum number of updates that a receiver can fall behind.
const UPDATES: usize = 64;

/// How the feed is followed.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// How long after a poll the next one is sent, unless something wakes it.
    pub poll_interval: Duration,
    /// How long a poll may take.
    pub deadline: Duration,
}

/// Polls the feed, raises fences, takes out of the caches what no longer fits. The log decides; wake-ups only make it
/// quicker.
#[derive(Debug)]
pub struct FeedFollower {
    keys: Arc<dyn KeyRepository>,
    source: Arc<dyn ChangeFeed>,
    knowledge: Arc<Knowledge>,
    caches: Vec<Arc<dyn KeyCache>>,
    redis: Option<Arc<RedisCache>>,
    breaker: Arc<Breaker>,
    options: FeedOptions,
    requests: mpsc::Receiver<Request>,
    seen: watch::Sender<Seen>,
    updates: broadcast::Sender<FeedUpdate>,
    propagation: Histogram,
    /// Whether the end of the feed was read once.
    has_begun: bool,
    is_failing: bool,
}

/// Asks the follower, and is told by it.
#[derive(Clone, Debug)]
pub struct FeedHandle {
    requests: mpsc::Sender<Request>,
    /// How long a poll may be waited for.
    patience: Duration,
    propagation: Histogram,
    seen: watch::Receiver<Seen>,
    updates: broadcast::Sender<FeedUpdate>,
}

/// What the follower has read. Sent before [`Seen`] changes.
#[derive(Clone, Debug)]
pub enum FeedUpdate {
    /// Events, and the position behind them.
    Changes(Arc<(Vec<KeyEvent>, FeedPosition)>),
    /// The follower began anew: events may be missing, or belong to another history.
    Restarted,
}

/// How far the feed was followed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// All events before it were applied.
    pub position: FeedPosition,
    /// There were none after it when this poll was sent; `None`: that was not found out yet.
    pub as_of: Option<Moment>,
}

/// Asks for a poll that is sent from now on, and how it ended.
type Request = oneshot::Sender<Result<()>>;

/// Which caches a new beginning empties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empties {
    /// Those in Redis too: this replica found that history is another one.
    All,
    /// Another replica found it, and what is in Redis now is of the new one.
    ThisProcess,
}

impl FeedHandle {
    /// Completes a poll that is sent from now on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn poll(&self) -> Result<()> {
        let gone =
            || RepositoryError::new(ErrorKind::Unavailable, "the change feed is not followed any more");
        let (answer, answered) = oneshot::channel();
        within(self.patience, async {
            self.requests.send(answer).await.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        })
        .await
    }

    /// How long changes took to get here, by the clocks of both ends.
    #[must_use]
    pub fn propagation(&self) -> Histogram {
        self.propagation.clone()
    }

    /// Receives what the follower reads from now on. A receiver that falls behind by more than 64 updates loses the oldest.
    #[must_use]
    pub fn updates(&self) -> broadcast::Receiver<FeedUpdate> {
        self.updates.subscribe()
    }

    /// How far the feed was followed, and when that changes.
    #[must_use]
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
}

impl FeedFollower {
    /// Reads the newest events of `backend` (rule 7), and prepares to follow them. Returns `None` without a feed. `redis` is the cache of
    /// `caches` whose entries have an epoch.
    ///
    /// A feed that can't be read now is read as soon as it can; until then nothing is served.
    pub async fn start(
        backend: &Backend,
        knowledge: Arc<Knowledge>,
        caches: Vec<Arc<dyn KeyCache>>,
        redis: Option<Arc<RedisCache>>,
        breaker: Arc<Breaker>,
        options: FeedOptions,
    ) -> Option<(Self, FeedHandle)> {
        let source = Arc::clone(backend.feed.as_ref()?);
        let recent = Self::read_recent(source.as_ref(), options.deadline).await;
        let has_begun = recent.is_ok();
        let position = match recent {
            Ok(recent) => {
                knowledge.start(&recent);
                recent.position
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the store's change feed can't be read yet");
                FeedPosition::beginning()
            }
        };
        let propagation = seconds();
        let (asking, requests) = mpsc::channel(REQUESTS);
        let (seen, seeing) = watch::channel(Seen { position, as_of: None });
        let updates = broadcast::Sender::new(UPDATES);
        let follower = Self {
            keys: Arc::clone(&backend.keys),
            source,
            knowledge,
            caches,
            redis,
            breaker,
            options,
            requests,
            seen,
            updates: updates.clone(),
            propagation: propagation.clone(),
            has_begun,
            is_failing: !has_begun,
        };
        // Wait for the running poll and for the requested one: each has the full deadline.
        let patience = options.deadline * 2;
        Some((follower, FeedHandle { requests: asking, patience, propagation, seen: seeing, updates }))
    }

    /// Reads the newest events of `feed`, as many as there is room for fences.
    async fn read_recent(feed: &dyn ChangeFeed, deadline: Duration) -> Result<RecentChanges> {
        let limit = Knowledge::fences_of_a_part(feed.partitions());
        within(deadline, feed.recent_changes(limit)).await
    }

    /// Follows for ever.
    pub async fn run(mut self) {
        let mut wakes = self.wakes();
        let mut epochs = tokio::time::interval(self.options.poll_interval);
        epochs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let redis = self.redis.clone();
        let (restart, mut restarts) = mpsc::channel(1);
        // Beside the polls: a Redis that hangs holds up none of them.
        let follow_epochs = async move {
            loop {
                epochs.tick().await;
                if let Some(redis) = &redis
                    && redis.follow_epoch(false).await
                {
                    let _ = restart.send(()).await;
                }
            }
        };
        let follow = async move {
            let mut waiting: Vec<Request> = Vec::new();
            if !self.has_begun {
                self.restart(Empties::ThisProcess).await;
            }
            loop {
                let outcome = self.poll().await;
                if let Err(error) = &outcome {
                    self.breaker.poll_failed(error);
                }
                self.log(&outcome);
                for answer in waiting.drain(..) {
                    // Who asked may have gone away.
                    let _ = answer.send(outcome.clone());
                }
                tokio::select! {
                    () = tokio::time::sleep(self.options.poll_interval) => {}
                    Some(()) = wakes.next() => {}
                    Some(()) = restarts.recv() => {
                        tracing::warn!(
                            "another replica found the store's history to be another one: caches in this process are emptied"
                        );
                        self.restart(Empties::ThisProcess).await;
                    }
                    Some(request) = self.requests.recv() => waiting.push(request),
                    () = self.knowledge.is_rewound() => {}
                }
                while let Ok(request) = self.requests.try_recv() {
                    waiting.push(request);
                }
            }
        };
        tokio::join!(follow_epochs, follow);
    }

    /// Reads on until there is nothing more.
    async fn poll(&mut self) -> Result<()> {
        self.identify().await?;
        let mut has_begun_anew = false;
        loop {
            if self.knowledge.history() == 0 {
                // A load, or a change of this replica, contradicts what the feed said.
                self.restart_rewound().await;
            }
            let sent = self.knowledge.poll_sent();
            let Seen { position, as_of: known } = self.seen.borrow().clone();
            let asked = self.source.changes(Some(&position), BATCH);
            let changes = match within(self.options.deadline, asked).await {
                Err(error) if error.kind() == ErrorKind::PositionLost && !has_begun_anew => {
                    has_begun_anew = true;
                    self.restart_rewound().await;
                    continue;
                }
                changes => changes?,
            };
            let is_all = changes.events.len() + changes.unreadable.len() < BATCH;
            let mut followed = self.apply(&changes).await;
            if followed.is_ok() {
                self.knowledge.advance(&changes.position);
                if is_all {
                    followed = self.knowledge.confirm(&sent, &changes.unanswered);
                }
            }
            if followed.is_err() {
                if has_begun_anew {
                    let problem = "the store's history changes faster than it can be followed";
                    return Err(RepositoryError::new(ErrorKind::Unavailable, problem));
                }
                has_begun_anew = true;
                self.restart_rewound().await;
                continue;
            }
            let is_known = is_all && changes.unanswered.is_empty();
            let as_of = if is_known { Some(sent.at) } else { known };
            if !changes.events.is_empty() {
                let update = Arc::new((changes.events, changes.position.clone()));
                // Without a receiver nobody watches.
                let _ = self.updates.send(FeedUpdate::Changes(update));
            }
            self.seen.send_replace(Seen { position: changes.position, as_of });
            if is_all {
                self.breaker.poll_answered(&changes.unanswered);
                return match changes.unanswered.first() {
                    None => Ok(()),
                    Some(part) => Err(RepositoryError::new(
                        ErrorKind::Unavailable,
                        format!(
                            "{} parts of the change feed did not answer, part {part} first",
                            changes.unanswered.len()
                        ),
                    )),
                };
            }
        }
    }

    /// Applies changes in the order of their revisions, and takes out of the caches what no longer fits.
    async fn apply(&self, changes: &Changes) -> std::result::Result<(), Rewound> {
        let read = changes.events.iter().map(|event| (event.revision, Listed::Read(event)));
        let unreadable = changes.unreadable.iter().map(|event| (event.revision, Listed::Unreadable(event)));
        let mut items: Vec<_> = read.chain(unreadable).collect();
        items.sort_by_key(|(revision, _)| *revision);
        for (_, item) in items {
            match item {
                Listed::Read(event) => {
                    self.knowledge.apply(event)?;
                    self.propagation.observe(SystemClock.now().since(event.at).as_secs_f64());
                    for cache in self.local_caches() {
                        cache.remove(&event.hash).await;
                    }
                }
                Listed::Unreadable(event) => {
                    self.knowledge.apply_unreadable(event)?;
                    // Any key may have changed.
                    for cache in self.local_caches() {
                        cache.clear().await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the Redis cache whose entries it keeps.
    async fn identify(&self) -> Result<()> {
        let Some(redis) = self.redis.as_ref().filter(|redis| !redis.is_identified()) else { return Ok(()) };
        redis.identify(within(self.options.deadline, self.keys.identity()).await?);
        Ok(())
    }

    /// Begins anew in another history.
    async fn restart_rewound(&mut self) {
        tracing::warn!(
            "the store's history is not the one that was followed, or events were pruned before they were read: all caches \
             are emptied"
        );
        self.restart(Empties::All).await;
    }

    /// Rule 8: begins anew, as often as it takes.
    async fn restart(&mut self, empties: Empties) {
        self.knowledge.end_history();
        // Nothing that was read before counts for readiness.
        self.seen.send_modify(|seen| seen.as_of = None);
        for cache in &self.caches {
            if empties == Empties::All || cache.tier() == Tier::Local {
                cache.clear().await;
            }
        }
        loop {
            match Self::read_recent(self.source.as_ref(), self.options.deadline).await {
                Ok(recent) => {
                    self.knowledge.start(&recent);
                    let _ = self.updates.send(FeedUpdate::Restarted);
                    self.seen.send_replace(Seen { position: recent.position, as_of: None });
                    return;
                }
                Err(error) => {
                    self.log(&Err(error));
                    tokio::time::sleep(self.options.poll_interval).await;
                }
            }
        }
    }

    fn local_caches(&self) -> impl Iterator<Item = &Arc<dyn KeyCache>> {
        // What others share is judged whenever it is read.
        self.caches.iter().filter(|cache| cache.tier() == Tier::Local)
    }

    fn wakes(&self) -> BoxStream<'static, ()> {
        let of_store = self.source.wake_ups();
        let of_cache = self.redis.as_ref().map(|redis| redis.wakes());
        let all: Vec<_> = of_store.into_iter().chain(of_cache).chain([stream::pending().boxed()]).collect();
        stream::select_all(all).boxed()
    }

    fn log(&mut self, outcome: &Result<()>) {
        match outcome {
            Ok(()) if self.is_failing => tracing::info!("the store's change feed is followed again"),
            Err(error) if !self.is_failing => {
                tracing::warn!(
                    error = %error_chain(error),
                    "the store's change feed can't be read: cached keys are served until they are too old"
                );
            }
            Ok(()) | Err(_) => {}
        }
        self.is_failing = outcome.is_err();
    }
}
