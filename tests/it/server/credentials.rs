//! Tests of credentials and permissions.

use keyvouch::config::{Config, SecretText};
use keyvouch::conformance::api::{Api, new_key, refusal};
use keyvouch::grpc::pb;
use keyvouch::repository::{ErrorKind, MemoryRepository};
use prost::Message as _;
use tonic::Code;

use super::faulty::{Faulty, Mode};
use super::ops::count;
use crate::support::{TOKEN, TestServer, config, until};

fn refused(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

/// Calls the method at `path` with an empty message.
async fn call(server: &TestServer, path: &str, credential: Option<&str>) -> (Code, String) {
    let mut client = tonic::client::Grpc::new(server.channel().await);
    client.ready().await.unwrap();
    let mut request = tonic::Request::new(());
    if let Some(credential) = credential {
        let bearer = format!("Bearer {credential}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
    }
    refusal(client.unary(request, path.parse().unwrap(), tonic_prost::ProstCodec::<(), ()>::default()).await)
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
    let validates = pb::CreateKeyRequest { scopes: vec!["keyvouch.validate".into()], ..new_key() };
    let (_, validates) = server.api().await.create(validates).await;
    let methods = methods_of("KeyStore");
    assert!(methods.len() >= 10, "{methods:?}");
    for method in methods {
        assert_eq!(call(&server, &method, None).await, refused("CREDENTIAL_REQUIRED"), "{method}");
        let unknown = call(&server, &method, Some("another-token-of-enough-characters")).await;
        assert_eq!(unknown, refused("CREDENTIAL_INVALID"), "{method}");
        let lacks_permission = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
        assert_eq!(call(&server, &method, Some(&validates)).await, lacks_permission, "{method}");
    }
}

#[tokio::test]
async fn every_method_of_validator_needs_a_credential_where_settings_demand_it() {
    let mut config = config();
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let writes = pb::CreateKeyRequest { scopes: vec!["keyvouch.write".into()], ..new_key() };
    let (_, writes) = server.api().await.create(writes).await;
    for method in methods_of("Validator") {
        assert_eq!(call(&server, &method, None).await, refused("CREDENTIAL_REQUIRED"), "{method}");
        let lacks_permission = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
        assert_eq!(call(&server, &method, Some(&writes)).await, lacks_permission, "{method}");
    }
}

/// With open access, only a caller who may validate can request less staleness than the minimum. An
/// authenticated caller without that permission gets a specific error.
#[tokio::test]
async fn a_known_caller_without_permission_is_denied_in_open_access() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let request = |secret: &str| pb::ValidateRequest {
        secret: secret.to_owned(),
        max_staleness: Some(prost_types::Duration::default()),
        ..pb::ValidateRequest::default()
    };
    for (scope, denied) in [("keyvouch.write", true), ("keyvouch.validate", false), ("keyvouch.read", false)]
    {
        let caller = pb::CreateKeyRequest { scopes: vec![scope.into()], ..new_key() };
        let (_, secret) = server.api().await.create(caller).await;
        let caller = Api::new(server.channel().await, &secret);
        let answer = caller.admin_validator().validate(request(&secret)).await;
        if denied {
            assert_eq!(refusal(answer), (Code::PermissionDenied, "PERMISSION_DENIED".to_owned()), "{scope}");
        } else {
            assert!(answer.unwrap().into_inner().valid, "{scope}");
        }
    }
}

#[tokio::test]
async fn validator_asks_for_no_credential() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let stranger = Api::new(server.channel().await, "another-token-of-enough-characters");
    assert_eq!(stranger.reason(&secret).await, pb::Reason::Valid);
}

#[tokio::test]
async fn without_credentials_reserved_scopes_can_not_be_granted() {
    let mut config = Config { admin: keyvouch::config::AdminConfig::default(), ..config() };
    config.admin.insecure = true;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut anybody = pb::key_store_client::KeyStoreClient::new(server.channel().await);
    anybody.create_key(new_key()).await.unwrap();
    let reserved = pb::CreateKeyRequest { scopes: vec!["keyvouch.admin".into()], ..new_key() };
    assert_eq!(
        refusal(anybody.create_key(reserved).await),
        (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned())
    );
}

