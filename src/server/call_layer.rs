//! What every call goes through: an id, a span for the log, and a net for panics.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::domain::{Entropy, EntropyError};
use crate::grpc::{RequestId, from_transport, panicked};

/// Gives each call its [`RequestId`]: the caller's `x-request-id` if it is sound, a new one otherwise. It is in the
/// request's extensions, in the log's span and in the answer's metadata. A handler that panics fails its own call alone.
#[derive(Clone, Debug)]
pub struct CallLayer {
    ids: Arc<Ids>,
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
    pub fn new(entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut process = [0; 8];
        entropy.fill(&mut process)?;
        Ok(Self { ids: Arc::new(Ids { process: u64::from_ne_bytes(process), next: AtomicU64::new(0) }) })
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
        CallService { inner, ids: Arc::clone(&self.ids) }
    }
}

/// The service that [`CallLayer`] makes.
#[derive(Clone, Debug)]
pub struct CallService<S> {
    inner: S,
    ids: Arc<Ids>,
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
        let id = self.ids.of(request.headers());
        let span = tracing::info_span!("call", method = request.uri().path(), request_id = id.as_str());
        // What was checked to be visible ASCII is a header value.
        let header = HeaderValue::from_str(id.as_str()).ok();
        request.extensions_mut().insert(id);

        let answer = span.in_scope(|| self.inner.call(request));
        let call = async move {
            let mut response = match AssertUnwindSafe(answer).catch_unwind().await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => panicked().into_http(),
            };
            if let Some(clearer) =
                Status::from_header_map(response.headers()).as_ref().and_then(from_transport)
            {
                response = clearer.into_http();
            }
            if let Some(header) = header {
                response.headers_mut().insert(RequestId::HEADER, header);
            }
            tracing::debug!(status = grpc_status(&response), "answered");
            Ok(response)
        };
        Box::pin(call.instrument(span))
    }
}

/// The status of an answer that has no body; others tell theirs only at their end.
fn grpc_status(response: &Response<Body>) -> &str {
    response.headers().get("grpc-status").and_then(|status| status.to_str().ok()).unwrap_or("0")
}
