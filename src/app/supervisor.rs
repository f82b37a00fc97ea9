//! Supervises background tasks.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

/// Background tasks, which run until the server shuts down. A task that ends earlier is an error. Dropping the
/// supervisor aborts all tasks.
#[derive(Default)]
pub(super) struct Supervisor {
    running: JoinSet<()>,
    tasks: HashMap<Id, Task>,
}

struct Task {
    /// A noun phrase, such as "feed follower".
    name: &'static str,
    handle: AbortHandle,
    /// Dropped to stop the task. `None` if it can only be aborted.
    stop: Option<oneshot::Sender<()>>,
}

/// The end of a task.
struct Ended {
    name: &'static str,
    outcome: Result<(), JoinError>,
}

impl Supervisor {
    /// Starts a task that is aborted when it has to stop. `name` is a noun phrase, for the log and for errors.
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.running.spawn(task);
        self.tasks.insert(handle.id(), Task { name, handle, stop: None });
    }

    /// Starts a task that has work to complete when it has to stop. `task` gets a future that completes then.
    pub(super) fn spawn_graceful<F>(&mut self, name: &'static str, task: impl FnOnce(Stop) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let handle = self.running.spawn(task(Stop(stopped)));
        self.tasks.insert(handle.id(), Task { name, handle, stop: Some(stop) });
    }

    /// Completes when a task ends or panics, with an error that names it. Cancel safe.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.next().await {
            Some(Ended { name, outcome: Ok(()) }) => anyhow!("background task \"{name}\" ended unexpectedly"),
            Some(Ended { name, outcome: Err(panicked) }) => {
                anyhow::Error::from(panicked).context(format!("background task \"{name}\" failed"))
            }
            None => std::future::pending().await,
        }
    }

    /// Aborts the tasks without a graceful stop, and waits until they have ended.
    pub(super) async fn abort(&mut self) {
        let is_aborted = |task: &Task| task.stop.is_none();
        for task in self.tasks.values().filter(|task| is_aborted(task)) {
            task.handle.abort();
        }
        while self.tasks.values().any(is_aborted) {
            let Some(ended) = self.next().await else { return };
            ended.log_panic();
        }
    }

    /// Stops the remaining tasks: lets them complete their work for at most `limit` together, aborts those
    /// that have not, and waits until all have ended.
    pub(super) async fn finish(mut self, limit: Duration) {
        for task in self.tasks.values_mut() {
            task.stop = None;
        }
        let completed = async {
            while let Some(ended) = self.next().await {
                ended.log_panic();
            }
        };
        if tokio::time::timeout(limit, completed).await.is_err() {
            for Task { name, .. } in self.tasks.values() {
                tracing::warn!(
                    task = name,
                    ?limit,
                    "a background task did not complete in time and is aborted"
                );
            }
            self.running.shutdown().await;
        }
    }

    /// Waits until a task ends. Returns `None` if no task is running. Cancel safe.
    async fn next(&mut self) -> Option<Ended> {
        let (id, outcome) = match self.running.join_next_with_id().await? {
            Ok((id, ())) => (id, Ok(())),
            Err(error) => (error.id(), Err(error)),
        };
        let name = self.tasks.remove(&id).map_or("unknown", |task| task.name);
        Some(Ended { name, outcome })
    }
}

impl Ended {
    /// Logs a panic during the shutdown. The other steps of the shutdown follow nevertheless.
    fn log_panic(self) {
        if let Err(error) = self.outcome
            && error.is_panic()
        {
            tracing::error!(task = self.name, %error, "a background task failed during the shutdown");
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.tasks.values().map(|task| task.name)).finish()
    }
}

/// Requests a task to complete its work.
pub(super) struct Stop(oneshot::Receiver<()>);

impl Stop {
    /// Completes when the task has to stop.
    pub(super) async fn requested(self) {
        // Nothing is ever sent: the supervisor drops the sender.
        let _ = self.0.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;

    use super::*;

    /// Events in the order in which they happened.
    #[derive(Clone, Default)]
    struct Events(Arc<Mutex<Vec<&'static str>>>);

    impl Events {
        fn note(&self, event: &'static str) {
            self.0.lock().unwrap().push(event);
        }

        fn seen(&self) -> Vec<&'static str> {
            self.0.lock().unwrap().clone()
        }
    }

    /// Notes when a future is dropped.
    struct OnDrop(Events, &'static str);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.note(self.1);
        }
    }

    async fn forever(guard: OnDrop) {
        std::future::pending::<()>().await;
        drop(guard);
    }

    #[tokio::test]
    async fn the_end_of_a_task_is_reported_by_its_name() {
        let mut tasks = Supervisor::default();
        assert!(tasks.failed().now_or_never().is_none());
        tasks.spawn("waiter", std::future::pending());
        tasks.spawn("finisher", std::future::ready(()));
        let error = tasks.failed().await.to_string();
        assert_eq!(error, "background task \"finisher\" ended unexpectedly");
        tasks.spawn_graceful("panicker", |_| async { panic!("a fault") });
        assert_eq!(tasks.failed().await.to_string(), "background task \"panicker\" failed");
        tasks.abort().await;
        tasks.finish(Duration::from_mins(1)).await;
    }

    #[tokio::test]
    async fn tasks_are_aborted_before_others_complete_their_work() {
        let (mut tasks, events) = (Supervisor::default(), Events::default());
        tasks.spawn("aborted", forever(OnDrop(events.clone(), "aborted")));
        let completing = events.clone();
        tasks.spawn_graceful("graceful", move |stop| async move {
            stop.requested().await;
            tokio::task::yield_now().await;
            completing.note("completed");
        });
        tasks.abort().await;
        assert_eq!(events.seen(), ["aborted"]);
        tasks.finish(Duration::from_mins(1)).await;
        assert_eq!(events.seen(), ["aborted", "completed"]);
    }

    #[tokio::test]
    async fn a_task_that_does_not_complete_is_aborted_and_has_ended() {
        let (mut tasks, events) = (Supervisor::default(), Events::default());
        let guard = OnDrop(events.clone(), "dropped");
        tasks.spawn_graceful("hanging", move |stop| async move {
            stop.requested().await;
            forever(guard).await;
        });
        tasks.abort().await;
        tasks.finish(Duration::from_millis(1)).await;
        assert_eq!(events.seen(), ["dropped"]);
    }
}
