//! Who may call what.

use std::sync::Arc;

use keyvouch::app::{App, Store, Surroundings};
use keyvouch::config::{Config, SecretText};
use keyvouch::conformance::api::{Api, new_key, refusal};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tonic::Code;

use crate::support::{TOKEN, TestServer, config};

fn refused(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

#[tokio::test]
async fn every_method_of_key_store_needs_the_token() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let (key, _) = server.api().await.create(new_key()).await;
    let stranger = Api::new(server.channel().await, "another-token-of-enough-characters");
    let mut key_store = stranger.key_store();
    let id = || key.id.clone();
    let update = pb::UpdateKeyRequest { key: Some(key.clone()), ..pb::UpdateKeyRequest::default() };
    let rotate = pb::RotateKeyRequest { id: id(), ..pb::RotateKeyRequest::default() };
    let refusals = [
        refusal(key_store.create_key(new_key()).await),
        refusal(key_store.get_key(pb::GetKeyRequest { id: id() }).await),
        refusal(key_store.list_keys(pb::ListKeysRequest::default()).await),
        refusal(
            key_store.stream_keys(pb::StreamKeysRequest::default()).await.map(|_| tonic::Response::new(())),
        ),
        refusal(key_store.update_key(update).await),
        refusal(key_store.rotate_key(rotate).await),
        refusal(key_store.revoke_key(pb::RevokeKeyRequest { id: id(), reason: String::new() }).await),
        refusal(key_store.delete_key(pb::DeleteKeyRequest { id: id(), expected_revision: None }).await),
    ];
    for refusal in refusals {
        assert_eq!(refusal, refused("CREDENTIAL_INVALID"));
    }
    let mut nobody = pb::key_store_client::KeyStoreClient::new(server.channel().await);
    assert_eq!(refusal(nobody.create_key(new_key()).await), refused("CREDENTIAL_REQUIRED"));
    assert_eq!(server.api().await.get(&key.id).await, key, "nothing happened");
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

#[tokio::test]
async fn a_server_with_a_backend_of_its_own_is_never_open_beyond_this_machine() {
    let mut config = config();
    config.server.listen = vec!["0.0.0.0:0".into()];
    config.admin.tokens = Vec::new();
    for insecure in [true, false] {
        config.admin.insecure = insecure;
        let store = Store::new(Arc::new(MemoryRepository::new()));
        let refused = App::with_store(&config, Surroundings::default(), store).await.unwrap_err().to_string();
        assert!(refused.contains("administer keys") || refused.contains("needs a credential"), "{refused}");
    }
}
