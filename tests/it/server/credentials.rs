//! Tests of authentication: which methods need a credential, and which credentials are accepted.

use std::time::Duration;

use keyvouch::config::{HumanDuration, SecretText};
use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::{ErrorKind, MemoryRepository};
use prost::Message as _;
use tonic::Code;

use super::faulty::{Faulty, Mode};
use super::ops::count;
use crate::support::{
    TOKEN, TestServer, config, key_with_scope, permission_denied, unauthenticated, until, validate_request,
    with_metrics,
};

/// Calls the method at `path` with an empty message.
async fn call(server: &TestServer, path: &str, credential: Option<&str>) -> (Code, String) {
    let mut client = tonic::client::Grpc::new(server.channel().await);
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(());
    if let Some(credential) = credential {
        let bearer = format!("Bearer {credential}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    error_reason(
        client.unary(request, path.parse().unwrap(), tonic_prost::ProstCodec::<(), ()>::default()).await,
    )
}

fn methods_of(service: &str) -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap().file;
    let services = files.into_iter().flat_map(|file| file.service);
    let methods = services.filter(|it| it.name() == service).flat_map(|service| service.method);
    methods.map(|method| format!("/keyvouch.v1.{service}/{}", method.name())).collect()
}

#[tokio::test]
async fn every_method_of_key_store_needs_a_credential() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let validates = key_with_scope("keyvouch.validate");
    let (_, validates) = server.api().await.create(validates).await;
    let methods = methods_of("KeyStore");
    assert!(methods.len() >= 10, "{methods:?}");
    for method in methods {
        assert_eq!(call(&server, &method, None).await, unauthenticated("CREDENTIAL_REQUIRED"), "{method}");
        let unknown = call(&server, &method, Some("another-token-of-enough-characters")).await;
        assert_eq!(unknown, unauthenticated("CREDENTIAL_INVALID"), "{method}");
        let lacks_permission = permission_denied("PERMISSION_DENIED");
        assert_eq!(call(&server, &method, Some(&validates)).await, lacks_permission, "{method}");
    }
}

#[tokio::test]
async fn every_method_of_validator_needs_a_credential_if_access_is_credential() {
    let mut config = config();
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let writes = key_with_scope("keyvouch.write");
    let (_, writes) = server.api().await.create(writes).await;
    for method in methods_of("Validator") {
        assert_eq!(call(&server, &method, None).await, unauthenticated("CREDENTIAL_REQUIRED"), "{method}");
        let lacks_permission = permission_denied("PERMISSION_DENIED");
        assert_eq!(call(&server, &method, Some(&writes)).await, lacks_permission, "{method}");
    }
}

#[tokio::test]
async fn open_access_to_validator_needs_no_credential() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let stranger = Api::new(server.channel().await, "another-token-of-enough-characters");
    assert_eq!(stranger.reason(&secret).await, pb::Reason::Valid);
}

#[tokio::test]
async fn validate_accepts_credentials_with_the_permission_to_validate() {
    let mut config = config();
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let admin = server.api().await;
    let (_, secret) = admin.create(new_key()).await;
    let request = || validate_request(&secret);
    let without_credential = error_reason(admin.validator().validate(request()).await);
    assert_eq!(without_credential, unauthenticated("CREDENTIAL_REQUIRED"));
    admin.admin_validator().validate(request()).await.unwrap();
    let scopes = vec!["keyvouch.validate".to_owned()];
    let (_, own) = admin.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let service = Api::new(server.channel().await, &own);
    service.admin_validator().validate(request()).await.unwrap();
    let denied = permission_denied("PERMISSION_DENIED");
    assert_eq!(error_reason(service.key_store().create_key(new_key()).await), denied);
    let plain = Api::new(server.channel().await, &secret);
    assert_eq!(error_reason(plain.admin_validator().validate(request()).await), denied);
}

#[tokio::test]
async fn several_admin_tokens_are_accepted() {
    let mut config = config();
    config.admin.tokens.push(SecretText::from("next:the-next-admin-token-of-the-tests".to_owned()));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    for token in [TOKEN, "the-next-admin-token-of-the-tests"] {
        Api::new(server.channel().await, token).create(new_key()).await;
    }
}

#[tokio::test]
async fn the_token_file_is_reloaded_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = with_metrics(config());
    config.admin.tokens_file = folder.path().join("tokens");
    config.reload.interval = HumanDuration(Duration::from_millis(20));
    let (old, new) = ("the-old-token-of-this-test", "the-new-token-of-this-test");
    std::fs::write(&config.admin.tokens_file, format!("old:{old}\n")).unwrap();
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let works = async |token: &str| {
        Api::new(server.channel().await, token).key_store().create_key(new_key()).await.is_ok()
    };
    assert!(works(old).await && !works(new).await);
    std::fs::write(&config.admin.tokens_file, format!("new:{new}\n")).unwrap();
    until("the new token", async || works(new).await).await;
    assert!(!works(old).await && works(TOKEN).await);
    // A file that is not valid changes nothing.
    std::fs::write(&config.admin.tokens_file, "nonsense\n").unwrap();
    let series = r#"keyvouch_reloads_total{files="admin_tokens",outcome="refused"}"#;
    until("the rejected reload", async || count(server.ops.unwrap(), series).await > 0.0).await;
    assert!(works(new).await);
}

