//! Calls whose message came, told from those that only began.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use prost::bytes::BytesMut;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::Service;

use crate::grpc::{message_too_large, overloaded};

/// What stands before a message: whether it is compressed, and its length.
const FRAME_HEADER_BYTES: usize = 5;
/// Bytes of messages that came in part, of all calls together. Most messages come whole, and count for nothing.
const MAX_PARTIAL_BYTES: usize = 64 * 1024 * 1024;

/// How many bytes wait for the rest of their message.
#[derive(Clone, Debug, Default)]
pub(super) struct Partial(Arc<AtomicUsize>);

impl Partial {
    /// Returns the request once its message, of at most `limit` bytes, has arrived completely.
    pub(super) async fn whole(&self, request: Request<Body>, limit: usize) -> Result<Request<Body>, Status> {
        let (parts, mut rest) = request.into_parts();
        let mut held = Held { total: &self.0, limit: limit + FRAME_HEADER_BYTES, bytes: 0 };
        // Copied: a byte would keep the whole buffer that it was read into.
        let mut message = BytesMut::new();
        let mut pieces = VecDeque::new();
        loop {
            let piece = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await;
            let data = match piece.map(|piece| piece.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => data,
                Some(Ok(Err(trailers))) => {
                    pieces.push_back(Ok(trailers));
                    break;
                }
                Some(Err(error)) => {
                    pieces.push_back(Err(error));
                    break;
                }
                None => break,
            };
            if rest.is_end_stream() && message.is_empty() {
                pieces.push_back(Ok(Frame::data(data)));
                break;
            }
            held.add(data.len())?;
            message.extend_from_slice(&data);
            if rest.is_end_stream() {
                break;
            }
        }
        if !message.is_empty() {
            pieces.push_front(Ok(Frame::data(message.freeze())));
        }
        Ok(Request::from_parts(parts, Body::new(Arrived { pieces, rest })))
    }
}

/// The bytes of one message.
struct Held<'p> {
    total: &'p AtomicUsize,
    limit: usize,
    bytes: usize,
}

impl Held<'_> {
    fn add(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes += bytes;
        if self.total.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_PARTIAL_BYTES {
            return Err(overloaded());
        }
        if self.bytes > self.limit {
            return Err(message_too_large());
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Calls a service once the message of its request has arrived. The method `streaming` is called at once.
#[derive(Clone, Debug)]
pub(super) struct WithMessage<S> {
    pub(super) inner: S,
    pub(super) partial: Partial,
    pub(super) limit: usize,
    pub(super) streaming: &'static str,
}

impl<S: NamedService> NamedService for WithMessage<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for WithMessage<S>
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        > + Clone
        + Send
        + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.uri().path().ends_with(self.streaming) {
            return self.inner.call(request);
        }
        // The clone that was ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let (partial, limit) = (self.partial.clone(), self.limit);
        Box::pin(async move {
            match partial.whole(request, limit).await {
                Ok(request) => inner.call(request).await,
                Err(refusal) => Ok(refusal.into_http()),
            }
        })
    }
}

/// A body whose first pieces are here.
pub(crate) struct Arrived {
    pub(crate) pieces: VecDeque<Result<Frame<Bytes>, Status>>,
    pub(crate) rest: Body,
}

impl HttpBody for Arrived {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.pieces.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.rest.is_end_stream()
    }
}
