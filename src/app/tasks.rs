//! Background tasks of a server.

use std::collections::HashMap;
use std::fmt;

use anyhow::anyhow;
use tokio::task::{Id, JoinSet};

/// Background tasks, which run until the server shuts down. A task that ends earlier is an error.
#[derive(Default)]
pub(super) struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task. `name` completes the sentence "the task that … failed".
    pub(super) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.running.spawn(task).id(), name);
    }

    /// Completes when a task ends or panics, with an error that names it.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => anyhow!("the task that {} ended unexpectedly", self.name(id)),
            Some(Err(panicked)) => {
                let name = self.name(panicked.id());
                anyhow::Error::from(panicked).context(format!("the task that {name} failed"))
            }
            None => std::future::pending().await,
        }
    }

    /// Stops all tasks.
    pub(super) async fn stop(mut self) {
        self.running.shutdown().await;
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("is unknown")
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names.values()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_task_is_reported_by_its_name() {
        let mut tasks = Tasks::default();
        assert!(tasks.failed().now_or_never().is_none());
        tasks.spawn("waits", std::future::pending());
        tasks.spawn("ends", std::future::ready(()));
        assert_eq!(tasks.failed().await.to_string(), "the task that ends ended unexpectedly");
        tasks.spawn("panics", async { panic!("a fault") });
        assert_eq!(tasks.failed().await.to_string(), "the task that panics failed");
        tasks.stop().await;
    }
}
