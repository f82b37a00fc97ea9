//! The request body of a call, which tracks whether the call waits for the rest of its request.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::activity::CallProgress;

/// The body of a request. Its call counts as waiting for the client while the next part is missing.
pub(super) struct TrackedRequestBody {
    body: Incoming,
    progress: CallProgress,
}

impl TrackedRequestBody {
    pub(super) fn new(body: Incoming, progress: CallProgress) -> Self {
        Self { body, progress }
    }
}

impl Body for TrackedRequestBody {
    type Data = <Incoming as Body>::Data;
    type Error = <Incoming as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(cx);
        self.progress.waits_for_request(next.is_pending());
        if next.is_ready() {
            self.progress.has_received();
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