#[tokio::test]
async fn a_key_with_a_reserved_scope_is_rotated_only_by_who_could_grant_it() {
    let repository = MemoryRepository::new();
    let server = TestServer::start(repository.clone()).await;
    let reserved = pb::CreateKeyRequest { scopes: vec!["keyvouch.admin".into()], ..new_key() };
    let (key, _) = server.api().await.create(reserved).await;

    let mut config = config();
    config.admin.tokens = Vec::new();
    config.admin.insecure = true;
    let open = TestServer::start_with(repository, &config).await;
    let mut anybody = pb::key_store_client::KeyStoreClient::new(open.channel().await);
    let rotate = pb::RotateKeyRequest { id: key.id, ..pb::RotateKeyRequest::default() };
    assert_eq!(
        refusal(anybody.rotate_key(rotate.clone()).await),
        (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned())
    );
    server.api().await.key_store().rotate_key(rotate).await.unwrap();
}

#[tokio::test]
async fn several_tokens_work_side_by_side() {
    let mut config = config();
    config.admin.tokens.push(SecretText::from("next:the-next-admin-token-of-the-tests".to_owned()));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    for token in [TOKEN, "the-next-admin-token-of-the-tests"] {
        Api::new(server.channel().await, token).create(new_key()).await;
    }
}

#[test]
fn a_server_is_never_open_beyond_this_machine() {
    let mut config = config();
    config.server.listen = vec!["0.0.0.0:0".into()];
    config.admin.tokens = Vec::new();
    for (insecure, setting) in [(true, "admin.insecure"), (false, "server.listen")] {
        config.admin.insecure = insecure;
        assert_eq!(config.parse().unwrap_err().setting(), Some(setting));
    }
}

#[tokio::test]
async fn keys_open_what_their_scopes_name() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let with_scope = async |scope: &str| {
        let request = pb::CreateKeyRequest { scopes: vec![scope.to_owned()], ..new_key() };
        let (key, secret) = admin.create(request).await;
        (key, Api::new(server.channel().await, &secret))
    };
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
    let (key, reader) = with_scope("keyvouch.read").await;
    reader.get(&key.id).await;
    assert_eq!(refusal(reader.key_store().create_key(new_key()).await), denied);
    let revoke = || pb::RevokeKeyRequest { id: key.id.clone(), reason: String::new() };
    assert_eq!(refusal(reader.key_store().revoke_key(revoke()).await), denied);

    let (key_of_writer, writer) = with_scope("keyvouch.write").await;
    assert_eq!(refusal(writer.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await), denied);
    writer.create(new_key()).await;
    let events = admin.key_store().list_events(pb::ListEventsRequest::default()).await.unwrap().into_inner();
    assert_eq!(events.events[0].actor, format!("key:{}", key_of_writer.id));

    let (_, plain) = with_scope("write").await;
    assert_eq!(refusal(plain.key_store().create_key(new_key()).await), denied);
    let (_, all) = with_scope("keyvouch.admin").await;
    all.create(new_key()).await;
    all.get(&key.id).await;

    // A revoked key is rejected as a credential.
    writer.revoke(&key.id, "").await;
    let refused = refusal(reader.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await);
    assert_eq!(refused, (Code::Unauthenticated, "CREDENTIAL_INVALID".to_owned()));
}

