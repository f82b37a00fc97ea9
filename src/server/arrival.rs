//! Calls whose message came, told from those that only began.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use prost::bytes::BytesMut;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::Service;

use super::quota::{Quota, Taken};
use crate::grpc::{message_too_large, overloaded};

/// What stands before a message: whether it is compressed, and its length.
const FRAME_HEADER_BYTES: usize = 5;
/// Returns the request once its message, of at most `limit` bytes, has arrived completely. Until then its bytes count against the
/// quota of its connection, which is in its extensions.
pub(super) async fn whole(request: Request<Body>, limit: usize) -> Result<Request<Body>, Status> {
    let (parts, mut rest) = request.into_parts();
    let quota = parts.extensions.get::<PartialQuota>();
    let mut held: Option<Taken> = None;
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
        if message.len() + data.len() > limit + FRAME_HEADER_BYTES {
            return Err(message_too_large());
        }
        let is_free = match (&mut held, quota) {
            (_, None) => true,
            (Some(held), _) => held.grow(data.len()),
            (held, Some(PartialQuota(quota))) => {
                *held = quota.take(data.len());
                held.is_some()
            }
        };
        if !is_free {
            return Err(overloaded());
        }
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

/// Request extension: the quota for bytes of incomplete messages.
#[derive(Clone, Debug)]
pub(super) struct PartialQuota(pub(super) Quota);

/// Calls a service once the message of its request has arrived. The method `streaming` is called at once.
#[derive(Clone, Debug)]
pub(super) struct WithMessage<S> {
    pub(super) inner: S,
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
        let limit = self.limit;
        Box::pin(async move {
            match whole(request, limit).await {
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
