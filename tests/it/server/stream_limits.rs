//! Tests of the limits on concurrent streams, in total and per caller.

use std::collections::BTreeMap;

use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::slow_clients::{raw_call, raw_client};
use crate::support::{TOKEN, TestServer, config, key_with_scope, overloaded, until, validate_request};

/// One caller leaves streams for others.
#[tokio::test]
async fn watches_of_one_caller_are_limited() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let (_, reader) = api.create(key_with_scope("keyvouch.read")).await;
    let reader = Api::new(server.channel().await, &reader);
    let watch =
        async |api: &Api| api.admin_validator().watch_changes(pb::WatchChangesRequest::default()).await;
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(watch(&reader).await.unwrap());
    }
    assert_eq!(error_reason(watch(&reader).await), overloaded());
    open.push(watch(&api).await.unwrap());
    drop(open);
    until("a free slot", async || watch(&reader).await.is_ok()).await;
}

/// The number of streams that hold several keys is limited per caller.
#[tokio::test]
async fn listings_and_imports_of_one_caller_are_limited() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let scopes = ["keyvouch.read", "keyvouch.write"].map(str::to_owned).into();
    let (_, other) = api.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let other = Api::new(server.channel().await, &other);
    // A client with small windows keeps listings open.
    let slow = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let slow = slow.initial_connection_window_size(1 << 16).initial_stream_window_size(1 << 10);
    let slow = Api::new(slow.connect().await.unwrap(), TOKEN);
    let metadata: BTreeMap<_, _> =
        (0..32).map(|number| (format!("name {number}"), "value".repeat(100))).collect();
    for _ in 0..20 {
        api.create(pb::CreateKeyRequest { metadata: metadata.clone(), ..new_key() }).await;
    }
    let list = async |api: &Api| api.key_store().stream_keys(pb::StreamKeysRequest::default()).await;
    // A stream ends when its sender is dropped.
    let import = async |api: &Api| {
        let (sender, requests) = tokio::sync::mpsc::channel::<pb::ImportKeysRequest>(1);
        api.key_store()
            .import_keys(ReceiverStream::new(requests))
            .await
            .map(|answers| answers.map(|_| sender))
    };
    let (mut listings, mut imports) = (Vec::new(), Vec::new());
    for _ in 0..16 {
        listings.push(list(&slow).await.unwrap());
        imports.push(import(&api).await.unwrap());
    }
    assert_eq!(error_reason(list(&api).await), overloaded());
    assert_eq!(error_reason(import(&api).await), overloaded());
    list(&other).await.unwrap();
    import(&other).await.unwrap();
    drop((listings, imports, slow));
    until("a free slot", async || list(&api).await.is_ok() && import(&api).await.is_ok()).await;
}

/// A call that has only begun counts as a stream.
#[tokio::test]
async fn streams_above_the_limit_are_rejected() {
    let mut config = config();
    config.server.max_streams = 8;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let ask = || validate_request("nonsense");
    api.validator().validate(ask()).await.unwrap();
    let mut client = raw_client(&server).await;
    let mut begun = Vec::new();
    for _ in 0..4 {
        client = client.ready().await.unwrap();
        let head = raw_call(&server, "/grpc.health.v1.Health/Check").body(()).unwrap();
        begun.push(client.send_request(head, false).unwrap());
    }
    // When a later call has completed, the server has accepted these.
    let later = raw_call(&server, "/grpc.health.v1.Health/Check").body(()).unwrap();
    client.ready().await.unwrap().send_request(later, true).unwrap().0.await.unwrap();
    assert_eq!(error_reason(api.validator().validate(ask()).await), overloaded());
    drop(begun);
    until("the end of the other streams", async || api.validator().validate(ask()).await.is_ok()).await;
}
