//! Tests of authorization: the permissions that scopes grant, and who can grant them.

use keyvouch::config::Config;
use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;

use crate::support::{TestServer, config, key_with_scope, permission_denied, unauthenticated, until};

/// With open access, only a caller who may validate can request less staleness than the minimum. An
/// authenticated caller without that permission gets a specific error.
#[tokio::test]
async fn fresh_answers_need_a_permission_even_with_open_access() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let request = |secret: &str| pb::ValidateRequest {
        secret: secret.to_owned(),
        max_staleness: Some(prost_types::Duration::default()),
        ..pb::ValidateRequest::default()
    };
    for (scope, denied) in [("keyvouch.write", true), ("keyvouch.validate", false), ("keyvouch.read", false)]
    {
        let caller = key_with_scope(scope);
        let (_, secret) = server.api().await.create(caller).await;
        let caller = Api::new(server.channel().await, &secret);
        let answer = caller.admin_validator().validate(request(&secret)).await;
        if denied {
            assert_eq!(error_reason(answer), permission_denied("PERMISSION_DENIED"), "{scope}");
        } else {
            assert!(answer.unwrap().into_inner().valid, "{scope}");
        }
    }
}

/// A credential that is not valid is reported as such, and not as missing.
#[tokio::test]
async fn fresh_answers_report_an_invalid_credential() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let request = || pb::ValidateRequest {
        secret: secret.clone(),
        max_staleness: Some(prost_types::Duration::default()),
        ..pb::ValidateRequest::default()
    };
    let with_credential = Api::new(server.channel().await, "a-credential-that-nobody-issued");
    let answer = with_credential.admin_validator().validate(request()).await;
    assert_eq!(error_reason(answer), unauthenticated("CREDENTIAL_INVALID"));
    let mut without = pb::validator_client::ValidatorClient::new(server.channel().await);
    assert_eq!(error_reason(without.validate(request()).await), unauthenticated("CREDENTIAL_REQUIRED"));
}

#[tokio::test]
async fn reserved_scopes_grant_their_permissions_only() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let with_scope = async |scope: &str| {
        let request = key_with_scope(scope);
        let (key, secret) = admin.create(request).await;
        (key, Api::new(server.channel().await, &secret))
    };
    let denied = permission_denied("PERMISSION_DENIED");
    let (key, reader) = with_scope("keyvouch.read").await;
    reader.get(&key.id).await;
    assert_eq!(error_reason(reader.key_store().create_key(new_key()).await), denied);
    let revoke = || pb::RevokeKeyRequest { id: key.id.clone(), reason: String::new() };
    assert_eq!(error_reason(reader.key_store().revoke_key(revoke()).await), denied);

    let (key_of_writer, writer) = with_scope("keyvouch.write").await;
    assert_eq!(
        error_reason(writer.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await),
        denied
    );
    writer.create(new_key()).await;
    let events = admin.key_store().list_events(pb::ListEventsRequest::default()).await.unwrap().into_inner();
    assert_eq!(events.events[0].actor, format!("key:{}", key_of_writer.id));

    let (_, plain) = with_scope("write").await;
    assert_eq!(error_reason(plain.key_store().create_key(new_key()).await), denied);
    let (_, all) = with_scope("keyvouch.admin").await;
    all.create(new_key()).await;
    all.get(&key.id).await;

    // A revoked key is rejected as a credential.
    writer.revoke(&key.id, "").await;
    let rejected = error_reason(reader.key_store().get_key(pb::GetKeyRequest { id: key.id.clone() }).await);
    assert_eq!(rejected, unauthenticated("CREDENTIAL_INVALID"));
}

#[tokio::test]
async fn without_credentials_reserved_scopes_can_not_be_granted() {
    let mut config = Config { admin: keyvouch::config::AdminConfig::default(), ..config() };
    config.admin.insecure = true;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut anybody = pb::key_store_client::KeyStoreClient::new(server.channel().await);
    anybody.create_key(new_key()).await.unwrap();
    let reserved = key_with_scope("keyvouch.admin");
    assert_eq!(error_reason(anybody.create_key(reserved).await), permission_denied("SCOPE_NOT_GRANTABLE"));
}

#[tokio::test]
async fn rotating_a_key_with_a_reserved_scope_needs_that_scope() {
    let repository = MemoryRepository::new();
    let server = TestServer::start(repository.clone()).await;
    let reserved = key_with_scope("keyvouch.admin");
    let (key, _) = server.api().await.create(reserved).await;

    let mut config = config();
    config.admin.tokens = Vec::new();
    config.admin.insecure = true;
    let open = TestServer::start_with(repository, &config).await;
    let mut anybody = pb::key_store_client::KeyStoreClient::new(open.channel().await);
    let rotate = pb::RotateKeyRequest { id: key.id, ..pb::RotateKeyRequest::default() };
    assert_eq!(
        error_reason(anybody.rotate_key(rotate.clone()).await),
        permission_denied("SCOPE_NOT_GRANTABLE")
    );
    server.api().await.key_store().rotate_key(rotate).await.unwrap();
}

#[tokio::test]
async fn a_writer_can_not_grant_a_reserved_scope_that_it_lacks() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let reserved = |scope: &str| key_with_scope(scope);
    let (_, secret) = admin.create(reserved("keyvouch.write")).await;
    let (key_of_admin, _) = admin.create(reserved("keyvouch.admin")).await;
    let (plain, _) = admin.create(new_key()).await;
    let writer = Api::new(server.channel().await, &secret);
    let mut key_store = writer.key_store();
    let denied = permission_denied("SCOPE_NOT_GRANTABLE");
    for scope in ["keyvouch.admin", "keyvouch.read", "keyvouch.validate", "keyvouch.future"] {
        assert_eq!(error_reason(key_store.create_key(reserved(scope)).await), denied, "{scope}");
    }
    let rotate = pb::RotateKeyRequest { id: key_of_admin.id, ..pb::RotateKeyRequest::default() };
    assert_eq!(error_reason(key_store.rotate_key(rotate).await), denied);
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { scopes: vec!["keyvouch.admin".into()], ..plain }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    assert_eq!(error_reason(key_store.update_key(update).await), denied);
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
async fn a_writer_can_not_extend_the_key_of_an_administrator() {
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
    until("the expiry of the key", async || admin.reason(&secret).await == pb::Reason::Expired).await;
    let writer = key_with_scope("keyvouch.write");
    let (_, writer) = admin.create(writer).await;
    let writer = Api::new(server.channel().await, &writer);
    let end = key.expire_time.unwrap();
    let longer = prost_types::Timestamp { seconds: end.seconds + 3_600, ..end };
    let prolong = pb::UpdateKeyRequest {
        key: Some(pb::Key { expire_time: Some(longer), ..key }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["expire_time".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    let rejected = error_reason(writer.key_store().update_key(prolong.clone()).await);
    assert_eq!(rejected, permission_denied("SCOPE_NOT_GRANTABLE"));
    admin.key_store().update_key(prolong).await.unwrap();
}
