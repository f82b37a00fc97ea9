//! Serving the calls of one connection, from its first byte to its orderly end.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer as _, Service};

use super::call_layer::CallService;
use super::connection::{Accepted, Connection, Place};
use super::worker::Phase;
use super::{CallLayer, Peer, ServerOptions};
use crate::grpc::connection_ends;

/// A peer that is gone without a word is noticed after an interval and a time-out.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Streams that a peer may reset before they were looked at, and that we may reset by its fault, before the connection is
/// ended (CVE-2023-44487, CVE-2025-8671).
const MAX_RESET_STREAMS: usize = 20;
const MAX_FAULTY_STREAMS: usize = 1024;

/// How the connections of one address are served.
#[derive(Clone)]
pub(super) struct Serving {
    calls: CallService<Routes>,
    options: ServerOptions,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    phase: watch::Receiver<Phase>,
}

impl Serving {
    pub(super) fn new(
        routes: Routes,
        layer: &CallLayer,
        options: ServerOptions,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self { calls: layer.layer(routes), options, tls, phase }
    }

    /// Serves a connection to its end. It is told to end when the server drains, when it is old, or when it is idle; calls
    /// that run then are answered first.
    pub(super) async fn run(mut self, handed_over: (Accepted, Place), jitter: f64) {
        let tls = self.tls.as_ref().map(|tls| Arc::clone(&tls.borrow()));
        let connection = match Connection::adopt(handed_over, tls, self.options.handshake_timeout).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "a connection did not come about");
                return;
            }
        };
        let (running, mut activity) = watch::channel(0_usize);
        let (ends, is_ending) = watch::channel(false);
        let calls = Calls { service: self.calls.clone(), peer: connection.peer(), running, is_ending };
        let serving = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.options.max_streams_per_connection)
            .max_header_list_size(MAX_HEADER_BYTES)
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
            let is_idle = idle(&mut activity, self.options.idle_timeout);
            tokio::select! {
                outcome = serving.as_mut() => return ended(outcome),
                _ = drains => {}
                () = is_old => {}
                () = is_idle => {}
            }
        }
        serving.as_mut().graceful_shutdown();
        ends.send_replace(true);
        ended(serving.await);
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

/// Completes when no call has run for `timeout`.
async fn idle(running: &mut watch::Receiver<usize>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else {
        return std::future::pending().await;
    };
    loop {
        // The sender lives as long as the connection.
        let _ = running.wait_for(|&running| running == 0).await;
        running.mark_unchanged();
        if tokio::time::timeout(timeout, running.changed()).await.is_err() {
            return;
        }
    }
}

/// The calls of a connection: they know its peer, and are counted.
#[derive(Clone)]
struct Calls {
    service: CallService<Routes>,
    peer: Peer,
    running: watch::Sender<usize>,
    is_ending: watch::Receiver<bool>,
}

/// Calls that have no end of their own: they are told to go on elsewhere when their connection is to end.
const ENDLESS: [&str; 2] = ["/grpc.health.v1.Health/Watch", "/keyvouch.v1.Validator/WatchChanges"];

impl Calls {
    /// Completes when the stream that `request` asks for is to end; `None` for one that ends by itself.
    fn end_of(&self, request: &Request<Incoming>) -> Option<End> {
        let mut is_ending = self.is_ending.clone();
        ENDLESS.contains(&request.uri().path()).then(|| -> End {
            Box::pin(async move {
                // A connection that is gone ends as well.
                let _ = is_ending.wait_for(|is_ending| *is_ending).await;
            })
        })
    }
}

type End = Pin<Box<dyn Future<Output = ()> + Send>>;

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Counted<Body>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let end = self.end_of(&request);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer.clone());
        let counted = Running::begin(&self.running);
        let answer = self.service.clone().call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Counted { body, end, _running: counted })) })
    }
}

/// A call that runs.
struct Running(watch::Sender<usize>);

impl Running {
    fn begin(running: &watch::Sender<usize>) -> Self {
        running.send_modify(|running| *running += 1);
        Self(running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// The body of an answer. Its call runs until it is sent.
struct Counted<B> {
    body: B,
    /// When it ends though there could be more.
    end: Option<End>,
    _running: Running,
}

impl<B: hyper::body::Body + Unpin> hyper::body::Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let Some(end) = &mut self.end else { return Poll::Pending };
        if end.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.end = None;
        let mut trailers = HeaderMap::new();
        // Texts of ours are header values.
        let _ = connection_ends().add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
