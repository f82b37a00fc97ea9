//! Tests of TLS with real handshakes: the server's certificate, its settings and its reload.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use keyvouch::app::{App, Surroundings};
use keyvouch::config::TlsConfig;
use keyvouch::conformance::api::{Api, new_key};
use keyvouch::repository::MemoryRepository;
use tonic::transport::Endpoint;

use super::certificates::{Authority, Pair, connect, is_served, with_tls, write};
use super::ops::count;
use crate::process::program::Home;
use crate::support::{TOKEN, TestServer, until, with_metrics};

#[tokio::test]
async fn calls_are_encrypted_and_the_server_is_verified() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let config = with_tls(folder.path(), &authority.issue("localhost", 4096), None);
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(is_served(connect(&server, &[&authority], None).await).await);
    assert!(connect(&server, &[&Authority::new()], None).await.is_err(), "signed by another authority");
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    assert!(!is_served(plain.connect().await).await, "plaintext is not served");

    let expired = tempfile::tempdir().unwrap();
    let config = with_tls(expired.path(), &authority.issue("localhost", 2020), None);
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(connect(&server, &[&authority], None).await.is_err(), "expired");
}

#[tokio::test]
async fn missing_or_invalid_certificate_files_prevent_the_startup() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let good = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    let error_of = async |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = good.clone();
        change(&mut config.server.tls);
        let settings = match config.parse() {
            Ok(settings) => settings,
            Err(error) => return error.to_string(),
        };
        // `config check` rejects the same files as the startup.
        let invalid = settings.check_files().unwrap_err().to_string();
        let backend = MemoryRepository::new();
        let error = App::with_backend(&settings, Surroundings::default(), backend).await.unwrap_err();
        assert_eq!(error.to_string(), invalid);
        invalid
    };
    let (other, garbage) = (folder.path().join("other.key"), folder.path().join("garbage.pem"));
    std::fs::write(&other, authority.issue("localhost", 4096).1).unwrap();
    std::fs::write(&garbage, "hunter2").unwrap();
    for (error, expected) in [
        (error_of(&|tls| tls.key_file = PathBuf::new()).await, "server.tls.key_file"),
        (error_of(&|tls| tls.cert_file = PathBuf::new()).await, "server.tls.cert_file"),
        (error_of(&|tls| tls.cert_file = "/nowhere.pem".into()).await, "/nowhere.pem"),
        (error_of(&|tls| tls.cert_file.clone_from(&garbage)).await, "server.tls.cert_file"),
        (error_of(&|tls| tls.key_file.clone_from(&garbage)).await, "server.tls.key_file"),
        (error_of(&|tls| tls.key_file.clone_from(&other)).await, "does not match private key"),
        (error_of(&|tls| tls.client_ca_file.clone_from(&garbage)).await, "server.tls.client_ca_file"),
    ] {
        assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
    }
}

