//! The body of an answer. Its call runs until it is sent.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::calls::Running;
use crate::grpc::connection_ends;

/// Completes when an answer has to end though there could be more.
pub(super) type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The next frame of an answer; `None` at its end.
type Next = Option<Result<Frame<Bytes>, Status>>;

/// The body of an answer. Its data counts as unread until the transport has sent it.
pub(super) struct Answer {
    body: Body,
    end: Option<End>,
    running: Running,
}

impl Answer {
    /// Creates the answer `body` to the call `running`.
    pub(super) fn new(body: Body, end: Option<End>, running: Running) -> Self {
        running.waits_for_room(true);
        Self { body, end, running }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        // Checked first: a stream that always has more would never come to its end.
        let has_ended = self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready());
        if has_ended {
            self.end = None;
            let mut trailers = HeaderMap::new();
            // Texts of ours are header values.
            let _ = connection_ends().add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let next = Pin::new(&mut self.body).poll_frame(cx);
        next.map_ok(|frame| frame.map_data(|data| self.running.count_unread(data)))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        self.running.waits_for_room(false);
        let next = self.poll_next(cx);
        if next.is_ready() {
            self.running.waits_for_room(true);
            self.running.has_moved();
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
