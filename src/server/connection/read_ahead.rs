//! Reads the requests of a stream ahead of its handler, within bounds.
//!
//! A handler that waits for its client to read the responses does not read the stream. A client can then send
//! many frames of one byte each, and the transport keeps every frame in a few hundred bytes, up to several
//! megabytes per connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

/// Maximum number of frames that the handler has not read yet.
const MAX_FRAMES: usize = 64;
/// Maximum number of bytes in these frames.
const MAX_BYTES: usize = 32 * 1024;

/// A body that a separate task reads ahead.
pub(super) struct ReadAhead<E> {
    frames: mpsc::Receiver<Result<Frame<Bytes>, E>>,
    unread: Arc<AtomicUsize>,
}

/// Reads `body` in a task of its own. If the handler falls too far behind, the rest is discarded, and the
/// body ends.
pub(super) fn read_ahead<B>(mut body: B) -> ReadAhead<B::Error>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Send,
{
    let (sender, frames) = mpsc::channel(MAX_FRAMES);
    let unread: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&unread);
    tokio::spawn(async move {
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sender.closed() => return,
            };
            let Some(frame) = frame else { return };
            let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
            if counted.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_BYTES
                || sender.try_send(frame).is_err()
            {
                return;
            }
        }
    });
    ReadAhead { frames, unread }
}

impl<E> Body for ReadAhead<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        let next = self.frames.poll_recv(cx);
        if let Poll::Ready(Some(Ok(frame))) = &next {
            self.unread.fetch_sub(frame.data_ref().map_or(0, Bytes::len), Ordering::Relaxed);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    /// Returns the number of frames that reach a handler which begins to read after all of `frames` were
    /// sent.
    async fn read(frames: Vec<usize>) -> usize {
        let frames =
            frames.into_iter().map(|bytes| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; bytes]))));
        let mut body = read_ahead(StreamBody::new(stream::iter(frames)));
        tokio::task::yield_now().await;
        let mut read = 0;
        while body.frame().await.is_some() {
            read += 1;
        }
        read
    }

    #[tokio::test]
    async fn the_rest_of_too_many_requests_is_discarded() {
        assert_eq!(read(vec![1; MAX_FRAMES]).await, MAX_FRAMES);
        assert_eq!(read(vec![1; MAX_FRAMES + 10]).await, MAX_FRAMES);
        assert_eq!(read(vec![MAX_BYTES / 4; 10]).await, 4);
    }
}
