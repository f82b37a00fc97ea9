//! Accepts connections and spreads them evenly over the workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::connection::{Client, ConnectionLimiter, LimitReached};
use super::listener::Listener;
use super::routes::Role;
use super::worker::{Worker, WorkerHandle};
use crate::telemetry::{ConnectionMetrics, ConnectionRejection, LogLimit};

/// Delay after a failed accept. Without it, the loop would spin while file descriptors are exhausted.
pub(super) const BACK_OFF: Duration = Duration::from_millis(50);

/// Accepts the connections of one listener.
pub(super) struct Acceptor {
    listener: Listener,
    workers: Vec<WorkerHandle>,
    limiter: Arc<ConnectionLimiter>,
    connections: ConnectionMetrics,
    rejections: LogLimit,
}

impl Acceptor {
    /// Starts accepting on all listeners, which share `limiter`.
    pub(super) fn spawn_all(
        listeners: Vec<Listener>,
        workers: &[Worker],
        limiter: &Arc<ConnectionLimiter>,
        connections: &ConnectionMetrics,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let workers = workers.iter().map(Worker::handle).collect();
            let acceptor = Self {
                listener,
                workers,
                limiter: Arc::clone(limiter),
                connections: connections.clone(),
                rejections: LogLimit::new(),
            };
            tasks.spawn(acceptor.run());
        }
        tasks
    }

    async fn run(self) {
        loop {
            match self.accept().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    async fn accept(&self) -> std::io::Result<()> {
        let accepted = self.listener.accept().await?;
        let address = accepted.address();
        let is_for_administrators = address.is_none() || self.listener.role() == Role::KeyStore;
        let client =
            if is_for_administrators { Client::Administrator(address) } else { Client::Public(address) };
        let permit = match self.limiter.take(client) {
            Ok(permit) => permit,
            Err(limit) => {
                let (rejection, setting) = match limit {
                    LimitReached::All => (ConnectionRejection::All, "server.max_connections"),
                    LimitReached::Peer => (ConnectionRejection::Peer, "server.max_connections_per_peer"),
                };
                self.connections.rejected(rejection).inc();
                if let Some(left_out) = self.rejections.admit() {
                    let peer = address.map(tracing::field::display);
                    tracing::warn!(peer, left_out, "rejected a connection: {setting} is reached");
                }
                return Ok(());
            }
        };
        if let Some(worker) = self.workers.iter().min_by_key(|worker| worker.connections()) {
            worker.hand_over(self.listener.role(), accepted, permit);
        }
        Ok(())
    }
}
