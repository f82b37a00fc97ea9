//! The socket of a connection: on its way from the acceptor to a worker, and on the worker after its
//! handshake.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::first_bytes::PREFACE;
use super::handshake::{self, HandshakeError};
use super::limiter::ConnectionPermit;
use super::state::ConnectionState;
use crate::grpc::Peer;

/// An accepted socket that is not registered with a runtime yet.
#[derive(Debug)]
pub(in crate::server) enum Accepted {
    Tcp(StdTcpStream, SocketAddr),
    Unix(StdUnixStream),
}

impl Accepted {
    /// Returns the peer's address, or `None` for a Unix socket.
    pub(in crate::server) fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(_, address) => Some(address.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }
}

/// The slot of a connection in the limits of the server and in the load of its worker. Dropping it frees the
/// slot.
#[derive(Debug)]
pub(in crate::server) struct WorkerSlot {
    load: Gauge,
    permit: ConnectionPermit,
}

impl WorkerSlot {
    pub(in crate::server) fn take(load: &Gauge, permit: ConnectionPermit) -> Self {
        load.inc();
        Self { load: load.clone(), permit }
    }

    /// Returns the state that the connection shares with the limits.
    pub(super) fn state(&self) -> Arc<ConnectionState> {
        self.permit.state()
    }
}

impl Drop for WorkerSlot {
    fn drop(&mut self) {
        self.load.dec();
    }
}

/// A connection on a worker's runtime.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    /// The part of the connection preface that HTTP/2 has not read yet. The handshake has read it from the
    /// stream.
    preface: &'static [u8],
    _slot: WorkerSlot,
}

/// The stream of a connection, encrypted or not.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Applies an expression to the stream, whatever its kind.
macro_rules! each {
    ($stream:expr, $name:ident => $operation:expr) => {
        match $stream {
            Stream::Tcp($name) => $operation,
            Stream::Unix($name) => $operation,
            Stream::Tls($name) => $operation,
        }
    };
}

impl Connection {
    /// Registers the socket with the current runtime, and completes its handshake: TLS with `tls` if that is
    /// set, and the preface of HTTP/2, each within `handshake_timeout`.
    pub(super) async fn adopt(
        (accepted, slot): (Accepted, WorkerSlot),
        tls: Option<Arc<ServerConfig>>,
        handshake_timeout: Duration,
    ) -> Result<Self, HandshakeError> {
        let (stream, peer) = handshake::complete(accepted, tls, handshake_timeout).await?;
        Ok(Self { stream, peer, preface: PREFACE, _slot: slot })
    }

    /// Returns the peer and its certificate.
    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let (now, later) = self.preface.split_at(self.preface.len().min(buf.remaining()));
        buf.put_slice(now);
        self.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }
}
