//! Serves calls: listeners, one single-threaded runtime per core, and graceful shutdown.
//!
//! An acceptor on the shared runtime accepts connections and hands each to the worker that has the fewest. A
//! call is answered on its worker's thread. Only the backend's work leaves it. Measured on two cores with an
//! empty handler, this costs 7.5 µs of CPU per call, against 13.5 µs on one multi-threaded runtime.

mod acceptor;
mod call;
mod connection;
mod health;
mod lifecycle;
mod listen_addr;
mod listener;
mod ops;
mod quota;
mod routes;
mod tls;
mod worker;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tonic_health::server::HealthReporter;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use call::BufferedBody;
pub(crate) use call::{CallLayer, CallLimits};
pub(crate) use listen_addr::InvalidListenAddr;
pub use listen_addr::ListenAddr;
pub(crate) use listener::{BoundAddress, Listener};
pub(crate) use ops::{BoundOpsAddress, Fitness, OpsListener};
pub(crate) use routes::Role;
pub(crate) use routes::routes;
pub use tls::ClientAuth;
pub(crate) use tls::{Tls, TlsFiles};

use self::acceptor::Acceptor;
use self::connection::{ConnectionDriver, ConnectionLimiter, WrongProtocolLog};
use self::lifecycle::{Phase, WorkerLifecycle};
use self::worker::Worker;
use crate::domain::{Clock, Stopwatch};
use crate::grpc::{Authenticator, KeyStoreHandler, ValidatorAccess, ValidatorHandler};
use crate::telemetry::ConnectionMetrics;

/// The services to serve, and their access rules.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    /// Handler of `Validator`.
    pub validator: ValidatorHandler,
    /// Handler of `KeyStore`.
    pub key_store: KeyStoreHandler,
    /// Authenticates callers of `KeyStore`.
    pub key_store_auth: Authenticator,
    /// Authenticates callers of `Validator`.
    pub validator_auth: Authenticator,
    /// Access rule of `Validator`.
    pub validator_access: ValidatorAccess,
    /// Source of the responses of `grpc.health.v1`.
    pub health: HealthReporter,
    /// Whether `grpc.reflection` is served.
    pub has_reflection: bool,
}

/// Limits and timeouts of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerOptions {
    /// Number of single-threaded runtimes. 0 means one per core.
    pub workers: usize,
    /// Maximum number of concurrent connections.
    pub max_connections: usize,
    /// Maximum number of concurrent connections from one address.
    pub max_connections_per_peer: usize,
    /// Maximum number of open streams on all connections.
    pub max_streams: usize,
    /// Maximum number of concurrent calls on one connection.
    pub max_streams_per_connection: u32,
    /// Maximum time until a new connection begins with HTTP/2. A TLS handshake has the same time before that.
    pub handshake_timeout: Duration,
    /// Maximum connection age, jittered by ±10 %. `None` means no limit. A stream of such a connection ends
    /// at most [`drain_timeout`](Self::drain_timeout) later.
    pub max_connection_age: Option<Duration>,
    /// Maximum time that a connection may be without a call. `None` means no limit.
    pub idle_timeout: Option<Duration>,
    /// Maximum time until connections end after the shutdown began. A connection that ends for another reason
    /// waits as long for a client that does not read its responses.
    pub drain_timeout: Duration,
}

/// The clocks of a server.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    /// Time of day, by which client certificates expire.
    pub clock: Arc<dyn Clock>,
    /// Elapsed time, by which idle connections and stalled clients are detected.
    pub stopwatch: Arc<dyn Stopwatch>,
}

