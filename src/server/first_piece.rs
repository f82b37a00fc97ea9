//! Calls whose message came, told from those that only began.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use tonic::Status;
use tonic::body::Body;

/// The request when the first piece of its body came, or the body ended.
pub(super) async fn wait_for(request: Request<Body>) -> Request<Body> {
    let (head, mut rest) = request.into_parts();
    let first = poll_fn(|cx| Pin::new(&mut rest).poll_frame(cx)).await;
    Request::from_parts(head, Body::new(Primed { first, rest }))
}

/// A body whose first piece is here.
pub(crate) struct Primed {
    pub(crate) first: Option<Result<Frame<Bytes>, Status>>,
    pub(crate) rest: Body,
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
