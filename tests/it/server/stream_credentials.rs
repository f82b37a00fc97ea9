//! Tests that an open stream ends when its caller loses the credential or the permission.

use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tonic::Code;

use crate::support::{TOKEN, TestServer, key_with_scope, permission_denied, unauthenticated, uncached};

/// A revoked credential can't continue a stream that it opened before.
#[tokio::test]
async fn an_open_import_ends_when_its_credential_is_revoked() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let admin = server.api().await;
    let writer = key_with_scope("keyvouch.write");
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
async fn an_open_listing_ends_when_its_credential_is_revoked() {
    let backend = MemoryRepository::new();
    let server = TestServer::start(backend).await;
    let admin = server.api().await;
    for _ in 0..700 {
        // The keys together are larger than the client's window and the server's buffer.
        admin.create(pb::CreateKeyRequest { description: "x".repeat(1_000), ..new_key() }).await;
    }
    let reader = key_with_scope("keyvouch.read");
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

#[tokio::test]
async fn a_watch_ends_when_its_credential_is_revoked_or_its_connection_ends() {
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_secs(2));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let admin = server.api().await;
    let reader = key_with_scope("keyvouch.read");
    let (key, secret) = admin.create(reader).await;
    let watch = async |token: &str| {
        let api = Api::new(server.channel().await, token);
        api.admin_validator().watch_changes(pb::WatchChangesRequest::default()).await.unwrap().into_inner()
    };
    let last = async |mut stream: tonic::Streaming<pb::WatchChangesResponse>| {
        let end = async {
            loop {
                if let Err(end) = stream.message().await {
                    return error_reason(Err::<tonic::Response<()>, _>(end));
                }
            }
        };
        tokio::time::timeout(Duration::from_mins(1), end).await.unwrap()
    };
    let stream = watch(&secret).await;
    admin.revoke(&key.id, "leaked").await;
    assert_eq!(last(stream).await, unauthenticated("CREDENTIAL_INVALID"));
    let reader = key_with_scope("keyvouch.read");
    let (key, secret) = admin.create(reader).await;
    let stream = watch(&secret).await;
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { scopes: Vec::new(), ..key }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    admin.key_store().update_key(update).await.unwrap();
    assert_eq!(last(stream).await, permission_denied("PERMISSION_DENIED"));
    let of_age = last(watch(TOKEN).await).await;
    assert_eq!(of_age, (Code::Unavailable, "CONNECTION_ENDS".to_owned()));
}
