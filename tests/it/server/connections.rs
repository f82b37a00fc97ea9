//! Tests of the distribution and the lifetime of connections.

use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;

use super::faulty::{Faulty, Mode};
use super::ops::count;
use crate::support::{TOKEN, TestServer, config, uncached, with_metrics};

#[tokio::test]
async fn connections_are_spread_evenly_over_the_workers() {
    let mut config = with_metrics(config());
    config.server.workers = 4;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        let api = server.api().await;
        // Once the call is answered, the worker has the connection.
        assert_eq!(api.reason("nonsense").await, pb::Reason::Malformed);
        connections.push(api);
    }
    for worker in 0..4 {
        let name = format!(r#"keyvouch_connections{{worker="{worker}"}}"#);
        assert!((count(server.ops.unwrap(), &name).await - 2.0).abs() < f64::EPSILON, "{name}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_too() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kv.sock");
    let mut config = uncached();
    config.server.listen.push(format!("unix:{}", socket.display()));
    // The socket that a killed server left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    let over_socket = Api::new(endpoint.connect().await.unwrap(), TOKEN);
    let (_, secret) = over_socket.create(new_key()).await;
    assert_eq!(server.api().await.reason(&secret).await, pb::Reason::Valid);
    drop(over_socket);
    server.begin_stop();
    tokio::time::timeout(Duration::from_secs(30), server.ended()).await.unwrap().unwrap();
    assert!(!socket.exists(), "the socket is removed");
}

/// Returns the bytes that the server sends to a client that only acknowledges settings.
async fn last_frames(server: &TestServer) -> Vec<u8> {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frames = Vec::new();
    let mut buffer = [0; 1_024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        for ping in buffer[..read].windows(17).filter(|bytes| bytes.starts_with(b"\0\0\x08\x06\0")) {
            let mut answer = ping.to_vec();
            answer[4] = 1;
            stream.write_all(&answer).await.unwrap();
        }
        frames.extend(&buffer[..read]);
    }
    frames
}

#[tokio::test]
async fn idle_and_old_connections_receive_goaway() {
    for is_by_age in [true, false] {
        let mut config = uncached();
        let time = HumanDuration(Duration::from_millis(200));
        if is_by_age {
            config.server.max_connection_age = time;
        } else {
            config.server.idle_timeout = time;
        }
        let server = TestServer::start_with(MemoryRepository::new(), &config).await;
        let frames = tokio::time::timeout(Duration::from_mins(1), last_frames(&server)).await.unwrap();
        // GOAWAY without an error: the last stream's number, and NO_ERROR.
        let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
        assert!(frames.ends_with(goaway), "{frames:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_in_flight_completes_although_its_connection_has_reached_its_maximum_age() {
    let backend = Faulty::new();
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    backend.set(Mode::Hang);
    let call = tokio::spawn(async move { api.reason(&secret).await });
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!call.is_finished());
    backend.set(Mode::Work);
    assert_eq!(call.await.unwrap(), pb::Reason::Valid);
}

/// A stream ends with its connection, however much is sent and read.
#[tokio::test]
async fn a_stream_ends_when_its_connection_reaches_its_maximum_age() {
    let mut config = config();
    config.server.max_connection_age = HumanDuration(Duration::from_millis(300));
    config.server.drain_timeout = HumanDuration(Duration::from_millis(300));
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
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let sent = ReceiverStream::new(sent);
    let mut answers = server.api().await.key_store().import_keys(sent).await.unwrap().into_inner();
    let end = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        }
    });
    let end = end.await.expect("the stream ends").unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    drop(answers);
    writing.await.unwrap();
}
