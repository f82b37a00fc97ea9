//! What every call goes through: a place among those that run, an id, a span for the log, a deadline, and a net for panics.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::Peer;
use crate::domain::{BootClock, Entropy, EntropyError, Moment, Stopwatch as _};
use crate::grpc::{Actor, RequestId, deadline_exceeded, from_transport, overloaded, panicked};
use crate::telemetry::{CallMetrics, LogLimit, MethodMetrics, continue_trace, note_status};

/// Gives each call its [`RequestId`]: the caller's `x-request-id` if it is sound, a new one otherwise. It is in the
/// request's extensions, in the log's span and in the answer's metadata. A handler that panics fails its own call alone.
#[derive(Clone, Debug)]
pub struct CallLayer {
    ids: Arc<Ids>,
    limits: CallLimits,
    running: Arc<AtomicUsize>,
    metrics: CallMetrics,
}

/// What calls may take.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Calls that run at one time, on all connections together; further ones are refused. Those for health always run.
    pub max_calls: usize,
    /// How long a call may take until its answer begins, if its client does not say less.
    pub timeout: Duration,
}

#[derive(Debug)]
struct Ids {
    process: u64,
    next: AtomicU64,
}

impl CallLayer {
    /// A layer whose ids begin with a number of this process, drawn from `entropy`.
    ///
    /// # Errors
    /// There were no random bytes.
    pub fn new(
        entropy: &dyn Entropy,
        limits: CallLimits,
        metrics: CallMetrics,
    ) -> Result<Self, EntropyError> {
        let mut process = [0; 8];
        entropy.fill(&mut process)?;
        let ids = Ids { process: u64::from_ne_bytes(process), next: AtomicU64::new(0) };
        Ok(Self { ids: Arc::new(ids), limits, running: Arc::default(), metrics })
    }
}

impl Ids {
    fn of(&self, headers: &HeaderMap) -> RequestId {
        let given =
            headers.get(RequestId::HEADER).and_then(|id| id.to_str().ok()).and_then(RequestId::from_caller);
        given.unwrap_or_else(|| {
            RequestId::from_counter(self.process, self.next.fetch_add(1, Ordering::Relaxed))
        })
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

/// The service that [`CallLayer`] makes.
#[derive(Clone, Debug)]
pub struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

type CallFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> CallFuture {
        let id = self.layer.ids.of(request.headers());
        let span = tracing::info_span!(
            "call",
            method = request.uri().path(),
            request_id = id.as_str(),
            otel.name = Empty,
            otel.kind = Empty,
        );
        continue_trace(&span, request.uri().path(), request.headers());
        // What was checked to be visible ASCII is a header value.
        let header = HeaderValue::from_str(id.as_str()).ok();
        request.extensions_mut().insert(id);

        let (metrics, begun) = (self.layer.metrics.clone(), BootClock.moment());
        let (path, peer) = (request.uri().path().to_owned(), request.extensions().get::<Peer>().cloned());
        let method = metrics.method(request.uri().path());
        let timeout = timeout(request.headers(), self.layer.limits.timeout);
        let (is_health, needs_message) = (is_health(&request), needs_message(&request));
        let (mut inner, layer) = (self.inner.clone(), self.layer.clone());
        let answer = async move {
            // A call whose message never comes is none, and takes no place.
            let request = if needs_message { with_first_piece(request).await } else { request };
            // Health needs no place.
            let running = if is_health { None } else { layer.begin() };
            if running.is_none() && !is_health {
                return Ok(overloaded().into_http());
            }
            inner.call(request).await
        };
        let counting = Counting { metrics, method, begun, is_answered: false };
        let peer = peer.and_then(|peer| peer.address());
        let call = async move {
            let mut response = answered(answer, timeout).await;
            if let Some(clearer) =
                Status::from_header_map(response.headers()).as_ref().and_then(from_transport)
            {
                response = clearer.into_http();
            }
            if let Some(header) = header {
                response.headers_mut().insert(RequestId::HEADER, header);
            }
            let status = grpc_status(&response);
            let code = status.parse().unwrap_or(UNKNOWN);
            counting.answered(code);
            note_status(&tracing::Span::current(), code.into());
            tracing::debug!(status, "answered");
            if [PERMISSION_DENIED, UNAUTHENTICATED].contains(&code) {
                audit(&path, peer, &response);
            }
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

/// The answer, within `timeout`.
async fn answered(
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
    timeout: Duration,
) -> Response<Body> {
    match tokio::time::timeout(timeout, AssertUnwindSafe(answer).catch_unwind()).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(never))) => match never {},
        Ok(Err(_)) => panicked().into_http(),
        Err(_) => deadline_exceeded().into_http(),
    }
}

/// How long a call may take: as its client says in `grpc-timeout`, and no longer than `most`. One that can't be read says
/// nothing.
fn timeout(headers: &HeaderMap, most: Duration) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|text| parse_timeout(text.to_str().ok()?));
    asked.map_or(most, |asked| asked.min(most))
}

