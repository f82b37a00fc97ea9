//! Tests that clients which don't complete their requests, or don't read, don't delay others.

use std::time::Duration;

use h2::SendStream;
use h2::client::SendRequest;
use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use prost::bytes::Bytes;
use tokio::net::TcpStream;

use super::faulty::{Faulty, Mode};
use crate::support::{TOKEN, TestServer, uncached, validate_request};

/// Returns a client that sends exactly what a test requests.
pub(super) async fn raw_client(server: &TestServer) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

/// Returns the headers of a call.
pub(super) fn raw_call(server: &TestServer, path: &str) -> http::request::Builder {
    http::Request::post(format!("http://{}{path}", server.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// Begins `count` calls of `path` on one connection, without messages.
pub(super) async fn begin_calls(server: &TestServer, path: &str, count: u32) -> Vec<SendStream<Bytes>> {
    let mut client = raw_client(server).await;
    let mut bodies = Vec::new();
    for _ in 0..count {
        client = client.ready().await.unwrap();
        let request = raw_call(server, path).body(()).unwrap();
        bodies.push(client.send_request(request, false).unwrap().1);
    }
    bodies
}

#[tokio::test]
async fn calls_without_a_message_take_no_slot() {
    let mut config = uncached();
    config.server.max_calls = 4;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let mut silent = Vec::new();
    for path in
        ["/keyvouch.v1.Validator/Validate", "/keyvouch.v1.KeyStore/CreateKey", "/grpc.health.v1.Health/Check"]
    {
        silent.push(begin_calls(&server, path, 10).await);
    }
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
}

/// A byte, an empty frame, and a whole message without an end of stream don't count as a call yet.
#[tokio::test]
async fn calls_with_an_incomplete_message_take_no_slot() {
    let mut config = uncached();
    config.server.max_calls = 4;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let message = validate_request(&secret);
    let message = prost::Message::encode_to_vec(&message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let whole = [&[0][..], &length, &message].concat();
    let mut begun = Vec::new();
    for piece in [&b""[..], b"\0", &whole[..5], &whole[..20], &whole] {
        for mut body in begin_calls(&server, "/keyvouch.v1.Validator/Validate", 10).await {
            body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
            begun.push((body, piece.len()));
        }
    }
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
    // A message in several pieces is answered like any other.
    let (mut client, mut answers) = (raw_client(&server).await, Vec::new());
    for size in [1, 3, 7] {
        client = client.ready().await.unwrap();
        let request = raw_call(&server, "/keyvouch.v1.Validator/Validate").body(()).unwrap();
        let (answer, mut body) = client.send_request(request, false).unwrap();
        for piece in whole.chunks(size) {
            body.send_data(Bytes::copy_from_slice(piece), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        answers.push(answer);
    }
    for answer in answers {
        assert!(
            answer.await.unwrap().headers().get("grpc-status").is_none(),
            "the call was not answered with its message"
        );
    }
}

#[tokio::test]
async fn an_incomplete_message_above_the_size_limit_is_rejected() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let mut client = raw_client(&server).await;
    let request = raw_call(&server, "/keyvouch.v1.Validator/Validate").body(()).unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    // The message has a length of one byte, but more data follows.
    let sending = tokio::spawn(async move {
        body.reserve_capacity(100 * 1024);
        body.send_data([&[0, 0, 0, 0, 1][..], &vec![7; 80 * 1024]].concat().into(), false).unwrap();
        body
    });
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
    drop(sending.await.unwrap());
}

/// Streams that wait for their client end with their connection.
#[tokio::test]
async fn streams_without_traffic_do_not_keep_a_connection_open() {
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_millis(200));
    config.server.drain_timeout = HumanDuration(Duration::from_millis(300));
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/keyvouch.v1.KeyStore/ImportKeys",
    ] {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let call = raw_call(&server, path).header("authorization", format!("Bearer {TOKEN}"));
        let (answer, body) = client.send_request(call.body(()).unwrap(), false).unwrap();
        let answer = answer.await.unwrap();
        assert!(answer.headers().get("grpc-status").is_none(), "{path} was rejected");
        let end = tokio::time::timeout(Duration::from_secs(20), connection).await;
        // The client's result does not matter.
        drop(end.unwrap_or_else(|_| panic!("{path} keeps its connection open")));
        drop((answer, body));
    }
}

/// The client has an empty window for responses, and keeps answering pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_can_not_keep_its_connection_open() {
    let backend = Faulty::new();
    let mut config = uncached();
    config.server.max_connection_age = HumanDuration(Duration::from_millis(200));
    config.server.drain_timeout = HumanDuration(Duration::from_millis(300));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let builder = h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream);
    let (client, connection) = builder.await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = raw_call(&server, "/keyvouch.v1.Validator/Validate").body(()).unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    body.send_data(vec![0; 5].into(), true).unwrap();
    let answer = answer.await.unwrap();
    // Another client's call takes much longer and completes, because it waits for the server.
    backend.set(Mode::Hang);
    let patient = tokio::spawn(async move { api.reason(&secret).await });
    let end =
        tokio::time::timeout(Duration::from_mins(1), connection).await.expect("the connection is closed");
    // The client's result does not matter.
    drop(end);
    drop(answer);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!patient.is_finished());
    backend.set(Mode::Work);
    assert_eq!(patient.await.unwrap(), pb::Reason::Valid);
}
