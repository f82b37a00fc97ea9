//! Taking connections and spreading them evenly over the workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::listener::Listener;
use super::worker::{Worker, WorkerHandle};

/// How long to wait after a failed accept. Out of file descriptors, it would fail again at once, and spin.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts the connections of one listener.
pub(super) struct Acceptor {
    listener: Listener,
    workers: Vec<WorkerHandle>,
    places: Arc<Semaphore>,
    /// Whether the last connection was turned away, so that only the first of many is logged.
    is_full: AtomicBool,
}

impl Acceptor {
    /// Starts accepting on all listeners; together they take `max_connections` at one time.
    pub(super) fn spawn_all(
        listeners: Vec<Listener>,
        workers: &[Worker],
        max_connections: usize,
    ) -> JoinSet<()> {
        let places = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let workers = workers.iter().map(Worker::handle).collect();
            let acceptor =
                Self { listener, workers, places: Arc::clone(&places), is_full: AtomicBool::new(false) };
            tasks.spawn(acceptor.run());
        }
        tasks
    }

    async fn run(self) {
        loop {
            match self.accept().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    async fn accept(&self) -> std::io::Result<()> {
        let accepted = self.listener.accept().await?;
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            if !self.is_full.swap(true, Ordering::Relaxed) {
                tracing::warn!("connections are closed at once: server.max_connections is reached");
            }
            return Ok(());
        };
        self.is_full.store(false, Ordering::Relaxed);
        if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.connections()) {
            worker.hand_over(accepted, permit);
        }
        Ok(())
    }
}
