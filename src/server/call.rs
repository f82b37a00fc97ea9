//! The layer around every call. Each concern has a file of its own.

mod audit;
mod deadline;
mod load_shed;
mod metrics;
mod panic;
mod request_buffer;
mod request_id;
mod trace;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use self::load_shed::CallSlots;
use self::metrics::CountedCall;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::request_buffer::BufferedBody;
use self::request_buffer::buffered;
pub(super) use self::request_buffer::{BufferMessage, BufferQuota};
use self::request_id::RequestIds;
use crate::domain::{Entropy, EntropyError, KeyFormat, Stopwatch};
use crate::grpc::methods::{Message, Method, VALIDATE};
use crate::grpc::{ACCEPTED_ENCODINGS, CacheOnly, CallFuture, CallHandler, Peer, RequestId, from_transport};
use crate::telemetry::CallMetrics;

/// Assigns each call a request id, a span, a slot and a deadline, counts it, and turns panics into statuses.
///
/// The request id is the caller's `x-request-id` if it is valid, and a new one otherwise. It is in the
/// extensions of the request, in the log and in the metadata of the response.
#[derive(Clone, Debug)]
pub(crate) struct CallLayer {
    ids: Arc<RequestIds>,
    slots: CallSlots,
    timeout: Duration,
    stopwatch: Arc<dyn Stopwatch>,
    metrics: CallMetrics,
}

/// Limits of calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallLimits {
    /// Maximum number of calls in flight on all connections together. Further calls are rejected, unless they
    /// are answered from memory. `KeyStore` has a tenth of this number for changes, and another tenth for
    /// calls that read, in addition. Health checks are not limited.
    pub max_calls: usize,
    /// Maximum time until a response begins. Clients can set an earlier deadline.
    pub timeout: Duration,
}

impl CallLayer {
    /// Creates a layer. `entropy` makes the request ids of this process differ from those of others, `keys` is
    /// the form of secrets that must not become request ids, and `stopwatch` measures the durations of calls.
    ///
    /// # Errors
    /// Returns an error if the random number generator of the system fails.
    pub(crate) fn new(
        entropy: &dyn Entropy,
        keys: KeyFormat,
        stopwatch: Arc<dyn Stopwatch>,
        limits: CallLimits,
        metrics: CallMetrics,
    ) -> Result<Self, EntropyError> {
        let slots = CallSlots::new(limits.max_calls, &metrics);
        let ids = Arc::new(RequestIds::new(entropy, keys)?);
        Ok(Self { ids, slots, timeout: limits.timeout, stopwatch, metrics })
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> CallService<S> {
        CallService { inner, layer: self.clone() }
    }
}

/// The service that [`CallLayer`] creates.
#[derive(Clone, Debug)]
pub(crate) struct CallService<S> {
    inner: S,
    layer: CallLayer,
}

impl<S: CallHandler> Service<Request<Body>> for CallService<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> CallFuture {
        let id = self.layer.ids.of(request.headers());
        let counted = CountedCall::begin(&self.layer.metrics, &self.layer.stopwatch, request.uri().path());
        let name = counted.method();
        let span = trace::span(name.name(), &id, request.headers());
        let id_header = request_id::header(&id);
        request.extensions_mut().insert(id);
        let peer = request.extensions().get().and_then(Peer::address);
        let timeout = deadline::of(request.headers(), self.layer.timeout);
        // Boxed because the future is large and is moved several times.
        let response = Box::pin(respond(self.inner.clone(), self.layer.slots.clone(), request));
        let call = async move {
            let mut response = deadline::within(timeout, panic::caught(response)).await;
            response = explained(response, name.name());
            if let Some(id) = id_header {
                response.headers_mut().insert(RequestId::HEADER, id);
            }
            let code = metrics::code(&response);
            counted.answered(code);
            trace::answered(code);
            audit::answered(name.name(), peer, code, &response);
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

/// Reads the message, takes a slot and calls `inner`. A call takes its slot only once its message has
/// arrived, so that idle requests can't exhaust the limit.
async fn respond(
    mut inner: impl CallHandler,
    slots: CallSlots,
    request: Request<Body>,
) -> Result<Response<Body>, Infallible> {
    let method = Method::of(request.uri().path());
    let request = match method.filter(|method| method.message == Message::BeforeCall) {
        Some(method) => buffered(request, method.service.max_message_bytes()).await,
        None => Ok(request),
    };
    let mut request = match request {
        Ok(request) => request,
        Err(rejection) => return Ok(rejection.into_http()),
    };
    let _slot = match slots.take(method) {
        Ok(slot) => slot,
        // An answer from the cache needs no slot, because it does not wait.
        Err(_) if method.is_some_and(|method| method.path == VALIDATE) => {
            request.extensions_mut().insert(CacheOnly);
            None
        }
        Err(rejection) => return Ok(rejection.into_http()),
    };
    inner.call(request).await
}

/// Replaces a status that tonic made before the handler of `method` was called by one with a reason.
fn explained(response: Response<Body>, method: &str) -> Response<Body> {
    let status = Status::from_header_map(response.headers());
    let status = status.as_ref().and_then(|status| from_transport(status, Method::named(method)));
    let Some(status) = status else { return response };
    let is_unknown =
        status.code() == Code::Unimplemented && !status.metadata().contains_key(ACCEPTED_ENCODINGS);
    let mut response = status.into_http();
    if is_unknown {
        // gRPC clients map 404 to UNIMPLEMENTED. A gateway that authorizes by HTTP status denies the request.
        *response.status_mut() = StatusCode::NOT_FOUND;
    }
    response
}
