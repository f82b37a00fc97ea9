//! The socket of a connection: on its way from the acceptor to a worker, and on the worker, where the TLS
//! handshake and the deadline for the HTTP/2 preface apply.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream as StdTcpStream};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

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

/// Length of the HTTP/2 connection preface (RFC 9113, section 3.4). hyper's keepalive covers a connection
/// only after it.
const PREFACE_BYTES: usize = 24;

/// A connection on a worker's runtime.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    handshake: Option<Handshake>,
    _slot: WorkerSlot,
}

/// The remaining bytes of the connection preface, and the deadline for them.
#[derive(Debug)]
struct Handshake {
    missing_bytes: usize,
    deadline: Pin<Box<Sleep>>,
    failures: Counter,
}

#[derive(Debug)]
enum Stream {
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
    /// Registers the socket with the current runtime, and encrypts it with `tls` if that is set, unless it is
    /// a Unix socket. The connection fails unless it begins with HTTP/2 within `handshake_timeout`. A TLS
    /// handshake has the same time before that. `failures` counts connections that miss either deadline, and
    /// failed handshakes.
    pub(super) async fn adopt(
        (accepted, slot): (Accepted, WorkerSlot),
        tls: Option<Arc<ServerConfig>>,
        handshake_timeout: Duration,
        failures: Counter,
    ) -> io::Result<Self> {
        let address = accepted.address();
        let mut peer = Peer::new(address, None);
        let stream = match (accepted, tls) {
            (Accepted::Tcp(stream, _), None) => Stream::Tcp(TcpStream::from_std(stream)?),
            (Accepted::Unix(stream), _) => Stream::Unix(UnixStream::from_std(stream)?),
            (Accepted::Tcp(stream, _), Some(tls)) => {
                let handshake = TlsAcceptor::from(tls).accept(TcpStream::from_std(stream)?);
                let stream = tokio::time::timeout(handshake_timeout, handshake).await;
                let stream = stream.map_err(io::Error::from).flatten().inspect_err(|_| {
                    failures.inc();
                })?;
                let certificates = stream.get_ref().1.peer_certificates();
                peer = Peer::new(address, certificates.and_then(<[_]>::first));
                Stream::Tls(Box::new(stream))
            }
        };
        let deadline = Box::pin(tokio::time::sleep(handshake_timeout));
        let handshake = Some(Handshake { missing_bytes: PREFACE_BYTES, deadline, failures });
        Ok(Self { stream, peer, handshake, _slot: slot })
    }

    /// Returns the peer and its certificate.
    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Counts received bytes, and fails if the preface is incomplete when its deadline has passed.
    fn poll_handshake(&mut self, cx: &mut Context<'_>, received: usize) -> io::Result<()> {
        let Some(handshake) = &mut self.handshake else {
            return Ok(());
        };
        handshake.missing_bytes = handshake.missing_bytes.saturating_sub(received);
        if handshake.missing_bytes == 0 {
            self.handshake = None;
        } else if handshake.deadline.as_mut().poll(cx).is_ready() {
            handshake.failures.inc();
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = each!(&mut self.stream, stream => Pin::new(stream).poll_read(cx, buf));
        match self.poll_handshake(cx, buf.filled().len() - before) {
            Ok(()) => read,
            Err(late) => Poll::Ready(Err(late)),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut self.stream, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut self.stream, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(&self.stream, stream => stream.is_write_vectored())
    }
}
