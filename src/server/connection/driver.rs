//! The driver of a connection: runs HTTP/2 from the first byte to the graceful shutdown, and decides when the
//! connection ends.

use std::net::IpAddr;
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
use super::handshake::HandshakeError;
use super::io::{Accepted, Connection, WorkerSlot};
use super::service::ConnectionService;
use super::state::ConnectionState;
use super::wrong_protocols::WrongProtocolLog;
use crate::domain::Clock;
use crate::grpc::Peer;
use crate::server::call::CallService;
use crate::server::lifecycle::{Phase, reaches};
use crate::server::tls::Tls;
use crate::server::{Server, ServerOptions};
use crate::telemetry::{ConnectionClosure, ConnectionMetrics, ConnectionRejection, LogLimit, error_chain};

/// A peer that has vanished without closing the connection is detected after the interval plus the timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the GOAWAY exchange of a connection that is closed to make room.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);
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

/// Serves the connections of the listeners of one role, on one worker.
#[derive(Clone)]
pub(in crate::server) struct ConnectionDriver {
    calls: CallService<Routes>,
    options: ServerOptions,
    failed_handshakes: Counter,
    connections: ConnectionMetrics,
    closures: Arc<LogLimit>,
    wrong_protocols: Arc<WrongProtocolLog>,
    clock: Arc<dyn Clock>,
    tls: Option<watch::Receiver<Arc<Tls>>>,
    phase: watch::Receiver<Phase>,
}

impl ConnectionDriver {
    /// Creates a driver of connections whose calls `routes` handles. All drivers share `wrong_protocols`.
    pub(in crate::server) fn new(
        server: &Server,
        routes: Routes,
        phase: watch::Receiver<Phase>,
        wrong_protocols: &Arc<WrongProtocolLog>,
    ) -> Self {
        let connections = server.connections.clone();
        Self {
            calls: server.calls.layer(routes),
            options: server.options,
            failed_handshakes: connections.rejected(ConnectionRejection::Handshake),
            connections,
            closures: Arc::default(),
            wrong_protocols: Arc::clone(wrong_protocols),
            clock: Arc::clone(&server.clocks.clock),
            tls: server.tls.clone(),
            phase,
        }
    }

    /// Serves a connection until it ends. A graceful shutdown begins when the server drains, when the
    /// connection has reached its maximum age, when its client's certificate expires, when it is idle, or
    /// when it has to make room. Calls in flight are completed first if their client reads the responses.
    pub(in crate::server) async fn run(self, handed_over: (Accepted, WorkerSlot), jitter: f64) {
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow().config));
        let (address, state) = (handed_over.0.address(), handed_over.1.state());
        let adopted = tokio::select! {
            adopted = Connection::adopt(handed_over, tls, self.options.handshake_timeout) => adopted,
            closure = state.closed() => {
                self.connections.closed(closure).inc();
                return;
            }
        };
        let connection = match adopted {
            Ok(connection) => connection,
            Err(error) => return self.report_failed_handshake(&error, address, &state),
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
        let lifetime = peer.remaining_lifetime(self.clock.now());
        let mut timeout = None;
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
                outcome = serving.as_mut() => return ended(outcome, &peer),
                () = drains => {}
                () = is_old => {}
                () = has_expired => tracing::debug!("closing a connection, because its client certificate has expired"),
                () = is_idle => {}
                closure = state.closed() => {
                    self.report(closure, &peer);
                    if closure == ConnectionClosure::UnreadResponses {
                        return;
                    }
                    timeout = Some(GOAWAY_TIMEOUT);
                }
            }
        }
        serving.as_mut().graceful_shutdown();
        ends.send_replace(true);
        tokio::select! {
            outcome = serving => ended(outcome, &peer),
            () = after(timeout) => {}
            closure = state.closed() => self.report(closure, &peer),
            () = activity.stalls(self.options.drain_timeout) => {
                tracing::debug!("closed a connection, because its client does not read responses");
            }
        }
    }
}

impl ConnectionDriver {
    /// Counts and logs a connection whose handshake failed with `error`.
    fn report_failed_handshake(
        &self,
        error: &HandshakeError,
        address: Option<IpAddr>,
        state: &ConnectionState,
    ) {
        if error.is_failed_handshake() {
            self.failed_handshakes.inc();
        }
        if let HandshakeError::WrongProtocol(wrong) = error {
            self.wrong_protocols.note(state.peer(), address, *wrong);
        }
        let peer = address.map(tracing::field::display);
        tracing::debug!(peer, error = %error_chain(error), "a connection failed during its handshake");
    }

    /// Counts a connection that is closed to make room for others. Logs the connection unless it was only
    /// idle.
    fn report(&self, closure: ConnectionClosure, peer: &Peer) {
        self.connections.closed(closure).inc();
        let problem = match closure {
            ConnectionClosure::Idle => return,
            ConnectionClosure::UnreadResponses => "does not read responses",
            ConnectionClosure::HeldStreams => "holds streams that other clients need",
        };
        if let Some(left_out) = self.closures.admit() {
            let peer = peer.address().map(tracing::field::display);
            tracing::warn!(peer, left_out, "closed a connection, because its client {problem}");
        }
    }
}

/// Logs an error at debug level only, because clients break connections all the time.
fn ended(outcome: Result<(), hyper::Error>, peer: &Peer) {
    if let Err(error) = outcome {
        let peer = peer.address().map(tracing::field::display);
        tracing::debug!(peer, error = %error_chain(&error), "a connection failed");
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