/// The reason why serving ended without a shutdown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// A worker could not be started.
    #[error("can't start a worker thread")]
    Start(#[source] io::Error),
    /// The descriptors that reflection serves are invalid.
    #[error("can't serve reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// A worker ended unexpectedly. The other workers can't take over its connections.
    #[error("worker {0} ended unexpectedly")]
    WorkerEnded(usize),
    /// An acceptor ended unexpectedly.
    #[error("the task that accepts connections ended unexpectedly")]
    AcceptorEnded,
    /// An acceptor panicked.
    #[error("the task that accepts connections failed")]
    AcceptorFailed(#[source] JoinError),
}

/// A server that is ready to serve.
#[derive(Debug)]
pub(crate) struct Server {
    /// The bound addresses.
    pub listeners: Vec<Listener>,
    /// The services, and their access rules.
    pub services: Services,
    /// Wraps every call.
    pub calls: CallLayer,
    /// Limits and timeouts.
    pub options: ServerOptions,
    /// The current TLS configuration, which applies to TCP connections that begin from then on. `None` means
    /// that connections are not encrypted.
    pub tls: Option<watch::Receiver<Arc<Tls>>>,
    /// Metrics of connections.
    pub connections: ConnectionMetrics,
    /// The clocks.
    pub clocks: Clocks,
}

impl Server {
    /// Serves until `shutdown` completes. Then the server accepts no more connections, sends GOAWAY to
    /// clients, and completes calls in flight. It closes connections that are still open after the drain
    /// timeout.
    ///
    /// # Errors
    /// Returns an error if a worker can't be started, or if a worker or an acceptor ends unexpectedly.
    pub(crate) async fn serve(mut self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let (phase, _) = watch::channel(Phase::Serve);
        // Each worker holds a sender until its thread ends. When all senders are dropped, the receiver
        // completes.
        let (ended, mut all_ended) = mpsc::channel::<usize>(1);
        let workers = self.start_workers(&phase, &ended)?;
        drop(ended);
        let limiter = ConnectionLimiter::new(
            self.options.max_connections,
            self.options.max_connections_per_peer,
            self.options.max_streams,
            Arc::clone(&self.clocks.stopwatch),
        );
        let listeners = std::mem::take(&mut self.listeners);
        let mut acceptors = Acceptor::spawn_all(listeners, &workers, &limiter, &self.connections);

        tokio::select! {
            () = shutdown => {}
            Some(worker) = all_ended.recv() => return Err(ServeError::WorkerEnded(worker)),
            error = acceptor_failure(&mut acceptors) => return Err(error),
        }

        acceptors.shutdown().await;
        drop(workers);
        phase.send_replace(Phase::Drain);
        let mut drained = Box::pin(async { while all_ended.recv().await.is_some() {} });
        let timeout = self.options.drain_timeout;
        if tokio::time::timeout(timeout, &mut drained).await.is_err() {
            tracing::warn!(?timeout, "closing the connections that are still open after the drain timeout");
            phase.send_replace(Phase::Cut);
            drained.await;
        }
        Ok(())
    }

    fn start_workers(
        &self,
        phase: &watch::Sender<Phase>,
        ended: &mpsc::Sender<usize>,
    ) -> Result<Vec<Worker>, ServeError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let wrong_protocols = Arc::<WrongProtocolLog>::default();
        let count = if self.options.workers == 0 { cores() } else { self.options.workers };
        (0..count)
            .map(|number| {
                let driver = |role| {
                    let routes = routes(&self.services, role).map_err(ServeError::Reflection)?;
                    Ok((role, ConnectionDriver::new(self, routes, phase.subscribe(), &wrong_protocols)))
                };
                let drivers = Role::ALL.into_iter().map(driver).collect::<Result<_, ServeError>>()?;
                let lifecycle = WorkerLifecycle { number, phase: phase.subscribe(), ended: ended.clone() };
                Worker::start(drivers, self.connections.of_worker(number), lifecycle)
                    .map_err(ServeError::Start)
            })
            .collect()
    }
}

/// Completes when an acceptor ends or panics, which is unexpected before they are shut down.
async fn acceptor_failure(acceptors: &mut JoinSet<()>) -> ServeError {
    match acceptors.join_next().await {
        Some(Err(panicked)) => ServeError::AcceptorFailed(panicked),
        Some(Ok(())) | None => ServeError::AcceptorEnded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::error_chain;

    #[tokio::test]
    async fn the_panic_of_an_acceptor_is_reported_as_the_cause() {
        let mut acceptors = JoinSet::new();
        acceptors.spawn(std::future::pending());
        acceptors.spawn(async { panic!("a fault of the test") });
        let error = error_chain(&acceptor_failure(&mut acceptors).await).to_string();
        assert!(error.starts_with("the task that accepts connections failed: "), "{error}");
        assert!(error.contains("a fault of the test"), "{error}");
        acceptors.spawn(async {});
        let error = acceptor_failure(&mut acceptors).await;
        assert!(matches!(error, ServeError::AcceptorEnded), "{error:?}");
    }
}
