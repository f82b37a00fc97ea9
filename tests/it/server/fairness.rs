//! Tests that clients which use more than they need don't affect others.

use std::net::{Ipv4Addr, SocketAddr};

use h2::client::SendRequest;
use keyvouch::conformance::api::{Api, error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use prost::bytes::Bytes;
use tokio::net::{TcpSocket, TcpStream};

use super::faulty::{Faulty, Mode};
use super::ops::count;
use super::slow_clients::raw_call;
use crate::support::{
    TestServer, config, key_with_scope, overloaded, uncached, until, validate_request, with_metrics,
};

/// Opens a connection from another address of this machine.
async fn client_at(server: &TestServer, last: u8) -> SendRequest<Bytes> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

/// A client that does not read its responses loses its connection before they take too much memory. Other
/// clients are not affected.
#[tokio::test]
async fn unread_responses_are_limited() {
    let config = with_metrics(config());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let metadata = (0..32).map(|number| (format!("name {number}"), "value".repeat(100))).collect();
    let (_, secret) = api.create(pb::CreateKeyRequest { metadata, ..new_key() }).await;
    let request = validate_request(&secret);
    let request = prost::Message::encode_to_vec(&request);
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    let request = Bytes::from([&[0][..], &length, &request].concat());
    let mut connections = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..3 {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (client, connection) = builder.handshake(stream).await.unwrap();
        connections.push(tokio::spawn(connection));
        for _ in 0..250 {
            // The connection may be closed by now.
            let Ok(mut client) = client.clone().ready().await else { break };
            let head = raw_call(&server, "/keyvouch.v1.Validator/Validate").body(()).unwrap();
            let Ok((answer, mut body)) = client.send_request(head, false) else { break };
            let _ = body.send_data(request.clone(), true);
            calls.push((answer, body));
        }
    }
    let closed = r#"keyvouch_connections_closed_total{reason="unread_answers"}"#;
    let ops = server.ops.unwrap();
    // A client counts as stalled after a while, and that is detected with the next response.
    until("the end of a connection", async || {
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
        count(ops, closed).await > 0.0
    })
    .await;
    until("the closed connection in the client", async || {
        connections.iter().any(tokio::task::JoinHandle::is_finished)
    })
    .await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
}

/// No client that reads loses its connection, however many pages are read concurrently.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_readers_of_large_responses_keep_their_connections() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let metadata: std::collections::BTreeMap<_, _> =
        (0..32).map(|number| (format!("name {number}"), "v".repeat(500))).collect();
    let mut secrets = Vec::new();
    for _ in 0..20 {
        secrets.push(api.create(pb::CreateKeyRequest { metadata: metadata.clone(), ..new_key() }).await.1);
    }
    // The concurrent responses have about 16 MB.
    let readings: Vec<_> = (0..1_000)
        .map(|number| {
            let (api, secret) = (api.clone(), secrets[number % secrets.len()].clone());
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    for reading in readings {
        assert_eq!(reading.await.unwrap(), pb::Reason::Valid);
    }
}

/// Clients that hold all streams lose them to clients that need one.
#[tokio::test]
async fn a_connection_that_holds_streams_is_closed_when_others_need_them() {
    let mut config = with_metrics(config());
    config.server.max_streams = 40;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let watch = "/grpc.health.v1.Health/Watch";
    // Streams for health checks are always opened, so these exceed the limit.
    let mut bodies = Vec::new();
    for last in 2..=4 {
        let client = client_at(&server, last).await;
        for _ in 0..20 {
            let head = raw_call(&server, watch).body(()).unwrap();
            let mut client = client.clone().ready().await.unwrap();
            let (answer, mut body) = client.send_request(head, false).unwrap();
            body.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
            answer.await.unwrap();
            bodies.push(body);
        }
    }
    for _ in 0..10 {
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
    let closed = r#"keyvouch_connections_closed_total{reason="held_streams"}"#;
    assert!(count(server.ops.unwrap(), closed).await > 0.0);
}

/// Clients that read keys can't use up the slots for changes.
#[tokio::test]
async fn calls_that_read_can_not_exhaust_the_slots_for_changes() {
    let mut config = uncached();
    config.server.max_calls = 10;
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (key, _) = api.create(new_key()).await;
    backend.set_listing(Mode::Hang);
    let reading = tokio::spawn({
        let api = api.clone();
        async move { api.key_store().list_keys(pb::ListKeysRequest::default()).await }
    });
    until("the listing to wait", async || backend.listings() == 1).await;
    let overloaded = overloaded();
    let second = api.key_store().list_keys(pb::ListKeysRequest::default()).await;
    assert_eq!(error_reason(second), overloaded);
    let revoke = pb::RevokeKeyRequest { id: key.id, reason: String::new() };
    api.key_store().revoke_key(revoke).await.unwrap();
    backend.set_listing(Mode::Work);
    reading.await.unwrap().unwrap();
}

/// The number of concurrent pages per caller is limited.
#[tokio::test]
async fn concurrent_pages_of_one_caller_are_limited() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let reader = key_with_scope("keyvouch.read");
    let (_, secret) = server.api().await.create(reader).await;
    let reader = Api::new(server.channel().await, &secret);
    backend.set_listing(Mode::Hang);
    let list = |api: &Api| {
        let api = api.clone();
        tokio::spawn(async move { api.key_store().list_keys(pb::ListKeysRequest::default()).await })
    };
    let waiting: Vec<_> = (0..16).map(|_| list(&reader)).collect();
    until("the listings to wait", async || backend.listings() >= 4).await;
    let overloaded = overloaded();
    until("the limit", async || {
        let mut key_store = reader.key_store();
        let rejected = key_store.list_keys(pb::ListKeysRequest::default());
        let rejected = tokio::time::timeout(std::time::Duration::from_millis(100), rejected).await;
        rejected.is_ok_and(|rejected| error_reason(rejected) == overloaded)
    })
    .await;
    let admin = list(&server.api().await);
    backend.set_listing(Mode::Work);
    admin.await.unwrap().unwrap();
    for listed in waiting {
        listed.await.unwrap().unwrap();
    }
}

/// A page looks at a bounded number of keys, however few of them its filter matches, and has the token of the
/// next one.
#[tokio::test]
async fn a_page_reads_a_bounded_number_of_keys_whatever_its_filter_matches() {
    let backend = MemoryRepository::new();
    let server = TestServer::start(backend.clone()).await;
    let api = server.api().await;
    let (oldest, _) = api.create(new_key()).await;
    api.key_store()
        .revoke_key(pb::RevokeKeyRequest { id: oldest.id.clone(), reason: String::new() })
        .await
        .unwrap();
    for number in 0..2_500 {
        let owner_id = format!("owner {}", number % 3);
        api.create(pb::CreateKeyRequest { owner_id, ..new_key() }).await;
    }
    let revoked = vec![pb::KeyState::Revoked.into()];
    let mut request =
        pb::ListKeysRequest { states: revoked, page_size: 10, ..pb::ListKeysRequest::default() };
    let (mut pages, mut found) = (0, Vec::new());
    loop {
        let page = api.key_store().list_keys(request.clone()).await.unwrap().into_inner();
        pages += 1;
        found.extend(page.keys.into_iter().map(|key| key.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, [oldest.id]);
    assert!((2..=4).contains(&pages), "{pages}");
}
