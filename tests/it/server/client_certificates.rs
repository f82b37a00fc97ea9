//! Tests of client certificates, in the handshake and as credentials.

use std::time::Duration;

use keyvouch::config::ClientAuth;
use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::grpc::pb::key_store_client::KeyStoreClient;
use keyvouch::repository::MemoryRepository;

use super::certificates::{Authority, connect, connect_to, is_served, with_tls};
use crate::process::program::{Home, wait_for};
use crate::support::{TestServer, permission_denied, unauthenticated, until};

#[tokio::test]
async fn clients_need_a_certificate_of_the_right_authority() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&clients));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let trusted = [&authority];
    assert!(is_served(connect(&server, &trusted, Some(&clients.issue("a.example", 4096))).await).await);
    assert!(!is_served(connect(&server, &trusted, None).await).await, "a client without a certificate");
    for (wrong, why) in [
        (authority.issue("a.example", 4096), "of another authority"),
        (clients.issue("a.example", 2020), "expired"),
    ] {
        assert!(!is_served(connect(&server, &trusted, Some(&wrong)).await).await, "{why}");
    }
    config.server.tls.client_auth = ClientAuth::Optional;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    assert!(is_served(connect(&server, &trusted, None).await).await, "the token is sufficient");
    let wrong = authority.issue("a.example", 4096);
    assert!(
        !is_served(connect(&server, &trusted, Some(&wrong)).await).await,
        "an invalid certificate fails the handshake"
    );
}

#[tokio::test]
async fn a_client_certificate_is_a_credential_by_its_name() {
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
    let rejected = error_reason(service.create_key(new_key()).await);
    assert_eq!(rejected, permission_denied("PERMISSION_DENIED"));
    let mut stranger = KeyStoreClient::new(channel("spiffe://example.org/other").await);
    let rejected = error_reason(stranger.create_key(new_key()).await);
    assert_eq!(rejected, unauthenticated("CREDENTIAL_REQUIRED"));
}

/// The certificate expires on an open connection. Later calls are rejected, and the connection ends.
#[tokio::test]
async fn an_expired_certificate_is_not_accepted_as_a_credential() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["ops.example.org".into()];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let short = authority.issue_for("ops.example.org", Duration::from_secs(4));
    let channel = connect(&server, &[&authority], Some(&short)).await.unwrap();
    let mut admin = KeyStoreClient::new(channel);
    admin.create_key(new_key()).await.unwrap();
    let rejected = async || admin.clone().create_key(new_key()).await.is_err();
    until("the end of the certificate", rejected).await;
    for _ in 0..3 {
        admin.create_key(new_key()).await.unwrap_err();
    }
    assert!(!is_served(connect(&server, &[&authority], Some(&short)).await).await);
}

/// Somebody who configured another name than that of the certificate finds it in the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_names_of_an_unknown_certificate_are_logged() {
    let (home, authority) = (Home::new(), Authority::new());
    let config = with_tls(home.path(), &authority.issue("localhost", 4096), Some(&authority));
    let path = |setting: &str, path: &std::path::Path| format!("server.tls.{setting}={}", path.display());
    let settings = [
        path("cert_file", &config.server.tls.cert_file),
        path("key_file", &config.server.tls.key_file),
        path("client_ca_file", &config.server.tls.client_ca_file),
        "admin.client_certificates=spiffe://example.org/ops".to_owned(),
        "telemetry.log_format=json".to_owned(),
    ];
    let _server = home.spawn_server(&settings.each_ref().map(String::as_str));
    let listening = || {
        let stdout = home.read("stdout");
        let line = stdout.lines().find(|line| line.contains(" listens on "))?;
        line.rsplit(' ').next().unwrap().parse::<std::net::SocketAddr>().ok()
    };
    let address = tokio::task::block_in_place(|| wait_for("the address", listening));
    let own = authority.issue("spiffe://example.org/other", 4096);
    let channel = connect_to(address, &[&authority], Some(&own)).await.unwrap();
    let rejected = error_reason(KeyStoreClient::new(channel).create_key(new_key()).await);
    assert_eq!(rejected, unauthenticated("CREDENTIAL_REQUIRED"));
    let logged = || home.log().into_iter().find(|entry| entry["target"] == "keyvouch::audit");
    let entry = tokio::task::block_in_place(|| wait_for("the log entry", logged));
    assert_eq!(entry["certificate"], "URI:spiffe://example.org/other", "{entry}");
}

/// An authority that may issue certificates only for hosts could otherwise name an administrator with a URI
/// of the same text.
#[tokio::test]
async fn names_of_certificates_are_compared_by_their_type() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut config = with_tls(folder.path(), &authority.issue("localhost", 4096), Some(&authority));
    config.admin.client_certificates = vec!["ops.example.org".into()];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let uri = authority.issue_as(rcgen::SanType::URI("ops.example.org".try_into().unwrap()));
    let channel = connect(&server, &[&authority], Some(&uri)).await.unwrap();
    let rejected = error_reason(KeyStoreClient::new(channel).create_key(new_key()).await);
    assert_eq!(rejected, unauthenticated("CREDENTIAL_REQUIRED"));
    let dns = authority.issue("ops.example.org", 4096);
    let channel = connect(&server, &[&authority], Some(&dns)).await.unwrap();
    KeyStoreClient::new(channel).create_key(new_key()).await.unwrap();
}
