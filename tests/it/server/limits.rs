//! Nobody can take all there is.

use std::collections::HashSet;
use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, new_key, refusal};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::faulty::{Faulty, Mode};
use crate::support::{TOKEN, TestServer, uncached};

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once() {
    let mut config = uncached();
    config.server.max_connections = 3;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    api.create(new_key()).await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut refused = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(refused.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    api.create(new_key()).await;

    // A place that is given back can be taken.
    drop(silent);
    let channel = loop {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let Ok(channel) = endpoint.connect().await else { continue };
        let request = pb::ListKeysRequest::default();
        if Api::new(channel.clone(), TOKEN).key_store().list_keys(request).await.is_ok() {
            break channel;
        }
    };
    Api::new(channel, TOKEN).create(new_key()).await;
}

#[tokio::test]
async fn a_connection_that_does_not_begin_is_closed() {
    let mut config = uncached();
    config.server.handshake_timeout = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    for stream in [&mut silent, &mut slow] {
        // Whatever the server says before it closes, it closes.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    api.create(new_key()).await;
}

#[tokio::test]
async fn messages_above_the_limit_are_refused() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let request = |bytes| pb::ValidateRequest { secret: "x".repeat(bytes), ..pb::ValidateRequest::default() };
    let response = api.validator().validate(request(60 * 1024)).await.unwrap().into_inner();
    assert_eq!(response.reason(), pb::Reason::Malformed);
    let expected = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(refusal(api.validator().validate(request(70 * 1024)).await), expected);
    let large = pb::CreateKeyRequest { description: "x".repeat(300 * 1024), ..new_key() };
    assert_eq!(refusal(api.key_store().create_key(large).await), expected);
    api.create(new_key()).await;
}

#[tokio::test]
async fn calls_above_the_limit_of_a_connection_wait_in_the_client() {
    let mut config = uncached();
    config.server.max_streams_per_connection = 4;
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    store.set(Mode::Hang);
    let lookups = store.lookups();
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (api, secret) = (api.clone(), secret.clone());
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    while store.lookups() < lookups + 4 {
        tokio::task::yield_now().await;
    }
    // Another connection is served; the fifth call of this one has had all the time it would need.
    let other = server.api().await;
    assert_eq!(other.reason("nonsense").await, pb::Reason::Malformed);
    assert_eq!(store.lookups(), lookups + 4);
    store.set(Mode::Work);
    for call in calls {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
}

#[tokio::test]
async fn connections_are_spread_evenly_over_the_workers() {
    // The store notes on which thread it is asked: memory never leaves the worker's.
    let mut config = uncached();
    config.server.workers = 4;
    let store = Faulty::new();
    let server = TestServer::start_with(store.clone(), &config).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    store.forget_threads();
    let mut connections = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..8 {
        let api = server.api().await;
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
        connections.push(api);
        seen.extend(store.forget_threads());
    }
    let distinct: HashSet<_> = seen.iter().cloned().collect();
    assert_eq!(seen.len(), 8);
    assert_eq!(distinct.len(), 4, "{seen:?}");
    for worker in distinct {
        assert_eq!(seen.iter().filter(|&it| *it == worker).count(), 2, "{seen:?}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_too() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kv.sock");
    let mut config = uncached();
    config.server.listen.push(format!("unix:{}", socket.display()));
    // A socket that a killed server left behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    let over_socket = Api::new(endpoint.connect().await.unwrap(), TOKEN);
    let (_, secret) = over_socket.create(new_key()).await;
    assert_eq!(server.api().await.reason(&secret).await, pb::Reason::Valid);
    drop(over_socket);
    server.begin_stop();
    tokio::time::timeout(Duration::from_secs(30), server.ended()).await.unwrap().unwrap();
    assert!(!socket.exists(), "the socket is removed");
}