#[tokio::test]
async fn a_writer_gains_no_scope_that_he_lacks() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let reserved = |scope: &str| pb::CreateKeyRequest { scopes: vec![scope.to_owned()], ..new_key() };
    let (_, secret) = admin.create(reserved("keyvouch.write")).await;
    let (key_of_admin, _) = admin.create(reserved("keyvouch.admin")).await;
    let (plain, _) = admin.create(new_key()).await;
    let writer = Api::new(server.channel().await, &secret);
    let mut key_store = writer.key_store();
    let denied = (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned());
    for scope in ["keyvouch.admin", "keyvouch.read", "keyvouch.validate", "keyvouch.future"] {
        assert_eq!(refusal(key_store.create_key(reserved(scope)).await), denied, "{scope}");
    }
    let rotate = pb::RotateKeyRequest { id: key_of_admin.id, ..pb::RotateKeyRequest::default() };
    assert_eq!(refusal(key_store.rotate_key(rotate).await), denied);
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { scopes: vec!["keyvouch.admin".into()], ..plain }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    assert_eq!(refusal(key_store.update_key(update).await), denied);
    let import = pb::ImportKeysRequest {
        allow_revoked_hash: false,
        hash: vec![7; 32],
        key: Some(pb::Key {
            name: "n".into(),
            owner_id: "o".into(),
            scopes: vec!["keyvouch.admin".into()],
            ..pb::Key::default()
        }),
    };
    let mut answers = key_store.import_keys(tokio_stream::iter([import])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(format!("{answer:?}").contains("keyvouch.admin"), "{answer:?}");
    writer.create(reserved("keyvouch.write")).await;
}

#[tokio::test]
async fn validate_can_need_a_credential() {
    let mut config = config();
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let admin = server.api().await;
    let (_, secret) = admin.create(new_key()).await;
    let request = || pb::ValidateRequest { secret: secret.clone(), ..pb::ValidateRequest::default() };
    let refused_without = refusal(admin.validator().validate(request()).await);
    assert_eq!(refused_without, refused("CREDENTIAL_REQUIRED"));
    admin.admin_validator().validate(request()).await.unwrap();
    let scopes = vec!["keyvouch.validate".to_owned()];
    let (_, own) = admin.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let service = Api::new(server.channel().await, &own);
    service.admin_validator().validate(request()).await.unwrap();
    let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
    assert_eq!(refusal(service.key_store().create_key(new_key()).await), denied);
    let plain = Api::new(server.channel().await, &secret);
    assert_eq!(refusal(plain.admin_validator().validate(request()).await), denied);
}

#[tokio::test]
async fn tokens_are_read_again_when_their_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config.admin.tokens_file = folder.path().join("tokens");
    config.telemetry.listen = "127.0.0.1:0".into();
    config.reload.interval = keyvouch::config::HumanDuration(std::time::Duration::from_millis(20));
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
    let refused = r#"keyvouch_reloads_total{files="admin_tokens",outcome="refused"}"#;
    until("the look at it", async || count(server.ops.unwrap(), refused).await > 0.0).await;
    assert!(works(new).await);
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
    assert_eq!(refusal(public.key_store().create_key(new_key()).await), unknown);
    let request = pb::ValidateRequest { secret, ..pb::ValidateRequest::default() };
    assert_eq!(refusal(admin.validator().validate(request).await), unknown);
}

#[tokio::test]
async fn a_key_that_is_a_credential_is_no_validation() {
    let mut config = config();
    config.telemetry.listen = "127.0.0.1:0".into();
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let reader = pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() };
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
async fn an_outage_makes_no_key_an_unknown_credential() {
    let store = Faulty::new();
    let mut config = config();
    let short = keyvouch::config::HumanDuration(std::time::Duration::from_millis(20));
    (config.cache.min_staleness, config.cache.max_staleness) = (short, short);
    config.feed.poll_interval = keyvouch::config::HumanDuration(std::time::Duration::from_millis(10));
    let server = TestServer::start_with(store.clone(), &config).await;
    let reader = pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() };
    let (key, secret) = server.api().await.create(reader).await;
    let reader = Api::new(server.channel().await, &secret);
    for kind in [ErrorKind::Unavailable, ErrorKind::Timeout] {
        store.set(Mode::Fail(kind));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let (code, _) = refusal(reader.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await);
        assert!(matches!(code, Code::Unavailable | Code::DeadlineExceeded), "{code:?}");
    }
}

#[tokio::test]
async fn an_open_door_for_administrators_here_is_none_for_callers_from_elsewhere() {
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
    assert_eq!(watches("127.0.0.1:0").await, (Ok(()), Ok(())), "all of it is on this machine");
    let refused = (Err(Code::Unauthenticated), Err(Code::Unauthenticated));
    assert_eq!(watches("0.0.0.0:0").await, refused);
}

