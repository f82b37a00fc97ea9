//! The handshake of a connection: TLS if it is configured, and the connection preface of HTTP/2. Clients of
//! HTTP/1.1 get a response that states what they need instead.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::first_bytes::{Protocol, TLS_HANDSHAKE};
use super::io::{Accepted, Stream};
use crate::grpc::Peer;

/// Maximum time for a response to HTTP/1.1, and maximum number of bytes of its request that are read.
const LINGER: Duration = Duration::from_secs(1);
const MAX_DISCARDED: u64 = 64 * 1024;

/// The reason why a connection is not served.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The client closed the connection, as health checks of TCP do.
    #[error("the client closed the connection before it sent anything")]
    Closed,
    /// The handshake exceeded its time limit.
    #[error("the client did not complete its handshake in time")]
    TimedOut(#[from] Elapsed),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// The client uses a protocol that this address does not serve.
    #[error("the client began with {}, not with {}", .0.protocol, .0.expected())]
    WrongProtocol(WrongProtocol),
    /// The socket failed.
    #[error("the connection failed")]
    Socket(#[from] io::Error),
}

/// The protocol of a client that is not served, and the one that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongProtocol {
    pub(super) protocol: Protocol,
    /// Whether the connection has to begin with TLS, and did not.
    pub(super) needs_tls: bool,
}

impl WrongProtocol {
    pub(super) fn expected(self) -> Protocol {
        if self.needs_tls { Protocol::Tls } else { Protocol::Http2 }
    }
}

impl HandshakeError {
    /// Returns whether the connection counts as a failed handshake.
    pub(super) fn is_failed_handshake(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Tls(_) | Self::WrongProtocol(_) => true,
            Self::Closed | Self::Socket(_) => false,
        }
    }
}

/// Completes the handshake of a connection: reads the preface of HTTP/2 within `limit`, and before that, if
/// `tls` is set, completes the TLS handshake in the same time. Unix sockets are never encrypted.
pub(super) async fn complete(
    accepted: Accepted,
    tls: Option<Arc<ServerConfig>>,
    limit: Duration,
) -> Result<(Stream, Peer), HandshakeError> {
    let address = accepted.address();
    let (mut stream, peer) = match (accepted, tls) {
        (Accepted::Tcp(stream, _), None) => {
            (Stream::Tcp(TcpStream::from_std(stream)?), Peer::new(address, None))
        }
        (Accepted::Unix(stream), _) => (Stream::Unix(UnixStream::from_std(stream)?), Peer::new(None, None)),
        (Accepted::Tcp(stream, _), Some(tls)) => {
            let stream = encrypt(TcpStream::from_std(stream)?, tls, limit).await?;
            let peer = peer_of(address, &stream);
            (Stream::Tls(Box::new(stream)), peer)
        }
    };
    let protocol = timeout(limit, Protocol::read(&mut stream)).await??.ok_or(HandshakeError::Closed)?;
    if protocol == Protocol::Http2 {
        return Ok((stream, peer));
    }
    Err(reject(&mut stream, WrongProtocol { protocol, needs_tls: false }).await)
}

fn peer_of(address: Option<IpAddr>, stream: &TlsStream<TcpStream>) -> Peer {
    let certificates = stream.get_ref().1.peer_certificates();
    Peer::new(address, certificates.and_then(<[_]>::first))
}

/// Completes the TLS handshake. The first byte shows whether the client uses TLS at all. rustls would answer
/// with an alert, which clients of other protocols can't read.
async fn encrypt(
    mut stream: TcpStream,
    tls: Arc<ServerConfig>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, HandshakeError> {
    let deadline = Instant::now() + limit;
    let mut first = [0];
    if timeout_at(deadline, stream.peek(&mut first)).await?? == 0 {
        return Err(HandshakeError::Closed);
    }
    if first[0] == TLS_HANDSHAKE {
        let handshake = timeout_at(deadline, TlsAcceptor::from(tls).accept(stream)).await?;
        return handshake.map_err(HandshakeError::Tls);
    }
    let protocol = timeout_at(deadline, Protocol::read(&mut stream)).await??;
    let protocol = protocol.ok_or(HandshakeError::Closed)?;
    Err(reject(&mut stream, WrongProtocol { protocol, needs_tls: true }).await)
}

/// Returns the error of a client that uses a wrong protocol, after a response to it if that is HTTP/1.1.
async fn reject(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), wrong: WrongProtocol) -> HandshakeError {
    if let Protocol::Http1 { is_head } = wrong.protocol {
        // The client may be gone, or may not read the response. That changes nothing.
        let _ = timeout(LINGER, respond(stream, wrong.needs_tls, is_head)).await;
    }
    HandshakeError::WrongProtocol(wrong)
}

async fn respond(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    needs_tls: bool,
    is_head: bool,
) -> io::Result<()> {
    let tls = if needs_tls { "TLS and " } else { "" };
    let body = format!(
        "This address serves gRPC, which needs {tls}HTTP/2 without an upgrade from HTTP/1.1.\n\
         Use a gRPC client. Probes and metrics are served by HTTP/1.1 at `telemetry.listen`.\n"
    );
    let head = format!(
        "HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !is_head {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await?;
    // If a socket is closed while it has unread data, the connection is reset, and the client can lose the
    // response.
    tokio::io::copy(&mut stream.take(MAX_DISCARDED), &mut tokio::io::sink()).await?;
    Ok(())
}
