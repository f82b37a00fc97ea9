//! Recognises the protocol of a connection by its first bytes.
//!
//! They are read before HTTP/2 begins, because an HTTP/2 server sends its settings at once: to a client of
//! another protocol, they are garbage, and the reason for the failure is lost.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The connection preface of HTTP/2 (RFC 9113, section 3.4). It is longer than all other [`SIGNATURES`].
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First byte of a TLS connection: the content type of a handshake record (RFC 8446, section 5.1).
pub(super) const TLS_HANDSHAKE: u8 = 0x16;

/// The protocol that a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/2 without an upgrade, as gRPC needs it.
    Http2,
    /// HTTP/1.0 or HTTP/1.1. `is_head` is whether the response must not have a body.
    Http1 {
        is_head: bool,
    },
    /// The PROXY protocol, version 1 or 2, with which load balancers report the address of their client.
    Proxy,
    Tls,
    Unknown,
}

const SIGNATURES: [(&[u8], Protocol); 13] = [
    (PREFACE, Protocol::Http2),
    // The methods of RFC 9110, section 9, and RFC 5789.
    (b"GET ", Protocol::Http1 { is_head: false }),
    (b"HEAD ", Protocol::Http1 { is_head: true }),
    (b"POST ", Protocol::Http1 { is_head: false }),
    (b"PUT ", Protocol::Http1 { is_head: false }),
    (b"DELETE ", Protocol::Http1 { is_head: false }),
    (b"CONNECT ", Protocol::Http1 { is_head: false }),
    (b"OPTIONS ", Protocol::Http1 { is_head: false }),
    (b"TRACE ", Protocol::Http1 { is_head: false }),
    (b"PATCH ", Protocol::Http1 { is_head: false }),
    // <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, sections 2.1 and 2.2.
    (b"PROXY ", Protocol::Proxy),
    (b"\r\n\r\n\0\r\nQUIT\n", Protocol::Proxy),
    // All versions since SSL 3 have the major version 3.
    (&[TLS_HANDSHAKE, 3], Protocol::Tls),
];

impl Protocol {
    /// Returns the protocol that begins with `bytes`. `None` if more bytes are needed.
    fn of(bytes: &[u8]) -> Option<Self> {
        let known = SIGNATURES.iter().find(|(signature, _)| bytes.starts_with(signature));
        if let Some((_, protocol)) = known {
            return Some(*protocol);
        }
        let is_incomplete = SIGNATURES.iter().any(|(signature, _)| signature.starts_with(bytes));
        (!is_incomplete).then_some(Self::Unknown)
    }

    /// Reads bytes from `stream` until its protocol is recognised. If that is [`Http2`](Self::Http2), exactly
    /// [`PREFACE`] was read. Returns `None` if the client closes the connection without sending anything, and
    /// [`Unknown`](Self::Unknown) if it does so later.
    ///
    /// # Errors
    /// Returns an error if the stream can't be read.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut bytes = [0; PREFACE.len()];
        let mut length = 0;
        loop {
            if let Some(protocol) = Self::of(&bytes[..length]) {
                return Ok(Some(protocol));
            }
            match stream.read(&mut bytes[length..]).await? {
                0 => return Ok((length > 0).then_some(Self::Unknown)),
                read => length += read,
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http2 => "HTTP/2",
            Self::Http1 { .. } => "HTTP/1.1",
            Self::Proxy => "PROXY protocol",
            Self::Tls => "TLS",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const HTTP1: Protocol = Protocol::Http1 { is_head: false };

    /// Reads bytes that arrive one at a time before the client closes its side.
    async fn read(bytes: &[u8]) -> Option<Protocol> {
        let (mut client, mut server) = tokio::io::duplex(1);
        let bytes = bytes.to_owned();
        let writing = tokio::spawn(async move {
            for byte in bytes {
                // The reader stops as soon as it recognises the protocol.
                if client.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        });
        let protocol = Protocol::read(&mut server).await.unwrap();
        drop(server);
        writing.await.unwrap();
        protocol
    }

    #[tokio::test]
    async fn protocols_are_recognised_by_their_first_bytes() {
        for (bytes, expected) in [
            (&PREFACE[..], Protocol::Http2),
            (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", HTTP1),
            (b"POST /keyvouch.v1.Validator/Validate HTTP/1.1\r\n", HTTP1),
            (b"PUT / HTTP/1.0\r\n", HTTP1),
            (b"HEAD / HTTP/1.1\r\n", Protocol::Http1 { is_head: true }),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Protocol::Proxy),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Protocol::Proxy),
            (b"\x16\x03\x01\x02\0\x01", Protocol::Tls),
            // These share their first bytes with a known protocol.
            (b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", Protocol::Unknown),
            (b"PROPFIND / HTTP/1.1\r\n", Protocol::Unknown),
            (b"\r\n\r\nhello", Protocol::Unknown),
            (b"\x16\x02", Protocol::Unknown),
            (b"EHLO example.org\r\n", Protocol::Unknown),
            (b"\0\0\x04\x04\0", Protocol::Unknown),
        ] {
            assert_eq!(read(bytes).await, Some(expected), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_connection_that_closes_early_is_unknown_unless_it_sent_nothing() {
        assert_eq!(read(b"").await, None);
        for bytes in [&PREFACE[..23], b"GET", b"\x16"] {
            assert_eq!(read(bytes).await, Some(Protocol::Unknown), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn no_protocol_needs_more_bytes_than_the_preface() {
        for (signature, protocol) in SIGNATURES {
            assert!(signature.len() <= PREFACE.len());
            assert_eq!(Protocol::of(signature), Some(protocol), "another signature matches first");
        }
    }
}
