//! Tests of the limits on connections, in total, per address and per connection.

use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use super::call_limits::secrets;
use super::faulty::{Faulty, Mode};
use crate::support::{TOKEN, TestServer, uncached, until};

#[tokio::test]
async fn connections_above_the_limit_are_closed_at_once() {
    let mut config = uncached();
    config.server.max_connections = 2;
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config).await;
    let (first, second) = (server.api().await, server.api().await);
    let secrets = secrets(&first, 2).await;
    // Both connections are busy, so neither is closed to make room.
    backend.set(Mode::Hang);
    let lookups = backend.lookups();
    let calls: Vec<_> = [first, second]
        .into_iter()
        .zip(secrets)
        .map(|(api, secret)| tokio::spawn(async move { api.reason(&secret).await }))
        .collect();
    until("the lookups of both calls", async || backend.lookups() == lookups + 2).await;
    let mut rejected = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(rejected.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    backend.set(Mode::Work);
    for call in calls {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
}

/// A client that opens all connections and does not use them locks no other client out.
#[tokio::test]
async fn idle_connections_are_closed_for_new_ones() {
    let mut config = uncached();
    config.server.max_connections = 3;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            .await
            .unwrap();
        silent.push(stream);
    }
    until("a free connection", async || {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let Ok(channel) = endpoint.connect().await else { return false };
        let request = pb::ListKeysRequest::default();
        Api::new(channel, TOKEN).key_store().list_keys(request).await.is_ok()
    })
    .await;
    let mut ended = 0;
    for mut stream in silent {
        let mut frames = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut frames));
        ended += usize::from(end.await.is_ok());
    }
    assert!((1..=2).contains(&ended), "{ended}");
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let mut config = uncached();
    config.server.max_connections_per_peer = 1;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    api.create(new_key()).await;
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(second.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    api.create(new_key()).await;
}

#[tokio::test]
async fn a_connection_without_an_http2_preface_is_closed() {
    let mut config = uncached();
    config.server.handshake_timeout = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0").await.unwrap();
    for stream in [&mut silent, &mut slow] {
        // The server closes the connection, whatever it sends before.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    api.create(new_key()).await;
}

#[tokio::test]
async fn calls_above_the_limit_of_a_connection_wait_in_the_client() {
    let mut config = uncached();
    config.server.max_streams_per_connection = 4;
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let secrets = secrets(&api, 10).await;
    backend.set(Mode::Hang);
    let lookups = backend.lookups();
    let calls: Vec<_> = secrets
        .into_iter()
        .map(|secret| {
            let api = api.clone();
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    until("four lookups", async || backend.lookups() == lookups + 4).await;
    // Another connection is served, and the fifth call of this one has had enough time.
    let other = server.api().await;
    assert_eq!(other.reason("nonsense").await, pb::Reason::Malformed);
    assert_eq!(backend.lookups(), lookups + 4);
    backend.set(Mode::Work);
    for call in calls {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
}
