//! Follows the backend's change feed, so that changes of other replicas take effect in this one.

mod handle;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{broadcast, mpsc, watch};

use self::handle::Request;
pub(crate) use self::handle::{FeedHandle, FeedProgress, FeedUpdate};
use super::protocol::Rewound;
use super::{Breaker, KeyCache, Knowledge, RedisCache, Tier};
use crate::domain::{Clock as _, SystemClock};
use crate::repository::{
    Backend, ChangeFeed, Changes, ErrorKind, FeedPosition, KeyRepository, Listed, RecentChanges,
    RepositoryError, Result, within,
};
use crate::telemetry::{LogLimit, error_chain, seconds};

/// Maximum number of events per poll.
const BATCH: usize = 1_000;
/// Maximum number of queued requests for polls. Further callers wait.
const REQUESTS: usize = 64;
/// Maximum number of updates that a receiver can fall behind.
const UPDATES: usize = 64;

/// Options of the feed follower.
#[derive(Clone, Copy, Debug)]
pub struct FeedOptions {
    /// Time between a poll and the next one, unless a wake-up comes earlier.
    pub poll_interval: Duration,
    /// Maximum time of a poll.
    pub deadline: Duration,
}

/// Polls the feed, raises fences, and evicts the entries behind them. Only the events decide. Wake-ups merely
/// reduce the delay.
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
    progress: watch::Sender<FeedProgress>,
    updates: broadcast::Sender<FeedUpdate>,
    propagation: Histogram,
    /// Whether the end of the feed was read.
    has_begun: bool,
    is_failing: bool,
}

/// The caches that a restart clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClearScope {
    /// All caches, including Redis: this replica detected that the backend was rewound.
    All,
    /// Only caches in this process. Another replica detected the rewind, and Redis only has entries of the
    /// new epoch.
    ThisProcess,
}

