//! Serving the calls of one connection, from its first byte to its orderly end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tonic::service::Routes;
use tower::Layer as _;

use super::call_layer::CallService;
use super::calls::{Activity, Calls};
use super::connection::{Accepted, Connection, Place};
use super::places::Seat;
use super::tls::Tls;
use super::worker::Phase;
use super::{CallLayer, ServerOptions};
use crate::telemetry::{ConnectionClosure, ConnectionMetrics, ConnectionRefusal, LogLimit};

/// A peer that is gone without a word is noticed after an interval and a time-out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the GOAWAY handshake of a connection that is closed to make room.
const GIVES_WAY_WITHIN: Duration = Duration::from_secs(1);
/// The most bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Flow-control window per stream in bytes (RFC 9113, section 5.2).
const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window per connection in bytes. h2 closes a connection (`too_many_data_frames`) when the unread frames are small:
/// the differences of their sizes to 256 bytes may add up to half of this window. A full stream window of import rows, of about
/// 64 bytes each, adds 192 KiB.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// Streams that a peer may reset before they were looked at, and that we may reset by its fault, before the connection is
/// ended (CVE-2023-44487, CVE-2025-8671).
const MAX_RESET_STREAMS: usize = 20;
const MAX_FAULTY_STREAMS: usize = 1024;

/// How the connections of one address are served.
#[derive(Clone)]
pub(super) struct Serving {
    calls: CallService<Routes>,
    options: ServerOptions,
    failed_handshakes: Counter,
    closed_idle: Counter,
    closed_unread: Counter,
    unread_log: Arc<LogLimit>,
    tls: Option<watch::Receiver<Arc<Tls>>>,
    phase: watch::Receiver<Phase>,
}

impl Serving {
    pub(super) fn new(
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
            closed_idle: connections.closed(ConnectionClosure::Idle),
            closed_unread: connections.closed(ConnectionClosure::UnreadAnswers),
            unread_log: Arc::default(),
            tls,
            phase,
        }
    }

    /// Serves a connection to its end. It is told to end when the server drains, when it is old, when its client's
    /// certificate expires, when it is idle, or when it has to give way; calls that run then are answered first, if their client reads the answers.
    pub(super) async fn run(mut self, handed_over: (Accepted, Place), jitter: f64) {
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow().config));
        let failures = self.failed_handshakes.clone();
        let seat = handed_over.1.seat();
        let adopted = tokio::select! {
            adopted = Connection::adopt(handed_over, tls, self.options.handshake_timeout, failures) => adopted,
            () = seat.gives_way() => {
                self.closed_idle.inc();
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
        let (peer, activity) = (connection.peer(), Activity::new(seat.clone()));
        let (ends, is_ending) = watch::channel(false);
        let calls = Calls::new(
            self.calls.clone(),
            peer.clone(),
            activity.clone(),
            is_ending,
            self.options.drain_timeout,
        );
        let (unread, unread_log) = (self.closed_unread.clone(), Arc::clone(&self.unread_log));
        tokio::select! {
            () = self.serve(connection, calls, &activity, &seat, ends, jitter) => {}
            () = seat.is_closed() => {
                unread.inc();
                if let Some(left_out) = unread_log.admit() {
                    let peer = peer.address().map(tracing::field::display);
                    tracing::warn!(peer, left_out, "closed a connection: its client does not read its answers");
                }
            }
        }
    }

    /// Serves a connection until it has ended.
    async fn serve(
        &mut self,
        connection: Connection,
        calls: Calls,
        activity: &Activity,
        seat: &Seat,
        ends: watch::Sender<bool>,
        jitter: f64,
    ) {
        let lifetime = connection.peer().remaining_lifetime();
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
            // An error means that the server is gone, which is a reason to end as well.
            let drains = self.phase.wait_for(|&phase| phase >= Phase::Drain);
            let is_old = after(self.options.max_connection_age.map(|age| age.mul_f64(jitter)));
            let has_expired = after(lifetime);
            let is_idle = idle(activity, self.options.idle_timeout);
            tokio::select! {
                outcome = serving.as_mut() => return ended(outcome),
                _ = drains => {}
                () = is_old => {}
                () = has_expired => tracing::debug!("a connection ends: its client certificate has expired"),
                () = is_idle => {}
                () = seat.gives_way() => {
                    self.closed_idle.inc();
                    tracing::debug!("closing an idle connection to make room for a new one");
                    patience = Some(GIVES_WAY_WITHIN);
                }
            }
        }
        serving.as_mut().graceful_shutdown();
        ends.send_replace(true);
        tokio::select! {
            outcome = serving => ended(outcome),
            () = after(patience) => {}
            () = activity.stalls(self.options.drain_timeout) => {
                tracing::debug!("a connection was cut: its client does not read its answers");
            }
        }
    }
}

/// Connections end by faults of the other side every day.
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

async fn idle(activity: &Activity, timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => activity.rests(timeout).await,
        None => std::future::pending().await,
    }
}
