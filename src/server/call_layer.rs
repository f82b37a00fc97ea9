//! What every call goes through: a place among those that run, an id, a span for the log, a deadline, and a net for panics.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::domain::{BootClock, Entropy, EntropyError, Stopwatch as _};
use crate::grpc::{RequestId, deadline_exceeded, from_transport, overloaded, panicked};
use crate::telemetry::{CallMetrics, continue_trace, note_status};

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
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
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
        let method = metrics.method(request.uri().path());
        let timeout = timeout(request.headers(), self.layer.limits.timeout);
        let running = self.layer.begin(request.uri().path());
        let answer = running.map(|running| (running, span.in_scope(|| self.inner.call(request))));
        let call = async move {
            let mut response = match answer {
                Some((_running, answer)) => answered(answer, timeout).await,
                None => overloaded().into_http(),
            };
            if let Some(clearer) =
                Status::from_header_map(response.headers()).as_ref().and_then(from_transport)
            {
                response = clearer.into_http();
            }
            if let Some(header) = header {
                response.headers_mut().insert(RequestId::HEADER, header);
            }
            let status = grpc_status(&response);
            metrics.answered(&method, status.parse().unwrap_or(-1), BootClock.moment().since(begun));
            note_status(&tracing::Span::current(), status.parse().unwrap_or(-1));
            tracing::debug!(status, "answered");
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
    /// Takes a place for a call of `path`; `None` if there is none. Health has one always.
    fn begin(&self, path: &str) -> Option<Running> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(&self.running));
        (before < self.limits.max_calls || path.starts_with("/grpc.health.")).then_some(running)
    }
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
