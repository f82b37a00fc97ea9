//! Tests of probes and metrics over plain HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::{ErrorKind, MemoryRepository};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::faulty::{Faulty, Mode};
use crate::support::{TestServer, config, uncached, until, with_metrics};

/// Returns the status and the body of a response.
pub(super) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Returns the value of a series, if it exists.
fn series(metrics: &str, name: &str) -> Option<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().parse().unwrap())
}

/// Returns the current value of a series, or 0 if it does not exist.
pub(super) async fn count(ops: SocketAddr, name: &str) -> f64 {
    series(&get(ops, "/metrics").await.1, name).unwrap_or_default()
}

/// Returns the value of a series that has to exist.
fn value(metrics: &str, name: &str) -> f64 {
    series(metrics, name).unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

#[tokio::test]
async fn metrics_count_calls_verdicts_and_lookups() {
    let config = with_metrics(config());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let ops = server.ops.unwrap();
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    for _ in 0..3 {
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
    assert_eq!(api.reason("nonsense").await, pb::Reason::Malformed);
    api.revoke(&key.id, "").await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
    let missing = pb::GetKeyRequest { id: "01a20fb3-1162-7e43-9734-93a5d0259ef2".into() };
    api.key_store().get_key(missing).await.unwrap_err();
    let (status, text) = get(ops, "/metrics").await;
    assert_eq!(status, 200);
    for (series, count) in [
        (r#"keyvouch_validations_total{reason="allowed"}"#, 3.0),
        (r#"keyvouch_validations_total{reason="malformed"}"#, 1.0),
        (r#"keyvouch_validations_total{reason="revoked"}"#, 1.0),
        (r#"keyvouch_grpc_calls_total{method="keyvouch.v1.Validator/Validate",code="OK"}"#, 5.0),
        (r#"keyvouch_grpc_calls_total{method="keyvouch.v1.KeyStore/GetKey",code="NOT_FOUND"}"#, 1.0),
        (r#"keyvouch_grpc_call_duration_seconds_count{method="keyvouch.v1.Validator/Validate"}"#, 5.0),
        ("keyvouch_store_breaker_open", 0.0),
    ] {
        assert!((value(&text, series) - count).abs() < f64::EPSILON, "{series} in\n{text}");
    }
    let in_memory = value(&text, r#"keyvouch_lookups_total{tier="local"}"#);
    assert!(in_memory >= 2.0, "{text}");
    let connections: f64 =
        (0..2).map(|worker| value(&text, &format!(r#"keyvouch_connections{{worker="{worker}"}}"#))).sum();
    assert!(connections >= 1.0, "{text}");
    for secret in [&secret, &key.id, &key.owner_id] {
        assert!(!text.contains(secret.as_str()), "{secret} in\n{text}");
    }
    for metric in ["keyvouch_build_info", "keyvouch_feed_age_seconds", "process_resident_memory_bytes"] {
        assert!(
            text.contains(&format!("# HELP {}", metric.trim_end_matches("_info"))),
            "{metric} in\n{text}"
        );
    }
}

#[tokio::test]
async fn unknown_methods_share_one_label() {
    let config = with_metrics(config());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let channel = server.channel().await;
    for number in 0..20 {
        let path: http::uri::PathAndQuery = format!("/made.up{number}/Method").parse().unwrap();
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<pb::ValidateRequest, pb::ValidateResponse>::default();
        let request = tonic::Request::new(pb::ValidateRequest::default());
        client.unary(request, path, codec).await.unwrap_err();
    }
    let (_, text) = get(server.ops.unwrap(), "/metrics").await;
    assert!(!text.contains("made.up"), "{text}");
    let others = value(&text, r#"keyvouch_grpc_calls_total{method="other",code="UNIMPLEMENTED"}"#);
    assert!((others - 20.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn an_outage_affects_readiness_after_the_staleness_bound_and_never_liveness() {
    let backend = Faulty::new();
    let mut config = with_metrics(config());
    config.cache.max_staleness = HumanDuration(Duration::from_secs(4));
    config.feed.poll_interval = HumanDuration(Duration::from_millis(50));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let ops = server.ops.unwrap();
    until("readiness", async || get(ops, "/readyz").await.0 == 200).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    until("the outage", async || check("keyvouch.v1.KeyStore").await == ServingStatus::NotServing).await;
    assert_eq!(
        check("keyvouch.v1.Validator").await,
        ServingStatus::Serving,
        "validations are answered from the cache"
    );
    assert_eq!(get(ops, "/readyz").await.0, 200);
    until("the staleness bound", async || get(ops, "/readyz").await.0 == 503).await;
    assert_eq!(check("keyvouch.v1.Validator").await, ServingStatus::NotServing);
    assert_eq!(check("").await, ServingStatus::Serving, "the server itself is healthy");
    for path in ["/livez", "/startupz"] {
        assert_eq!(get(ops, path).await.0, 200, "{path}");
    }
    backend.set(Mode::Work);
    until("recovery", async || get(ops, "/readyz").await.0 == 200).await;
    assert_eq!(check("keyvouch.v1.KeyStore").await, ServingStatus::Serving);
}

#[tokio::test]
async fn a_server_is_not_started_before_the_backend_was_reached() {
    let backend = Faulty::new();
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    let config = with_metrics(uncached());
    let server = TestServer::start_with(backend.clone(), &config).await;
    let ops = server.ops.unwrap();
    assert_eq!(get(ops, "/livez").await.0, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(get(ops, "/startupz").await.0, 503);
    assert_eq!(get(ops, "/readyz").await.0, 503);
    backend.set(Mode::Work);
    until("the start", async || get(ops, "/startupz").await.0 == 200).await;
    until("readiness", async || get(ops, "/readyz").await.0 == 200).await;
    assert_eq!(get(ops, "/elsewhere").await.0, 404);
}

#[tokio::test]
async fn connections_to_metrics_are_limited_in_number_and_time() {
    let config = with_metrics(uncached());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let ops = server.ops.unwrap();
    let mut connections = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(ops).await.unwrap();
        // Some clients are silent, and others never complete their headers.
        if number % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nx-").await.unwrap();
        }
        connections.push(tokio::spawn(async move {
            // The way in which the server closes the connection does not matter.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }));
    }
    until("connections above the limit", async || {
        connections.iter().filter(|it| it.is_finished()).count() >= 8
    })
    .await;
    let open = connections.iter().filter(|it| !it.is_finished()).count();
    assert!(open > 0, "connections within the limit were closed as well");
    for connection in connections {
        tokio::time::timeout(Duration::from_mins(1), connection).await.unwrap().unwrap();
    }
    assert_eq!(get(ops, "/livez").await.0, 200);
}

#[tokio::test]
async fn metrics_count_calls_in_flight_and_cancelled_calls() {
    let backend = Faulty::new();
    let config = with_metrics(uncached());
    let server = TestServer::start_with(backend.clone(), &config).await;
    let ops = server.ops.unwrap();
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    backend.set(Mode::Hang);
    let call = tokio::spawn(async move { api.reason(&secret).await });
    until("the call", async || count(ops, "keyvouch_grpc_calls_running").await > 0.0).await;
    call.abort();
    let cancelled = r#"keyvouch_grpc_calls_total{method="keyvouch.v1.Validator/Validate",code="CANCELLED"}"#;
    until("the cancellation", async || count(ops, cancelled).await > 0.0).await;
    assert!(count(ops, "keyvouch_grpc_calls_running").await.abs() < f64::EPSILON);
    backend.set(Mode::Work);
}

#[tokio::test]
async fn rejected_connections_are_counted_by_reason() {
    let mut config = with_metrics(uncached());
    config.server.max_connections_per_peer = 1;
    config.server.handshake_timeout = HumanDuration(Duration::from_millis(100));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let ops = server.ops.unwrap();
    let rejected = |reason: &str| format!(r#"keyvouch_connections_refused_total{{reason="{reason}"}}"#);
    let first = TcpStream::connect(server.address).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(second.read(&mut [0; 64]).await.unwrap(), 0, "closed by the server");
    assert!(count(ops, &rejected("max_connections_per_peer")).await >= 1.0);
    until("the handshake timeout", async || count(ops, &rejected("handshake")).await > 0.0).await;
    drop(first);
}

#[tokio::test]
async fn a_backend_that_does_not_respond_counts_as_down() {
    let backend = Faulty::new();
    let mut config = with_metrics(uncached());
    config.store.timeout = HumanDuration(Duration::from_mins(1));
    config.server.call_timeout = HumanDuration(Duration::from_mins(1));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let ops = server.ops.unwrap();
    until("readiness", async || get(ops, "/readyz").await.0 == 200).await;
    backend.set(Mode::Hang);
    until("the outage", async || get(ops, "/readyz").await.0 == 503).await;
    assert!(count(ops, "keyvouch_store_up").await.abs() < f64::EPSILON);
    assert_eq!(get(ops, "/livez").await.0, 200);
    backend.set(Mode::Work);
    until("recovery", async || get(ops, "/readyz").await.0 == 200).await;
}

/// Probes are answered despite clients at many addresses that never complete their requests.
#[tokio::test]
async fn probes_are_answered_despite_slow_clients() {
    let config = with_metrics(config());
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let ops = server.ops.unwrap();
    let mut slow = Vec::new();
    for round in 0..10_u8 {
        for host in 1..10 {
            for _ in 0..8 {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into()).unwrap();
                let mut stream = socket.connect(ops).await.unwrap();
                // The server may close the connection meanwhile, to make room.
                let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: ").await;
                slow.push(stream);
            }
        }
        assert_eq!(get(ops, "/livez").await.0, 200, "in round {round}");
    }
}
