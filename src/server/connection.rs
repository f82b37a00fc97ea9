//! A connection on its way from the acceptor to a worker, and then at that worker.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// A socket that no runtime owns yet.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// A place among the connections of the server and of one worker. Given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn take(load: &Arc<AtomicUsize>, permit: OwnedSemaphorePermit) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self { load: Arc::clone(load), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes with which HTTP/2 begins (RFC 9113, section 3.4). hyper watches a connection only after them.
const PREFACE_BYTES: usize = 24;

/// A connection on a worker's runtime.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    handshake: Option<Handshake>,
    _place: Place,
}

/// What is to come before the connection counts as one.
#[derive(Debug)]
struct Handshake {
    missing_bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connection {
    /// Registers the socket with the current runtime. It fails unless it begins with HTTP/2 within `handshake_timeout`.
    pub(super) fn adopt(
        (accepted, place): (Accepted, Place),
        handshake_timeout: Duration,
    ) -> io::Result<Self> {
        let stream = match accepted {
            Accepted::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            Accepted::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        };
        let deadline = Box::pin(tokio::time::sleep(handshake_timeout));
        let handshake = Some(Handshake { missing_bytes: PREFACE_BYTES, deadline });
        Ok(Self { stream, handshake, _place: place })
    }

    /// Counts the bytes that came, and fails when the time for the first of them is over.
    fn poll_handshake(&mut self, cx: &mut Context<'_>, came: usize) -> io::Result<()> {
        let Some(handshake) = &mut self.handshake else {
            return Ok(());
        };
        handshake.missing_bytes = handshake.missing_bytes.saturating_sub(came);
        if handshake.missing_bytes == 0 {
            self.handshake = None;
        } else if handshake.deadline.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match self.poll_handshake(cx, buf.filled().len() - before) {
            Ok(()) => read,
            Err(late) => Poll::Ready(Err(late)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }
}
