//! Drives HTTP/2 on a connection, from its first byte to its graceful shutdown.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tonic::service::Routes;
use tower::Layer as _;

use super::activity::ConnectionActivity;
use super::io::{Accepted, Connection, WorkerSlot};
use super::service::ConnectionService;
use crate::grpc::Peer;
use crate::server::ServerOptions;
use crate::server::call::{CallLayer, CallService};
use crate::server::lifecycle::{Phase, reaches};
use crate::server::tls::Tls;
use crate::telemetry::{ConnectionClosure, ConnectionMetrics, ConnectionRefusal, LogLimit};

/// A peer that has vanished without closing the connection is detected after the interval plus the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the GOAWAY exchange of a connection that is closed to make room.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(1);
/// Maximum size of the header list of a call in bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Flow-control window per stream in bytes (RFC 9113, section 5.2).
const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window per connection in bytes. h2 closes a connection (`too_many_data_frames`) when the
/// unread frames are small. The differences of their sizes to 256 bytes may add up to half of this window. A
/// full stream window of import rows, of about 64 bytes each, adds 192 KiB, so ten imports fit. Unread frames
/// of one byte each then take about 2 MiB per connection.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Maximum number of streams that a peer may reset before they were accepted, and that the server may reset
/// because of the peer's errors. A connection that exceeds a limit is closed (CVE-2023-44487, CVE-2025-8671).
const MAX_RESET_STREAMS: usize = 20;
const MAX_FAULTY_STREAMS: usize = 1024;

/// Serves the connections of one listen address.
#[derive(Clone)]
pub(in crate::server) struct ConnectionDriver {
    calls: CallService<Routes>,
    options: ServerOptions,
    failed_handshakes: Counter,
    connections: ConnectionMetrics,
    closures: Arc<LogLimit>,
    tls: Option<watch::Receiver<Arc<Tls>>>,
    phase: watch::Receiver<Phase>,
}

impl ConnectionDriver {
    pub(in crate::server) fn new(
        routes: Routes,
        layer: &CallLayer,
        options: ServerOptions,
        connections: &ConnectionMetrics,
        tls: Option<watch::Receiver<Arc<Tls>>>,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            calls: layer.layer(routes),
            options,
            failed_handshakes: connections.refused(ConnectionRefusal::Handshake),
            connections: connections.clone(),
            closures: Arc::default(),
            tls,
            phase,
        }
    }

    /// Serves a connection until it ends. A graceful shutdown begins when the server drains, when the
    /// connection has reached its maximum age, when its client's certificate expires, when it is idle, or
    /// when it has to make room. Calls in flight are completed first if their client reads the responses.
    pub(in crate::server) async fn run(self, handed_over: (Accepted, WorkerSlot), jitter: f64) {
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow().config));
        let failures = self.failed_handshakes.clone();
        let state = handed_over.1.state();
        let adopted = tokio::select! {
            adopted = Connection::adopt(handed_over, tls, self.options.handshake_timeout, failures) => adopted,
            closure = state.closed() => {
                self.connections.closed(closure).inc();
                return;
            }
        };
        let connection = match adopted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "a connection did not come about");
                return;
            }
        };
        let (peer, activity) = (connection.peer(), ConnectionActivity::new(state));
        let (ends, is_ending) = watch::channel(false);
        let calls = ConnectionService::new(
            self.calls.clone(),
            peer,
            activity.clone(),
            is_ending,
            self.options.drain_timeout,
        );
        self.serve(connection, calls, &activity, ends, jitter).await;
    }

    async fn serve(
        &self,
        connection: Connection,
        calls: ConnectionService,
        activity: &ConnectionActivity,
        ends: watch::Sender<bool>,
        jitter: f64,
    ) {
        let (peer, state) = (connection.peer(), activity.state());
        let lifetime = peer.remaining_lifetime();
        let mut patience = None;
        let serving = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.options.max_streams_per_connection)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(MAX_FAULTY_STREAMS)
            .keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .serve_connection(TokioIo::new(connection), calls);
        let mut serving = pin!(serving);
        {
            let drains = reaches(&self.phase, Phase::Drain);
            let is_old = after(self.options.max_connection_age.map(|age| age.mul_f64(jitter)));
            let has_expired = after(lifetime);
            let is_idle = idle(activity, self.options.idle_timeout);
            tokio::select! {
                outcome = serving.as_mut() => return ended(outcome),
                () = drains => {}
                () = is_old => {}
                () = has_expired => tracing::debug!("a connection ends: its client certificate has expired"),
                () = is_idle => {}
                closure = state.closed() => {
                    self.report(closure, &peer);
                    if closure == ConnectionClosure::UnreadAnswers {
                        return;
                    }
                    patience = Some(GIVES_WAY_WITHIN);
                }
            }
        }
        serving.as_mut().graceful_shutdown();
        ends.send_replace(true);
        tokio::select! {
            outcome = serving => ended(outcome),
            () = after(patience) => {}
            closure = state.closed() => self.report(closure, &peer),
            () = activity.stalls(self.options.drain_timeout) => {
                tracing::debug!("a connection was cut: its client does not read its answers");
            }
        }
    }
}

impl ConnectionDriver {
    /// Counts a connection that is closed to make room for others. Logs the connection unless it was only
    /// idle.
    fn report(&self, closure: ConnectionClosure, peer: &Peer) {
        self.connections.closed(closure).inc();
        let problem = match closure {
            ConnectionClosure::Idle => return,
            ConnectionClosure::UnreadAnswers => "does not read its answers",
            ConnectionClosure::HeldStreams => "holds streams that others need",
        };
        if let Some(left_out) = self.closures.admit() {
            let peer = peer.address().map(tracing::field::display);
            tracing::warn!(peer, left_out, "closed a connection: its client {problem}");
        }
    }
}

/// Logs an error at debug level only, because clients break connections all the time.
fn ended(outcome: Result<(), hyper::Error>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

async fn idle(activity: &ConnectionActivity, timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => activity.is_idle(timeout).await,
        None => std::future::pending().await,
    }
}
