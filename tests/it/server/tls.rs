//! Tests of TLS with real handshakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyvouch::app::{App, Surroundings};
use keyvouch::config::ClientAuth;
use keyvouch::config::{Config, HumanDuration, TlsConfig};
use keyvouch::conformance::api::{Api, new_key, refusal};
use keyvouch::grpc::pb;
use keyvouch::grpc::pb::key_store_client::KeyStoreClient;
use keyvouch::repository::MemoryRepository;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::ops::count;
use crate::process::program::Home;
use crate::support::{TOKEN, TestServer, config, until};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
pub(crate) struct Pair(pub(crate) String, pub(crate) String);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a DNS name that is valid for `length` from now on.
    fn issue_for(&self, name: &str, length: Duration) -> Pair {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = keyvouch::domain::Clock::now(&keyvouch::domain::SystemClock).as_micros();
        let now = std::time::UNIX_EPOCH + Duration::from_micros(u64::try_from(now).unwrap());
        params.not_after = (now + length).into();
        self.sign(params)
    }

    /// Issues a certificate for a name of this type.
    fn issue_as(&self, name: rcgen::SanType) -> Pair {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair(params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Issues a certificate for a DNS name or a URI, valid until the beginning of `year`.
    pub(crate) fn issue(&self, name: &str, year: i32) -> Pair {
        let mut params = CertificateParams::default();
        let name = name.try_into().unwrap();
        let is_uri = str::contains(rcgen::string::Ia5String::as_str(&name), "://");
        params.subject_alt_names =
            vec![if is_uri { rcgen::SanType::URI(name) } else { rcgen::SanType::DnsName(name) }];
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.sign(params)
    }
}

/// Writes the files that a server is configured with. Returns their paths.
fn write(folder: &Path, pair: &Pair) -> (PathBuf, PathBuf) {
    let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
    std::fs::write(&certificate, &pair.0).unwrap();
    std::fs::write(&key, &pair.1).unwrap();
    (certificate, key)
}

fn with_tls(folder: &Path, pair: &Pair, client_ca: Option<&Authority>) -> Config {
    let (cert_file, key_file) = write(folder, pair);
    let mut config = config();
    config.server.tls = TlsConfig { cert_file, key_file, ..TlsConfig::default() };
    config.reload.interval = HumanDuration(Duration::from_millis(20));
    if let Some(authority) = client_ca {
        config.server.tls.client_ca_file = folder.join("clients.pem");
        std::fs::write(&config.server.tls.client_ca_file, authority.pem()).unwrap();
    }
    config
}

async fn connect(
    server: &TestServer,
    trusted: &[&Authority],
    own: Option<&Pair>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().domain_name("localhost");
    tls = tls.ca_certificates(trusted.iter().map(|authority| Certificate::from_pem(authority.pem())));
    if let Some(Pair(certificate, key)) = own {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await
}

/// Returns whether a call succeeds. With TLS 1.3, a client learns only from a call that its certificate was
/// rejected.
async fn is_served(channel: Result<Channel, tonic::transport::Error>) -> bool {
    match channel {
        Ok(channel) => Api::new(channel, TOKEN).key_store().create_key(new_key()).await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn calls_are_encrypted_and_the_server_is_verified() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let config = with_tls(folder.path(), &authority.issue("localhost", 4096), None);
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(is_served(connect(&server, &[&authority], None).await).await);
    assert!(connect(&server, &[&Authority::new()], None).await.is_err(), "signed by somebody else");
    let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    assert!(!is_served(plain.connect().await).await, "never plaintext");

    let expired = tempfile::tempdir().unwrap();
    let config = with_tls(expired.path(), &authority.issue("localhost", 2020), None);
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(connect(&server, &[&authority], None).await.is_err(), "expired");
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_right_authority() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&clients));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let trusted = [&authority];
    assert!(is_served(connect(&server, &trusted, Some(&clients.issue("a.example", 4096))).await).await);
    assert!(!is_served(connect(&server, &trusted, None).await).await, "none");
    for (wrong, why) in [
        (authority.issue("a.example", 4096), "of another authority"),
        (clients.issue("a.example", 2020), "expired"),
    ] {
        assert!(!is_served(connect(&server, &trusted, Some(&wrong)).await).await, "{why}");
    }
    config.server.tls.client_auth = ClientAuth::Optional;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(is_served(connect(&server, &trusted, None).await).await, "the token will do");
    let wrong = authority.issue("a.example", 4096);
    assert!(!is_served(connect(&server, &trusted, Some(&wrong)).await).await, "a false one will not");
}

#[tokio::test]
async fn a_certificate_is_a_credential_by_its_name() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["spiffe://example.org/ops".into()];
    config.validator.client_certificates = vec!["api.example.org".into()];
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let channel =
        async |name: &str| connect(&server, &[&authority], Some(&authority.issue(name, 4096))).await.unwrap();
    let mut admin = KeyStoreClient::new(channel("spiffe://example.org/ops").await);
    let created = admin.create_key(new_key()).await.unwrap().into_inner();
    let events = admin.list_events(pb::ListEventsRequest::default()).await.unwrap().into_inner().events;
    assert_eq!(events[0].actor, "certificate:spiffe://example.org/ops");
    let service = Api::new(channel("api.example.org").await, "no-token-at-all-but-a-certificate");
    assert_eq!(service.reason(&created.secret).await, pb::Reason::Valid);
    let mut service = KeyStoreClient::new(channel("api.example.org").await);
    let refused = refusal(service.create_key(new_key()).await);
    assert_eq!(refused, (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()));
    let mut stranger = KeyStoreClient::new(channel("spiffe://example.org/other").await);
    let refused = refusal(stranger.create_key(new_key()).await);
    assert_eq!(refused, (Code::Unauthenticated, "CREDENTIAL_REQUIRED".to_owned()));
}

