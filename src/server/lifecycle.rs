//! What all workers have to do: serve, drain, or end.

use tokio::sync::{mpsc, watch};

/// A phase of the server. Each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serve,
    /// Accept nothing new, and let connections end.
    Drain,
    /// End at once.
    Cut,
}

/// Completes when the server is in `phase` or a later one.
pub(super) fn reaches(current: &watch::Receiver<Phase>, phase: Phase) -> impl Future<Output = ()> + use<> {
    let mut current = current.clone();
    async move {
        // An error means that the server is gone, which is a reason to end as well.
        let _ = current.wait_for(|&current| current >= phase).await;
    }
}

/// A worker's view of the phase. Dropped at the end of its thread, also by a panic, it reports an end that nobody asked for.
#[derive(Debug)]
pub(super) struct WorkerLifecycle {
    pub(super) number: usize,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) ended: mpsc::Sender<usize>,
}

impl Drop for WorkerLifecycle {
    fn drop(&mut self) {
        if *self.phase.borrow() == Phase::Serve {
            // Without a receiver, the server is gone already.
            let _ = self.ended.try_send(self.number);
        }
    }
}
