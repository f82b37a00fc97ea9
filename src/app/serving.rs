//! The gRPC server as it serves and drains.

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::server::{ServeError, Server};

/// A server that serves. Dropping it cuts all connections.
pub(super) struct Serving {
    /// The one task of the server. It aborts when this is dropped.
    task: JoinSet<Result<(), ServeError>>,
    /// Dropped to begin the drain.
    drain: oneshot::Sender<()>,
}

impl Serving {
    /// Begins to accept connections.
    pub(super) fn start(server: Server) -> Self {
        let (drain, draining) = oneshot::channel::<()>();
        let mut task = JoinSet::new();
        task.spawn(server.serve(async {
            // Nothing is ever sent: dropping the sender begins the drain.
            let _ = draining.await;
        }));
        Self { task, drain }
    }

    /// Completes when the server ends by itself. Cancel safe.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match self.ended().await {
            Some(Ok(())) => anyhow!("the server ended unexpectedly"),
            Some(Err(error)) => error,
            None => std::future::pending().await,
        }
    }

    /// Stops accepting connections, and completes the calls in flight within the drain timeout. Does nothing
    /// if the server has failed before.
    ///
    /// # Errors
    /// Returns an error if the server failed since [`failed`](Self::failed) was last polled.
    pub(super) async fn drain(mut self) -> Result<()> {
        let (drain, _) = oneshot::channel();
        drop(std::mem::replace(&mut self.drain, drain));
        self.ended().await.unwrap_or(Ok(()))
    }

    /// Waits for the end of the server. Returns `None` if it was returned before.
    async fn ended(&mut self) -> Option<Result<()>> {
        let ended = self.task.join_next().await?;
        Some(match ended {
            Ok(served) => served.context("the server failed"),
            Err(panicked) => Err(anyhow::Error::from(panicked).context("the server failed")),
        })
    }
}
