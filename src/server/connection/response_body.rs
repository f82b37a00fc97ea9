//! The response body of a call, which tracks whether the client reads, and ends with its connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::HeaderMap;
use hyper::body::{Body as HttpBody, Bytes, Frame};
use tonic::Status;
use tonic::body::Body;

use super::activity::ActiveCall;
use crate::grpc::connection_ends;

/// Completes when a response has to end, even if its body has more data.
pub(super) type End = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Maximum size of the parts in which data is passed to the transport, which buffers each part as a whole.
const PART_BYTES: usize = 16 * 1024;

/// The next frame of a response, or `None` at its end.
type Next = Option<Result<Frame<Bytes>, Status>>;

/// The body of a response. The call is active until the transport drops it, and its data counts as unread
/// until it is sent.
pub(super) struct TrackedResponseBody {
    body: Body,
    /// Data of the body that was not passed to the transport yet.
    rest: Bytes,
    end: Option<End>,
    call: ActiveCall,
}

impl TrackedResponseBody {
    /// Creates the response body of `call`. It is cut off when `end` completes.
    pub(super) fn new(body: Body, end: Option<End>, call: ActiveCall) -> Self {
        call.progress().waits_for_client(true);
        Self { body, rest: Bytes::new(), end, call }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        // Checked first, because a stream that always has more data would never end otherwise.
        let has_ended = self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready());
        if has_ended {
            self.end = None;
            self.rest.clear();
            let mut trailers = HeaderMap::new();
            // All parts of this status are valid header values, so this can't fail.
            let _ = connection_ends().add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.next_part()))));
        }
        let next = Pin::new(&mut self.body).poll_frame(cx);
        next.map_ok(|frame| {
            frame.map_data(|data| {
                self.rest = self.call.count_unread(data);
                self.next_part()
            })
        })
    }

    fn next_part(&mut self) -> Bytes {
        self.rest.split_to(self.rest.len().min(PART_BYTES))
    }
}

impl HttpBody for TrackedResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        self.call.progress().waits_for_client(false);
        let next = self.poll_next(cx);
        if next.is_ready() {
            self.call.progress().waits_for_client(true);
            self.call.progress().has_sent();
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
