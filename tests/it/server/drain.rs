//! Tests of graceful shutdown, which completes in time whatever clients do.

use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::{MemoryRepository, UsageStore as _};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::faulty::{Faulty, Mode};
use crate::support::{TestServer, uncached, until};

/// Timeout for a drain, far more than any needs.
const NEVER: Duration = Duration::from_mins(1);

#[tokio::test]
async fn calls_in_flight_are_answered() {
    let store = Faulty::new();
    let mut config = uncached();
    config.server.drain_timeout = HumanDuration(NEVER);
    let mut server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    store.set(Mode::Hang);
    let lookups = store.lookups();
    let call = tokio::spawn(async move { api.reason(&secret).await });
    until("the lookup", async || store.lookups() != lookups).await;
    server.begin_stop();
    // New connections are refused from now on, but the call continues.
    until("the end of listening", async || TcpStream::connect(server.address).await.is_err()).await;
    assert!(!call.is_finished());
    store.set(Mode::Work);
    assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    tokio::time::timeout(NEVER, server.ended()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_silent_connection_and_an_open_watch_do_not_hold_it_up() {
    let mut config = uncached();
    config.server.drain_timeout = HumanDuration(Duration::from_millis(300));
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until("health", async || watch.message().await.unwrap().unwrap().status() == ServingStatus::Serving)
        .await;
    server.begin_stop();
    let last = watch.message().await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing, "watchers are told first");
    tokio::time::timeout(NEVER, server.ended()).await.unwrap().unwrap();
    // The server may have sent its first frame. Now it cuts the connection.
    let _ = tokio::time::timeout(NEVER, silent.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(watch.message().await.is_err());
}

#[tokio::test]
async fn open_watches_end_at_once_and_are_told_why() {
    let mut config = uncached();
    config.server.drain_timeout = HumanDuration(NEVER * 10);
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    until("health", async || watch.message().await.unwrap().unwrap().status() == ServingStatus::Serving)
        .await;
    server.begin_stop();
    let mut end = watch.message().await;
    while end.is_ok() {
        end = watch.message().await;
    }
    let info = tonic_types::StatusExt::get_details_error_info(&end.unwrap_err()).unwrap();
    assert_eq!(info.reason, "CONNECTION_ENDS");
    drop(health);
    tokio::time::timeout(NEVER, server.ended()).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_last_uses_are_recorded() {
    let store = MemoryRepository::new();
    let mut config = uncached();
    config.usage.flush_interval = HumanDuration(NEVER);
    let mut server = TestServer::start_with(store.clone(), &config).await;
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    assert_eq!(api.get(&key.id).await.last_used_time, None);
    drop(api);
    server.begin_stop();
    tokio::time::timeout(NEVER, server.ended()).await.unwrap().unwrap();
    let id = keyvouch::domain::KeyId::parse("id", &key.id).unwrap();
    assert!(store.usage(&[id]).await.unwrap()[0].is_some());
}

/// A watch ends with GOAWAY, and does not delay the shutdown.
#[tokio::test]
async fn watches_end_with_the_server() {
    let mut config = uncached();
    config.server.drain_timeout = HumanDuration(NEVER);
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut validator = server.api().await.admin_validator();
    let mut watch = validator.watch_changes(pb::WatchChangesRequest::default()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    server.begin_stop();
    assert_eq!(watch.message().await.unwrap_err().code(), tonic::Code::Unavailable);
    drop((watch, validator));
    server.ended().await.unwrap();
}