impl FeedFollower {
    /// Reads the newest events of `backend` (rule 6), and prepares to follow its feed. Returns `None` if the
    /// backend has no feed. `redis` is the cache among `caches` whose entries have an epoch.
    ///
    /// A feed that can't be read now is read by [`run`](Self::run) as soon as possible. Nothing is served
    /// until then.
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
                tracing::warn!(error = %error_chain(&error), "the change feed can't be read yet; no key is looked up until it is");
                FeedPosition::beginning()
            }
        };
        let propagation = seconds();
        let (request_sender, requests) = mpsc::channel(REQUESTS);
        let (progress, progress_receiver) = watch::channel(FeedProgress { position, as_of: None });
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
            progress,
            updates: updates.clone(),
            propagation: propagation.clone(),
            has_begun,
            is_failing: !has_begun,
        };
        // Wait for the running poll and for the requested one: each has the full deadline.
        let poll_timeout = options.deadline * 2;
        Some((
            follower,
            FeedHandle {
                requests: request_sender,
                poll_timeout,
                propagation,
                progress: progress_receiver,
                updates,
            },
        ))
    }

    /// Reads the newest events of `feed`, one for each available fence.
    async fn read_recent(feed: &dyn ChangeFeed, deadline: Duration) -> Result<RecentChanges> {
        let limit = Knowledge::fences_per_partition(feed.partitions());
        within(deadline, feed.recent_changes(limit)).await
    }

    /// Follows the feed until the future is dropped.
    pub async fn run(mut self) {
        let mut wake_ups = self.wake_ups();
        let mut epochs = tokio::time::interval(self.options.poll_interval);
        epochs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let redis = self.redis.clone();
        let (restart, mut restarts) = mpsc::channel(1);
        // Runs concurrently with the polls, so that a hanging Redis does not delay them.
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
                self.restart(ClearScope::ThisProcess).await;
            }
            loop {
                let outcome = self.poll().await;
                if let Err(error) = &outcome {
                    self.breaker.poll_failed(error);
                }
                self.log(&outcome);
                for answer in waiting.drain(..) {
                    // The requesting call may have been cancelled.
                    let _ = answer.send(outcome.clone());
                }
                tokio::select! {
                    () = tokio::time::sleep(self.options.poll_interval) => {}
                    Some(()) = wake_ups.next() => {}
                    Some(()) = restarts.recv() => {
                        tracing::warn!(
                            "another replica detected that the backend was rewound; the caches in this process are emptied"
                        );
                        self.restart(ClearScope::ThisProcess).await;
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

    /// Reads events until the end of the feed.
    async fn poll(&mut self) -> Result<()> {
        self.identify().await;
        let mut has_restarted = false;
        loop {
            if self.knowledge.epoch() == 0 {
                // A load or a change of this replica contradicts the events of the feed.
                self.restart_rewound().await;
            }
            let sent = self.knowledge.begin_poll();
            let FeedProgress { position, as_of: known } = self.progress.borrow().clone();
            let asked = self.source.changes(Some(&position), BATCH);
            let changes = match within(self.options.deadline, asked).await {
                Err(error) if error.kind() == ErrorKind::PositionLost && !has_restarted => {
                    has_restarted = true;
                    self.restart_rewound().await;
                    continue;
                }
                changes => changes?,
            };
            let is_all = !changes.is_full(BATCH);
            let mut followed = self.apply(&changes).await;
            if followed.is_ok() {
                self.knowledge.advance(&changes.position);
                if is_all {
                    followed = self.knowledge.confirm(&sent, &changes.unanswered);
                }
            }
            if followed.is_err() {
                if has_restarted {
                    let problem = "the backend was rewound again while the change feed was read";
                    return Err(RepositoryError::new(ErrorKind::Unavailable, problem));
                }
                has_restarted = true;
                self.restart_rewound().await;
                continue;
            }
            let is_known = is_all && changes.unanswered.is_empty();
            let as_of = if is_known { Some(sent.at) } else { known };
            let changes = Arc::new(changes);
            let has_changes = !changes.events.is_empty() || !changes.unreadable.is_empty();
            let update = has_changes.then(|| FeedUpdate::Changes(Arc::clone(&changes)));
            self.publish(update, FeedProgress { position: changes.position.clone(), as_of });
            if is_all {
                self.breaker.poll_answered(&changes.unanswered);
                return match changes.unanswered.first() {
                    None => Ok(()),
                    Some(partition) => Err(RepositoryError::new(
                        ErrorKind::Unavailable,
                        format!(
                            "{} partitions of the change feed did not answer, partition {partition} first",
                            changes.unanswered.len()
                        ),
                    )),
                };
            }
        }
    }

    /// Applies changes in the order of their revisions, and evicts the entries behind the raised fences.
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

    /// Sets the identity of the backend in the Redis cache. If it can't be read, the cache stays unused until the
    /// next poll.
    async fn identify(&self) {
        let Some(redis) = self.redis.as_ref().filter(|redis| !redis.is_identified()) else { return };
        match within(self.options.deadline, self.keys.identity()).await {
            Ok(identity) => redis.identify(identity),
            Err(error) => {
                static LIMIT: LogLimit = LogLimit::new();
                if let Some(left_out) = LIMIT.admit() {
                    let error = error_chain(&error);
                    tracing::warn!(%error, left_out, "can't read the backend's identity; the Redis cache is not used");
                }
            }
        }
    }

    /// Restarts after the backend was rewound, or events were pruned before they were read.
    async fn restart_rewound(&mut self) {
        tracing::warn!(
            "the backend was rewound, or events were pruned before they were read; all caches are emptied"
        );
        self.restart(ClearScope::All).await;
    }

    /// Restarts in a new epoch (rule 7). Retries until the end of the feed was read.
    async fn restart(&mut self, scope: ClearScope) {
        self.knowledge.end_epoch();
        // Positions of the previous epoch must not count for readiness.
        self.progress.send_modify(|progress| progress.as_of = None);
        for cache in &self.caches {
            if scope == ClearScope::All || cache.tier() == Tier::Local {
                cache.clear().await;
            }
        }
        loop {
            match Self::read_recent(self.source.as_ref(), self.options.deadline).await {
                Ok(recent) => {
                    self.knowledge.start(&recent);
                    let progress = FeedProgress { position: recent.position, as_of: None };
                    self.publish(Some(FeedUpdate::Restarted), progress);
                    return;
                }
                Err(error) => {
                    self.log(&Err(error));
                    tokio::time::sleep(self.options.poll_interval).await;
                }
            }
        }
    }

    /// Publishes an update and the progress after it at once, so that each [subscriber](FeedHandle::subscribe)
    /// either begins after the update or receives it.
    fn publish(&self, update: Option<FeedUpdate>, after: FeedProgress) {
        self.progress.send_modify(|progress| {
            if let Some(update) = update {
                // Sending fails only if there are no receivers.
                let _ = self.updates.send(update);
            }
            *progress = after;
        });
    }

    fn local_caches(&self) -> impl Iterator<Item = &Arc<dyn KeyCache>> {
        // Entries of shared caches are checked when they are read.
        self.caches.iter().filter(|cache| cache.tier() == Tier::Local)
    }

    fn wake_ups(&self) -> BoxStream<'static, ()> {
        let of_backend = self.source.wake_ups();
        let of_cache = self.redis.as_ref().map(|redis| redis.wake_ups());
        let all: Vec<_> = of_backend.into_iter().chain(of_cache).chain([stream::pending().boxed()]).collect();
        stream::select_all(all).boxed()
    }

    fn log(&mut self, outcome: &Result<()>) {
        match outcome {
            Ok(()) if self.is_failing => tracing::info!("the change feed is followed again"),
            Err(error) if !self.is_failing => {
                tracing::warn!(
                    error = %error_chain(error),
                    "the change feed can't be read; cached keys are served until their staleness reaches the maximum"
                );
            }
            Ok(()) | Err(_) => {}
        }
        self.is_failing = outcome.is_err();
    }
}
