//! The phases of the server, which all workers follow.

use tokio::sync::{mpsc, watch};

/// A phase of the server. Phases only advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serve,
    /// The server accepts no new connections, and waits until the existing ones end.
    Drain,
    /// The server cuts all connections at once.
    Cut,
}

/// Completes when the server has reached `phase` or a later one.
pub(super) fn reaches(current: &watch::Receiver<Phase>, phase: Phase) -> impl Future<Output = ()> + use<> {
    let mut current = current.clone();
    async move {
        // An error means that the server was dropped, which ends the wait as well.
        let _ = current.wait_for(|&current| current >= phase).await;
    }
}

/// A worker's view of the phase. It is dropped when the worker's thread ends, also by a panic, and then
/// reports an end during [`Phase::Serve`] as unexpected.
#[derive(Debug)]
pub(super) struct WorkerLifecycle {
    pub(super) number: usize,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) ended: mpsc::Sender<usize>,
}

impl Drop for WorkerLifecycle {
    fn drop(&mut self) {
        if *self.phase.borrow() == Phase::Serve {
            // Without a receiver, the server has already stopped.
            let _ = self.ended.try_send(self.number);
        }
    }
}