/// New certificates apply to new connections. Calls on existing connections continue, and none fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_reloaded_without_failed_calls() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let config = with_metrics(with_tls(folder.path(), &old.issue("localhost", 4096), None));
    let server = Arc::new(TestServer::start_with(MemoryRepository::new(), &config).await);
    let is_over = Arc::new(AtomicBool::new(false));
    let calls: Arc<[AtomicU64; 4]> = Arc::default();
    let both = Arc::new([old, new]);
    let load: Vec<_> = (0..calls.len())
        .map(|number| {
            let (server, both, is_over) = (Arc::clone(&server), Arc::clone(&both), Arc::clone(&is_over));
            let calls = Arc::clone(&calls);
            tokio::spawn(async move {
                let trusted = [&both[0], &both[1]];
                let mut channel = connect(&server, &trusted, None).await.unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    if number % 2 == 0 {
                        channel = connect(&server, &trusted, None).await.unwrap();
                    }
                    Api::new(channel.clone(), TOKEN).create(new_key()).await;
                    calls[number].fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // All clients continue, with new connections or with their first one.
    let all_made_calls = async || {
        let now = || calls.each_ref().map(|calls| calls.load(Ordering::Relaxed));
        let before = now();
        until("calls", async || now().iter().zip(before).all(|(now, before)| *now >= before + 5)).await;
    };
    all_made_calls().await;
    write(folder.path(), &both[1].issue("localhost", 4096));
    until("the new certificate", async || connect(&server, &[&both[1]], None).await.is_ok()).await;
    all_made_calls().await;
    // A certificate that does not match its key is reported, and the previous one stays in use.
    std::fs::write(folder.path().join("server.key"), both[0].issue("localhost", 4096).1).unwrap();
    let ops = server.ops.unwrap();
    let series = r#"keyvouch_reloads_total{files="certificates",outcome="refused"}"#;
    until("the rejected reload", async || count(ops, series).await > 0.0).await;
    let expiry = count(ops, "keyvouch_tls_certificate_expiry_timestamp_seconds").await;
    assert!((expiry - 67_090_118_400.0).abs() < f64::EPSILON, "not the beginning of 4096: {expiry}");
    assert!(is_served(connect(&server, &[&both[1]], None).await).await);
    all_made_calls().await;
    is_over.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_uses_a_client_certificate() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["ops.example.org".into()];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let Pair(certificate, key) = authority.issue("ops.example.org", 4096);
    let (ca, certificate, key) =
        (file("ca.pem", &authority.pem()), file("own.pem", &certificate), file("own.key", &key));
    let address = format!("https://{}", server.address);
    let run = async |command: &[&str], credentials: &[&str]| {
        let named = ["--addr", &address, "--ca-file", &ca, "--server-name", "localhost"];
        let arguments: Vec<_> =
            [command, &named, credentials].concat().into_iter().map(str::to_owned).collect();
        let run = move || Home::new().run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let own = ["--cert-file", &certificate, "--cert-key-file", &key];
    for command in [&["healthcheck"][..], &["key", "list"]] {
        let done = run(command, &own).await;
        assert_eq!(done.status, 0, "{command:?}: {}", done.stderr);
        let done = run(command, &[]).await;
        assert_eq!(done.status, 1, "{command:?} without a certificate: {}", done.stdout);
        assert!(done.stderr.contains("--cert-file"), "{}", done.stderr);
    }
    let Pair(stranger, stranger_key) = Authority::new().issue("ops.example.org", 4096);
    let (stranger, stranger_key) = (file("stranger.pem", &stranger), file("stranger.key", &stranger_key));
    let done = run(&["key", "list"], &["--cert-file", &stranger, "--cert-key-file", &stranger_key]).await;
    assert!(done.stderr.contains("client certificate"), "{}", done.stderr);
    let unknown = ["healthcheck", "--addr", &address, "--server-name", "localhost"].map(str::to_owned);
    let unverified = move || Home::new().run(&unknown.each_ref().map(String::as_str));
    let done = tokio::task::spawn_blocking(unverified).await.unwrap();
    assert!(done.stderr.contains("--ca-file"), "{}", done.stderr);
    let half = run(&["healthcheck"], &own[..2]).await;
    assert!(half.stderr.contains("belong together"), "{}", half.stderr);
}

/// Connects with a client that stores sessions. Returns whether the session was resumed.
async fn resumes(connector: &tokio_rustls::TlsConnector, server: &TestServer) -> std::io::Result<bool> {
    let stream = tokio::net::TcpStream::connect(server.address).await?;
    let name = "localhost".try_into().unwrap();
    let mut stream = connector.connect(name, stream).await?;
    // Tickets arrive after the handshake.
    let (mut client, connection) = {
        use tokio::io::AsyncWriteExt as _;
        stream.flush().await?;
        let kind = stream.get_ref().1.handshake_kind();
        let is_resumed = matches!(kind, Some(rustls::HandshakeKind::Resumed));
        let (client, connection) = h2::client::handshake(stream).await.map_err(std::io::Error::other)?;
        ((client, is_resumed), connection)
    };
    tokio::spawn(connection);
    let request = http::Request::post("https://localhost/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .body(())
        .unwrap();
    let (answer, mut body) = client.0.send_request(request, false).map_err(std::io::Error::other)?;
    body.send_data(vec![0; 5].into(), true).map_err(std::io::Error::other)?;
    answer.await.map_err(std::io::Error::other)?;
    Ok(client.1)
}

fn connector(
    authority: &Authority,
    own: &Pair,
    version: &'static rustls::SupportedProtocolVersion,
) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = rustls::pki_types::CertificateDer::from_pem_slice(own.0.as_bytes()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(own.1.as_bytes()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// A resumed session would not be verified again, and would outlive the client's certificate.
#[tokio::test]
async fn sessions_of_clients_with_certificates_are_not_resumed() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let pair = authority.issue("localhost", 4096);
    let config = with_tls(folder.path(), &pair, Some(&authority));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let without = with_tls(folder.path(), &pair, None);
    let plain = TestServer::start_with(MemoryRepository::new(), &without).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let own = authority.issue("ops.example.org", 4096);
        let connector = connector(&authority, &own, version);
        for _ in 0..3 {
            assert!(!resumes(&connector, &server).await.unwrap(), "{version:?}");
        }
        // Without client certificates, sessions are resumed. This shows that the test can fail.
        let connector = self::connector(&authority, &own, version);
        assert!(!resumes(&connector, &plain).await.unwrap());
        assert!(resumes(&connector, &plain).await.unwrap(), "{version:?}");
    }
}
