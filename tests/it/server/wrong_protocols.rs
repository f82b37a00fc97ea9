//! Tests of clients that use another protocol than the address serves, with raw connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use keyvouch::conformance::api::new_key;
use keyvouch::repository::MemoryRepository;
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::certificates::{Authority, connect, is_served, with_tls};
use super::ops::count;
use crate::process::program::Home;
use crate::support::{TestServer, config, until, with_metrics};

const FAILED: &str = r#"keyvouch_connections_refused_total{reason="handshake"}"#;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
const TLS_HELLO: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03";
const PROXY_1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x01\xbb";

/// Sends `bytes`, and returns everything that the server sends until it closes the connection.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut received = Vec::new();
    stream.write_all(bytes).await?;
    stream.read_to_end(&mut received).await?;
    Ok(received)
}

/// Checks that the server closes the connection after these bytes without sending any.
async fn check_silence(address: SocketAddr, bytes: &[u8]) {
    let stream = TcpStream::connect(address).await.unwrap();
    // The connection can be reset, because the server has not read everything.
    let received = exchange(stream, bytes).await.or_else(|error| match error.kind() {
        std::io::ErrorKind::ConnectionReset => Ok(Vec::new()),
        _ => Err(error),
    });
    assert_eq!(received.unwrap(), b"", "{}", bytes.escape_ascii());
}

/// Checks a response to HTTP/1.1 whose text has `expected`.
fn check_http1(response: &[u8], expected: &str) {
    let text = String::from_utf8(response.to_owned()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 505 "), "{text}");
    assert!(head.contains("\r\nconnection: close") && body.contains(expected), "{text}");
    assert!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{text}");
    assert_eq!(body.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn wrong_protocols_on_a_plaintext_port_are_counted_and_closed() {
    let server = TestServer::start_with(MemoryRepository::new(), &with_metrics(config())).await;
    let (address, ops) = (server.address, server.ops.unwrap());
    let dial = async || TcpStream::connect(address).await.unwrap();
    let mut failed = 0.0;
    for bytes in [TLS_HELLO, PROXY_1, PROXY_2, b"PRI * HTTP/9.9\r\n", b"EHLO localhost\r\n", &[0; 100]] {
        // Checks of TCP are not failed handshakes.
        drop(dial().await);
        check_silence(address, bytes).await;
        failed += 1.0;
        until("the count", async || count(ops, FAILED).await >= failed).await;
    }
    let upgrade = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
    for request in [GET, &upgrade[..], b"POST /a HTTP/1.0\r\n\r\n"] {
        check_http1(&exchange(dial().await, request).await.unwrap(), "needs HTTP/2");
        failed += 1.0;
    }
    // The response arrives even if the server has not read the whole request.
    let body = vec![b'x'; 60 * 1024];
    let large = [&b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 61440\r\n\r\n"[..], &body].concat();
    check_http1(&exchange(dial().await, &large).await.unwrap(), "telemetry.listen");
    let head = exchange(dial().await, b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 505 ") && head.ends_with(b"\r\n\r\n"), "{}", head.escape_ascii());
    failed += 2.0;
    until("the count", async || count(ops, FAILED).await >= failed).await;
    // A preface that arrives in parts is sound.
    let mut slow = dial().await;
    for part in PREFACE.chunks(5) {
        slow.write_all(part).await.unwrap();
        slow.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut settings = [0; 9];
    slow.read_exact(&mut settings).await.unwrap();
    assert_eq!(settings[3], 4, "not a SETTINGS frame: {settings:?}");
    server.api().await.create(new_key()).await;
    assert!((count(ops, FAILED).await - failed).abs() < f64::EPSILON);
}

#[tokio::test]
async fn wrong_protocols_on_a_tls_port_are_counted_and_closed() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let config = with_metrics(with_tls(folder.path(), &authority.issue("localhost", 4096), None));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let (address, ops) = (server.address, server.ops.unwrap());
    let dial = async || TcpStream::connect(address).await.unwrap();
    let mut failed = 0.0;
    for bytes in [PREFACE, PROXY_1, PROXY_2, b"EHLO localhost\r\n"] {
        drop(dial().await);
        check_silence(address, bytes).await;
        failed += 1.0;
        until("the count", async || count(ops, FAILED).await >= failed).await;
    }
    check_http1(&exchange(dial().await, GET).await.unwrap(), "needs TLS and HTTP/2");
    // A client that begins with TLS, and then uses HTTP/1.1.
    let stream =
        without_alpn(&authority).connect("localhost".try_into().unwrap(), dial().await).await.unwrap();
    check_http1(&exchange(stream, GET).await.unwrap(), "needs HTTP/2");
    failed += 2.0;
    until("the count", async || count(ops, FAILED).await >= failed).await;
    assert!(is_served(connect(&server, &[&authority], None).await).await);
    assert!((count(ops, FAILED).await - failed).abs() < f64::EPSILON);
}

/// Returns a TLS client that does not negotiate HTTP/2.
fn without_alpn(authority: &Authority) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let root = rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// Sends `bytes` from the address `127.0.0.host` until the server closes the connection.
async fn send_from(host: u8, server: SocketAddr, bytes: &[u8]) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
    let stream = socket.connect(server).await.unwrap();
    // The connection can be reset, because the server has not read everything.
    let _ = exchange(stream, bytes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_protocols_are_logged_once_for_each_address() {
    let home = Home::new();
    let mut server = tokio::task::block_in_place(|| home.serve(&["telemetry.log_format=json"]));
    let address: SocketAddr = server.address.parse().unwrap();
    for _ in 0..3 {
        for (host, bytes) in [(2, GET), (3, GET), (2, PROXY_2), (4, TLS_HELLO), (5, &b"\0\0\0\0"[..])] {
            send_from(host, address, bytes).await;
        }
    }
    server.signal(Signal::TERM);
    assert_eq!(tokio::task::block_in_place(|| server.ended()), Some(0));
    let logged: Vec<_> = home.log().into_iter().filter(|entry| entry.get("protocol").is_some()).collect();
    let mut described: Vec<_> = logged
        .iter()
        .map(|entry| {
            assert_eq!((&entry["level"], &entry["left_out"]), (&"WARN".into(), &0.into()), "{entry}");
            (entry["peer"].as_str().unwrap(), entry["protocol"].as_str().unwrap())
        })
        .collect();
    described.sort_unstable();
    assert_eq!(
        described,
        [
            ("127.0.0.2", "HTTP/1.1"),
            ("127.0.0.2", "PROXY protocol"),
            ("127.0.0.3", "HTTP/1.1"),
            ("127.0.0.4", "TLS"),
            ("127.0.0.5", "unknown"),
        ]
    );
}