#[test]
fn a_public_address_needs_a_credential() {
    let mut config = config();
    config.server.listen = vec!["0.0.0.0:0".into()];
    config.admin.tokens = Vec::new();
    for (insecure, setting) in [(true, "admin.insecure"), (false, "server.listen")] {
        config.admin.insecure = insecure;
        assert_eq!(config.parse().unwrap_err().setting(), Some(setting));
    }
}

#[tokio::test]
async fn open_administration_on_a_unix_socket_does_not_open_a_public_validator() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    (config.admin.tokens, config.admin.insecure) = (Vec::new(), true);
    let watches = async |listen: &str| {
        let socket = folder.path().join(listen);
        let mut config = config.clone();
        config.server.listen = vec![listen.to_owned()];
        config.server.admin_listen = vec![format!("unix:{}", socket.display())];
        let server = TestServer::start_with(MemoryRepository::new(), &config).await;
        let mut admin = {
            let uri = format!("unix:{}", socket.display());
            let channel = tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
            pb::key_store_client::KeyStoreClient::new(channel)
        };
        let secret = admin.create_key(new_key()).await.unwrap().into_inner().secret;
        let port = server.address.port();
        let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let mut anybody = pb::validator_client::ValidatorClient::new(channel.connect().await.unwrap());
        let fresh = pb::ValidateRequest {
            secret,
            max_staleness: Some(prost_types::Duration::default()),
            ..pb::ValidateRequest::default()
        };
        let fresh = anybody.validate(fresh).await.map(|_| ()).map_err(|status| status.code());
        let watch = anybody.watch_changes(pb::WatchChangesRequest::default()).await;
        (fresh, watch.map(|_| ()).map_err(|status| status.code()))
    };
    assert_eq!(watches("127.0.0.1:0").await, (Ok(()), Ok(())), "all listeners are on this machine");
    let rejected = (Err(Code::Unauthenticated), Err(Code::Unauthenticated));
    assert_eq!(watches("0.0.0.0:0").await, rejected);
}

#[tokio::test]
async fn key_store_can_have_an_address_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let mut config = config();
    config.server.admin_listen = vec![format!("unix:{}", socket.display())];
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let uri = format!("unix:{}", socket.display());
    let channel = tonic::transport::Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let admin = Api::new(channel, TOKEN);
    let (_, secret) = admin.create(new_key()).await;
    let public = server.api().await;
    assert_eq!(public.reason(&secret).await, pb::Reason::Valid);
    let unknown = (Code::Unimplemented, "METHOD_UNKNOWN".to_owned());
    assert_eq!(error_reason(public.key_store().create_key(new_key()).await), unknown);
    let request = validate_request(&secret);
    assert_eq!(error_reason(admin.validator().validate(request).await), unknown);
}

#[tokio::test]
async fn authentication_with_a_key_does_not_count_as_a_validation() {
    let config = with_metrics(config());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let reader = key_with_scope("keyvouch.read");
    let (key, secret) = server.api().await.create(reader).await;
    let reader = Api::new(server.channel().await, &secret);
    assert_eq!(reader.get(&key.id).await.id, key.id);
    let allowed = r#"keyvouch_validations_total{reason="allowed"}"#;
    let ops = server.ops.unwrap();
    assert!(count(ops, allowed).await.abs() < f64::EPSILON);
    assert_eq!(reader.reason(&secret).await, pb::Reason::Valid);
    assert!((count(ops, allowed).await - 1.0).abs() < f64::EPSILON);
}

/// A failed lookup of a credential is not reported as an unknown credential. Otherwise a client would discard
/// its key.
#[tokio::test]
async fn a_failed_lookup_does_not_make_a_credential_invalid() {
    let backend = Faulty::new();
    let mut config = config();
    let short = HumanDuration(Duration::from_millis(20));
    (config.cache.min_staleness, config.cache.max_staleness) = (short, short);
    config.feed.poll_interval = HumanDuration(Duration::from_millis(10));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let reader = key_with_scope("keyvouch.read");
    let (key, secret) = server.api().await.create(reader).await;
    let reader = Api::new(server.channel().await, &secret);
    for kind in [ErrorKind::Unavailable, ErrorKind::Timeout] {
        backend.set(Mode::Fail(kind));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (code, _) =
            error_reason(reader.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await);
        assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
    }
}