#[tokio::test]
async fn a_writer_brings_no_administrator_s_key_back() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let expiring = pb::CreateKeyRequest {
        scopes: vec!["keyvouch.admin".into()],
        expiry: Some(pb::create_key_request::Expiry::Ttl(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        })),
        ..new_key()
    };
    let (key, secret) = admin.create(expiring).await;
    until("its end", async || admin.reason(&secret).await == pb::Reason::Expired).await;
    let writer = pb::CreateKeyRequest { scopes: vec!["keyvouch.write".into()], ..new_key() };
    let (_, writer) = admin.create(writer).await;
    let writer = Api::new(server.channel().await, &writer);
    let end = key.expire_time.unwrap();
    let longer = prost_types::Timestamp { seconds: end.seconds + 3_600, ..end };
    let prolong = pb::UpdateKeyRequest {
        key: Some(pb::Key { expire_time: Some(longer), ..key }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["expire_time".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    let refused = refusal(writer.key_store().update_key(prolong.clone()).await);
    assert_eq!(refused, (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned()));
    admin.key_store().update_key(prolong).await.unwrap();
}

/// A revoked credential can't continue a stream that it opened before.
#[tokio::test]
async fn an_open_import_ends_with_its_credential() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let writer = pb::CreateKeyRequest { scopes: vec!["keyvouch.write".into()], ..new_key() };
    let (key, secret) = admin.create(writer).await;
    let mut key_store = Api::new(server.channel().await, &secret).key_store();
    let (rows, sent) = tokio::sync::mpsc::channel(1);
    let row = |number: u8| pb::ImportKeysRequest {
        hash: vec![number; 32],
        key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
        ..pb::ImportKeysRequest::default()
    };
    rows.send(row(1)).await.unwrap();
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = key_store.import_keys(sent).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    admin.revoke(&key.id, "stolen").await;
    rows.send(row(2)).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
    let listed = admin.key_store().list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.keys.len(), 2, "the credential and the first row");
}

#[tokio::test]
async fn an_open_listing_ends_with_its_credential() {
    let store = MemoryRepository::new();
    let server = TestServer::start(store).await;
    let admin = server.api().await;
    for _ in 0..700 {
        // The keys together are larger than the client's window and the server's buffer.
        admin.create(pb::CreateKeyRequest { description: "x".repeat(1_000), ..new_key() }).await;
    }
    let reader = pb::CreateKeyRequest { scopes: vec!["keyvouch.read".into()], ..new_key() };
    let (key, secret) = admin.create(reader).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let small = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut key_store = Api::new(small.connect().await.unwrap(), &secret).key_store();
    let mut keys = key_store.stream_keys(pb::StreamKeysRequest::default()).await.unwrap().into_inner();
    keys.message().await.unwrap().unwrap();
    admin.revoke(&key.id, "stolen").await;
    let mut read = 1;
    let end = loop {
        match keys.message().await {
            Ok(Some(_)) => read += 1,
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::Unauthenticated, "after {read}");
    assert!(read < 700, "{read}");
}

/// A stream ends with its connection, however much is sent and read.
#[tokio::test]
async fn every_stream_ends_with_the_age_of_its_connection() {
    let mut config = config();
    config.server.max_connection_age = keyvouch::config::HumanDuration(std::time::Duration::from_millis(300));
    config.server.drain_timeout = keyvouch::config::HumanDuration(std::time::Duration::from_millis(300));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let (rows, sent) = tokio::sync::mpsc::channel(1);
    let writing = tokio::spawn(async move {
        for number in 0_u32.. {
            let row = pb::ImportKeysRequest {
                hash: [number.to_be_bytes(); 8].concat(),
                key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
                ..pb::ImportKeysRequest::default()
            };
            if rows.send(row).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = server.api().await.key_store().import_keys(sent).await.unwrap().into_inner();
    let end = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        }
    });
    let end = end.await.expect("it goes on for ever").unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    drop(answers);
    writing.await.unwrap();
}