#[tokio::test]
async fn half_a_pair_and_what_is_none_stop_the_start() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let good = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    let refused = async |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = good.clone();
        change(&mut config.server.tls);
        let settings = match config.parse() {
            Ok(settings) => settings,
            Err(error) => return error.to_string(),
        };
        // What `config check` rejects, and nothing else, does not start.
        let invalid = settings.check_files().unwrap_err().to_string();
        let backend = MemoryRepository::new();
        let error = App::with_backend(&settings, Surroundings::default(), backend).await.unwrap_err();
        assert_eq!(error.to_string(), invalid);
        invalid
    };
    let (other, garbage) = (folder.path().join("other.key"), folder.path().join("garbage.pem"));
    std::fs::write(&other, authority.issue("localhost", 4096).1).unwrap();
    std::fs::write(&garbage, "hunter2").unwrap();
    for (told, named) in [
        (refused(&|tls| tls.key_file = PathBuf::new()).await, "server.tls.key_file"),
        (refused(&|tls| tls.cert_file = PathBuf::new()).await, "server.tls.cert_file"),
        (refused(&|tls| tls.cert_file = "/nowhere.pem".into()).await, "/nowhere.pem"),
        (refused(&|tls| tls.cert_file.clone_from(&garbage)).await, "server.tls.cert_file"),
        (refused(&|tls| tls.key_file.clone_from(&garbage)).await, "server.tls.key_file"),
        (refused(&|tls| tls.key_file.clone_from(&other)).await, "does not match private key"),
        (refused(&|tls| tls.client_ca_file.clone_from(&garbage)).await, "server.tls.client_ca_file"),
    ] {
        assert!(told.contains(named) && !told.contains("hunter2"), "{told}");
    }
}

/// New certificates apply to new connections. Calls on existing connections continue, and none fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_under_load() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let mut config = with_tls(folder.path(), &old.issue("localhost", 4096), None);
    config.telemetry.listen = "127.0.0.1:0".into();
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
    until("the new one", async || connect(&server, &[&both[1]], None).await.is_ok()).await;
    all_made_calls().await;
    // A certificate that does not match its key is reported, and the previous one stays in use.
    std::fs::write(folder.path().join("server.key"), both[0].issue("localhost", 4096).1).unwrap();
    let ops = server.ops.unwrap();
    let refused = r#"keyvouch_reloads_total{files="certificates",outcome="refused"}"#;
    until("the look at it", async || count(ops, refused).await > 0.0).await;
    let expiry = count(ops, "keyvouch_tls_certificate_expiry_timestamp_seconds").await;
    assert!((expiry - 67_090_118_400.0).abs() < f64::EPSILON, "the beginning of 4096: {expiry}");
    assert!(is_served(connect(&server, &[&both[1]], None).await).await);
    all_made_calls().await;
    is_over.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_its_certificate() {
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

/// The certificate expires on an open connection. Later calls are rejected, and the connection ends.
#[tokio::test]
async fn an_expired_certificate_is_no_credential_any_more() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["ops.example.org".into()];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let short = authority.issue_for("ops.example.org", Duration::from_secs(4));
    let channel = connect(&server, &[&authority], Some(&short)).await.unwrap();
    let mut admin = KeyStoreClient::new(channel);
    admin.create_key(new_key()).await.unwrap();
    let refused = async || admin.clone().create_key(new_key()).await.is_err();
    until("the end of the certificate", refused).await;
    for _ in 0..3 {
        admin.create_key(new_key()).await.unwrap_err();
    }
    assert!(!is_served(connect(&server, &[&authority], Some(&short)).await).await);
}

/// An authority that may issue certificates only for hosts could otherwise name an administrator with a URI
/// of the same text.
#[tokio::test]
async fn a_name_of_another_type_is_another_name() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["ops.example.org".into()];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let uri = authority.issue_as(rcgen::SanType::URI("ops.example.org".try_into().unwrap()));
    let channel = connect(&server, &[&authority], Some(&uri)).await.unwrap();
    let refused = refusal(KeyStoreClient::new(channel).create_key(new_key()).await);
    assert_eq!(refused, (Code::Unauthenticated, "CREDENTIAL_REQUIRED".to_owned()));
    let dns = authority.issue("ops.example.org", 4096);
    let channel = connect(&server, &[&authority], Some(&dns)).await.unwrap();
    KeyStoreClient::new(channel).create_key(new_key()).await.unwrap();
}