/// One to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_hours(number),
        "M" => Duration::from_mins(number),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A call among those that run.
struct Running(Arc<AtomicUsize>);

impl CallLayer {
    /// Takes a place for a call; `None` if there is none.
    fn begin(&self) -> Option<Running> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(&self.running));
        (before < self.limits.max_calls).then_some(running)
    }
}

fn is_health(request: &Request<Body>) -> bool {
    request.uri().path().starts_with("/grpc.health.v1.Health/")
}

/// Whether a call begins with its one message. That of `KeyStore` may come later: an import is refused before it.
fn needs_message(request: &Request<Body>) -> bool {
    request.uri().path().starts_with("/keyvouch.v1.Validator/")
}

/// The request when the first piece of its body came, or the body ended.
async fn with_first_piece(request: Request<Body>) -> Request<Body> {
    let (head, mut rest) = request.into_parts();
    let first = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await;
    Request::from_parts(head, Body::new(Primed { first, rest }))
}

/// A body whose first piece is here.
struct Primed {
    first: Option<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl HttpBody for Primed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

/// Numbers of [gRPC's statuses](https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// Counts a call, however it ends.
struct Counting {
    metrics: CallMetrics,
    method: Arc<MethodMetrics>,
    begun: Moment,
    is_answered: bool,
}

impl Counting {
    fn answered(mut self, code: i32) {
        self.is_answered = true;
        self.count(code);
    }

    fn count(&self, code: i32) {
        self.metrics.answered(&self.method, code, BootClock.moment().since(self.begun));
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if !self.is_answered {
            // Its client went away.
            self.count(CANCELLED);
        }
    }
}

/// Says in the log that a call was refused for who made it. Who has no credential could fill a table with such lines, so they
/// are no part of the events that are stored, and only some of many are written.
fn audit(path: &str, peer: Option<IpAddr>, response: &Response<Body>) {
    static LIMIT: LogLimit = LogLimit::new();
    let Some(left_out) = LIMIT.admit() else { return };
    let refusal = Status::from_header_map(response.headers());
    tracing::warn!(
        target: "keyvouch::audit",
        method = path,
        peer = peer.map(tracing::field::display),
        actor = response.extensions().get::<Actor>().map(|Actor(name)| name.as_str()),
        code = refusal.as_ref().map(|refusal| tracing::field::debug(refusal.code())),
        reason = refusal.as_ref().map(Status::message),
        left_out,
        "a call was refused"
    );
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The status of an answer that has no body; others tell theirs only at their end.
fn grpc_status(response: &Response<Body>) -> &str {
    response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        for (text, timeout) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_hours(99_999_999))),
            ("5m", Some(Duration::from_millis(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1é", None),
        ] {
            assert_eq!(parse_timeout(text), timeout, "{text:?}");
        }
    }
}
