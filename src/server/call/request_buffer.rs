//! Buffers the message of a request until it is complete.

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
use tonic::server::NamedService;
use tower::Service;

use crate::grpc::methods::{Message, Method};
use crate::grpc::{CallFuture, CallHandler, message_too_large, overloaded};
use crate::server::quota::{Quota, QuotaPermit};

/// Size of the header of a message in bytes: the compression flag and the length.
const FRAME_HEADER_BYTES: usize = 5;

/// Returns the request once its message, of at most `limit` bytes, has arrived completely. Until then, its
/// bytes count against the quota in the extensions of the request.
pub(super) async fn buffered(request: Request<Body>, limit: usize) -> Result<Request<Body>, Status> {
    let (parts, mut rest) = request.into_parts();
    let quota = parts.extensions.get::<BufferQuota>();
    let mut permit: Option<QuotaPermit> = None;
    // Copied, because even a single byte would keep the whole receive buffer allocated.
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
            return Err(message_too_large(limit));
        }
        let fits = match (&mut permit, quota) {
            (_, None) => true,
            (Some(permit), _) => permit.grow(data.len()),
            (permit, Some(BufferQuota(quota))) => {
                *permit = quota.take(data.len());
                permit.is_some()
            }
        };
        if !fits {
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
    Ok(Request::from_parts(parts, Body::new(BufferedBody { pieces, rest })))
}

/// Request extension: the quota for bytes of incomplete messages.
#[derive(Clone, Debug)]
pub(in crate::server) struct BufferQuota(pub(in crate::server) Quota);

/// Calls a service once the message of its request has arrived, for methods that read their message after
/// authorization.
#[derive(Clone, Debug)]
pub(in crate::server) struct BufferMessage<S>(pub(in crate::server) S);

impl<S: NamedService> NamedService for BufferMessage<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: CallHandler<Future = CallFuture>> Service<Request<Body>> for BufferMessage<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = CallFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> CallFuture {
        let method = Method::of(request.uri().path()).filter(|it| it.message == Message::AfterAuthorization);
        let Some(method) = method else { return self.0.call(request) };
        // Only the instance that was polled ready may be called, so its clone stays here.
        let not_ready = self.0.clone();
        let mut inner = std::mem::replace(&mut self.0, not_ready);
        let limit = method.service.max_message_bytes();
        Box::pin(async move {
            match buffered(request, limit).await {
                Ok(request) => inner.call(request).await,
                Err(rejection) => Ok(rejection.into_http()),
            }
        })
    }
}

/// The body of a request whose first frames were already read.
pub(crate) struct BufferedBody {
    pub(crate) pieces: VecDeque<Result<Frame<Bytes>, Status>>,
    pub(crate) rest: Body,
}

impl HttpBody for BufferedBody {
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
