//! The handle with which other tasks request polls and receive what the follower has read.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::domain::Moment;
use crate::repository::{Changes, ErrorKind, FeedPosition, RepositoryError, Result, within};

/// Requests polls and receives updates from the follower. Clones share the follower.
#[derive(Clone, Debug)]
pub struct FeedHandle {
    pub(super) requests: mpsc::Sender<Request>,
    /// Maximum time to wait for a requested poll.
    pub(super) poll_timeout: Duration,
    pub(super) propagation: Histogram,
    pub(super) progress: watch::Receiver<FeedProgress>,
    pub(super) updates: broadcast::Sender<FeedUpdate>,
}

/// An update from the follower.
#[derive(Clone, Debug)]
pub enum FeedUpdate {
    /// Events, among them those that can't be read, and the position after them.
    Changes(Arc<Changes>),
    /// The follower restarted. Events may have been missed, or belong to another epoch.
    Restarted,
}

/// The progress of the follower.
#[derive(Clone, Debug)]
pub struct FeedProgress {
    /// The position up to which all events were applied.
    pub position: FeedPosition,
    /// The moment at which the last poll was sent that found no events after the position. `None` if no poll
    /// has reached the end of the feed yet.
    pub as_of: Option<Moment>,
}

/// Requests a poll that is sent after the request, and receives its outcome.
pub(super) type Request = oneshot::Sender<Result<()>>;

impl FeedHandle {
    /// Requests a poll that is sent after this call, and waits until it has completed. Dropping this future
    /// does not cancel a poll that was requested.
    ///
    /// # Errors
    /// The errors of the backend, [`ErrorKind::Timeout`] after twice the deadline of a poll, or
    /// [`ErrorKind::Unavailable`] if the feed is not followed any more.
    pub async fn poll(&self) -> Result<()> {
        let gone =
            || RepositoryError::new(ErrorKind::Unavailable, "the server no longer reads the change feed");
        let (answer, answered) = oneshot::channel();
        within(self.poll_timeout, async {
            self.requests.send(answer).await.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        })
        .await
    }

    /// Returns the histogram of the delays in seconds from a change to its application here, by the clocks of
    /// both replicas.
    #[must_use]
    pub fn propagation(&self) -> Histogram {
        self.propagation.clone()
    }

    /// Returns a receiver of the follower's progress, and one of all updates after that progress. A receiver
    /// that falls behind by more than 64 updates loses the oldest.
    #[must_use]
    pub fn subscribe(&self) -> (watch::Receiver<FeedProgress>, broadcast::Receiver<FeedUpdate>) {
        let mut progress = self.progress.clone();
        // While the progress is borrowed, the follower can't publish an update: see `FeedFollower::publish`.
        let current = progress.borrow_and_update();
        let updates = self.updates.subscribe();
        drop(current);
        (progress, updates)
    }
}
