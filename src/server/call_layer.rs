//! What every call goes through: a place among those that run, an id, a span for the log, a deadline, and a net for panics.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use prometheus_client::metrics::gauge::Gauge;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;

use super::arrival::whole;
use super::routes::{MAX_SMALL_BYTES, MAX_VALIDATE_BYTES};
use super::{Peer, grpc_timeout};
use crate::domain::{BootClock, Entropy, EntropyError, Moment, Stopwatch as _};
use crate::grpc::{
    Actor, FromCacheAlone, RequestId, deadline_exceeded, from_transport, overloaded, panicked,
};
use crate::telemetry::{CallMetrics, MethodMetrics, Refusal, continue_trace, note_status, refused};

const VALIDATE: &str = "/keyvouch.v1.Validator/Validate";
/// `KeyStore` has one slot of its own for each of so many slots of `Validator`.
const ADMINISTRATION_SHARE: usize = 10;

/// Gives each call its [`RequestId`]: the caller's `x-request-id` if it is sound, a new one otherwise. It is in the
/// request's extensions, in the log's span and in the answer's metadata. A handler that panics fails its own call alone.
#[derive(Clone, Debug)]
pub struct CallLayer {
    ids: Arc<Ids>,
    limits: CallLimits,
    metrics: CallMetrics,
}

/// What calls may take.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// Calls that run at one time, on all connections together; further ones are refused, unless they are answered from memory.
    /// A tenth of it is for `KeyStore` alone, in addition. Those for health always run.
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
        Ok(Self { ids: Arc::new(ids), limits, metrics })
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
        let counting = Counting::begin(&self.layer.metrics, request.uri().path());
        // Unknown methods share one name, so that clients can't write text of their choice into the log.
        let method = Arc::clone(&counting.method);
        let span = tracing::info_span!(
            "call",
            method = method.name(),
            request_id = id.as_str(),
            otel.name = Empty,
            otel.kind = Empty,
        );
        // What was checked to be visible ASCII is a header value.
        let header = HeaderValue::from_str(id.as_str()).ok();
        request.extensions_mut().insert(id);

        continue_trace(&span, method.name(), request.headers());
        let peer = request.extensions().get().and_then(Peer::address);
        let timeout = grpc_timeout::of(request.headers())
            .map_or(self.layer.limits.timeout, |asked| asked.min(self.layer.limits.timeout));
        let (lane, message_limit) = (Lane::of(&request), message_limit(&request));
        let (mut inner, layer) = (self.inner.clone(), self.layer.clone());
        // Boxed: it is handed on several times, and is large.
        let answer = Box::pin(async move {
            // A call whose message never comes is none, and takes no place.
            let request = match message_limit {
                Some(limit) => whole(request, limit).await,
                None => Ok(request),
            };
            let mut request = match request {
                Ok(request) => request,
                Err(refusal) => return Ok(refusal.into_http()),
            };
            let _running = match layer.begin(lane) {
                Ok(running) => running,
                // A cache hit needs no slot, since it does not wait.
                Err(_) if request.uri().path() == VALIDATE => {
                    request.extensions_mut().insert(FromCacheAlone);
                    None
                }
                Err(refusal) => return Ok(refusal.into_http()),
            };
            inner.call(request).await
        });
        let call = async move {
            let mut response = answered(answer, timeout).await;
            if let Some(clearer) =
                Status::from_header_map(response.headers()).as_ref().and_then(from_transport)
            {
                let is_unknown = clearer.code() == Code::Unimplemented;
                response = clearer.into_http();
                if is_unknown {
                    // gRPC clients map it to UNIMPLEMENTED; a gateway that authorizes by HTTP status denies the request.
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
            }
            if let Some(header) = header {
                response.headers_mut().insert(RequestId::HEADER, header);
            }
            let status = grpc_status(&response);
            let code = Code::from_bytes(status.as_bytes());
            counting.answered(code);
            note_status(&tracing::Span::current(), code);
            tracing::debug!(status, "answered");
            if matches!(code, Code::PermissionDenied | Code::Unauthenticated) {
                tell_refusal(method.name(), peer, code, &response);
            }
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

fn tell_refusal(method: &str, peer: Option<IpAddr>, code: Code, response: &Response<Body>) {
    let status = Status::from_header_map(response.headers());
    let reason = status.as_ref().map(Status::message).unwrap_or_default();
    let actor = response.extensions().get::<Actor>().map(|Actor(name)| name.as_str());
    refused(&Refusal { method, peer, actor, code, reason });
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

/// A call among those that run.
struct Running(Gauge);

impl CallLayer {
    /// Reserves a slot for a call.
    fn begin(&self, lane: Lane) -> Result<Option<Running>, Status> {
        let (gauge, max) = match lane {
            Lane::Health => return Ok(None),
            Lane::Administration => {
                (self.metrics.administering(), (self.limits.max_calls / ADMINISTRATION_SHARE).max(1))
            }
            Lane::Validation => (self.metrics.running(), self.limits.max_calls),
        };
        let before = gauge.inc();
        let running = Running(gauge.clone());
        if usize::try_from(before).unwrap_or_default() < max { Ok(Some(running)) } else { Err(overloaded()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The slots that a call counts against. Validations can't exhaust the slots of administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    /// Not limited.
    Health,
    Administration,
    Validation,
}

impl Lane {
    fn of(request: &Request<Body>) -> Self {
        if is_health(request) {
            Self::Health
        } else if request.uri().path().starts_with("/keyvouch.v1.KeyStore/") {
            Self::Administration
        } else {
            Self::Validation
        }
    }
}

fn is_health(request: &Request<Body>) -> bool {
    request.uri().path().starts_with("/grpc.health.v1.Health/")
}

/// Returns the maximum size of the message that has to arrive before the call counts; `None` for `KeyStore`, which authorizes
/// its callers first.
fn message_limit(request: &Request<Body>) -> Option<usize> {
    if request.uri().path().starts_with("/keyvouch.v1.Validator/") {
        return Some(MAX_VALIDATE_BYTES);
    }
    is_health(request).then_some(MAX_SMALL_BYTES)
}

/// Counts a call, however it ends.
struct Counting {
    metrics: CallMetrics,
    method: Arc<MethodMetrics>,
    begun: Moment,
    is_answered: bool,
}

impl Counting {
    fn begin(metrics: &CallMetrics, path: &str) -> Self {
        let method = metrics.method(path);
        Self { metrics: metrics.clone(), method, begun: BootClock.moment(), is_answered: false }
    }

    fn answered(mut self, code: Code) {
        self.is_answered = true;
        self.count(code);
    }

    fn count(&self, code: Code) {
        self.metrics.answered(&self.method, code, BootClock.moment().since(self.begun));
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if !self.is_answered {
            // Its client went away.
            self.count(Code::Cancelled);
        }
    }
}

/// The status of an answer that has no body; others tell theirs only at their end.
fn grpc_status(response: &Response<Body>) -> &str {
    response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or("0")
}
