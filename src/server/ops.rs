//! Plain HTTP for operators: `/livez`, `/readyz`, `/startupz` and `/metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::acceptor::BACK_OFF;
use super::connection::{Client, ConnectionLimiter, ConnectionPermit};
use super::listener::bind_tcp;
use crate::domain::Stopwatch;
use crate::telemetry::Exposition;

/// Maximum number of concurrent connections, in total and per address. They are enough for probes and many
/// collectors, and few enough to be harmless.
const MAX_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS_PER_PEER: usize = 32;
/// Maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Maximum duration of a connection, from accepting it to the end of its only response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Readiness of the server. Each level includes the ones before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fitness {
    /// The process runs.
    #[default]
    Alive,
    /// The server was ready once: the backend was reached, and its change feed was read.
    Started,
    /// The server accepts calls.
    Ready,
}

/// The bound address of the endpoints for operators. It refuses connections until [`listen`](Self::listen).
#[derive(Debug)]
pub(crate) struct BoundOpsAddress(TcpSocket);

/// The listener of the endpoints for operators.
#[derive(Debug)]
pub(crate) struct OpsListener(TcpListener);

impl BoundOpsAddress {
    /// Binds `address`.
    ///
    /// # Errors
    /// Returns an error if the address is in use, may not be bound, or does not exist on this machine.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        bind_tcp(address).map(Self)
    }

    /// Listens on the address.
    ///
    /// # Errors
    /// Returns an error if another process listens on the address by now.
    pub(crate) fn listen(self) -> io::Result<OpsListener> {
        self.0.listen(BACKLOG).map(OpsListener)
    }
}

impl OpsListener {
    /// Returns the address, with the port that was assigned.
    ///
    /// # Errors
    /// Returns an error if the system can't return the address of the socket.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves forever, with one request per connection.
    pub(crate) async fn serve(
        self,
        fitness: watch::Receiver<Fitness>,
        metrics: Exposition,
        stopwatch: Arc<dyn Stopwatch>,
    ) -> Infallible {
        let router = router(fitness, metrics);
        let limiter = ConnectionLimiter::for_probes(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_PEER, stopwatch);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.0.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Ok(permit) = limiter.take(Client::Public(Some(peer.ip()))) {
                            connections.spawn(respond(stream, router.clone(), permit));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "could not accept a connection for metrics or probes");
                        tokio::time::sleep(BACK_OFF).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

fn router(fitness: watch::Receiver<Fitness>, metrics: Exposition) -> Router {
    let probe = |needed| {
        get(async move |State((fitness, _)): State<(watch::Receiver<Fitness>, Exposition)>| {
            let now = *fitness.borrow();
            if now >= needed {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        })
    };
    Router::new()
        .route("/livez", probe(Fitness::Alive))
        .route("/startupz", probe(Fitness::Started))
        .route("/readyz", probe(Fitness::Ready))
        .route("/metrics", get(expose))
        .with_state((fitness, metrics))
}

async fn respond(stream: TcpStream, router: Router, permit: ConnectionPermit) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service_fn(move |request| router.clone().oneshot(request)));
    let state = permit.state();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection for metrics or probes failed");
            }
        }
        () = tokio::time::sleep(TIMEOUT) => tracing::debug!("closed a connection for metrics or probes after its timeout"),
        _ = state.closed() => tracing::debug!("closed a slow connection for metrics or probes to make room for a new one"),
    }
}

async fn expose(State((_, metrics)): State<(watch::Receiver<Fitness>, Exposition)>) -> impl IntoResponse {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, Exposition::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
