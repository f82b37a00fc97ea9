//! Tests of requests that are not gRPC calls.

use http::{Method, Request};
use keyvouch::config::Config;
use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use prost::Message as _;
use tokio::net::TcpStream;

use crate::support::{TOKEN, TestServer, config};

/// Sends a request. Returns the status of the response, whether it has a `grpc-status`, and the allowed
/// methods.
async fn send(
    server: &TestServer,
    method: Method,
    path: &str,
    content_type: Option<&str>,
) -> (u16, bool, String) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", server.address))
        .header("te", "trailers")
        .header("origin", "https://evil.example")
        .header("authorization", format!("Bearer {TOKEN}"));
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let message = new_key().encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    // The server may have responded already.
    let _ = body.send_data([&[0][..], &length, &message].concat().into(), true);
    let answer = answer.await.unwrap();
    let allowed = answer.headers().get("allow").map(|allow| allow.to_str().unwrap().to_owned());
    let is_grpc = answer.headers().contains_key("grpc-status");
    (answer.status().as_u16(), is_grpc, allowed.unwrap_or_default())
}

async fn count(server: &TestServer) -> usize {
    let listed = server.api().await.key_store().list_keys(pb::ListKeysRequest::default()).await.unwrap();
    listed.into_inner().keys.len()
}

async fn nothing_is_executed(config: &Config) {
    let server = TestServer::start_with(MemoryRepository::new(), config).await;
    let create = "/keyvouch.v1.KeyStore/CreateKey";
    for path in [create, "/keyvouch.v1.Validator/Validate", "/grpc.health.v1.Health/Check", "/", "/nowhere"] {
        for method in [Method::GET, Method::PUT, Method::OPTIONS, Method::DELETE, Method::HEAD] {
            let answer = send(&server, method.clone(), path, Some("application/grpc")).await;
            assert_eq!(answer, (405, false, "POST".to_owned()), "{method} {path}");
        }
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/json"),
            Some("application/x-www-form-urlencoded"),
            Some("application/grpc-web+proto"),
        ] {
            let answer = send(&server, Method::POST, path, content_type).await;
            assert_eq!(answer, (415, false, String::new()), "{content_type:?} {path}");
        }
    }
    assert_eq!(count(&server).await, 0);
    assert_eq!(send(&server, Method::POST, create, Some("application/grpc+proto")).await.0, 200);
    assert_eq!(count(&server).await, 1);
}

#[tokio::test]
async fn requests_that_are_not_grpc_calls_are_rejected() {
    nothing_is_executed(&config()).await;
}

#[tokio::test]
async fn requests_that_are_not_grpc_calls_are_rejected_without_credentials_too() {
    let mut config = config();
    (config.admin.tokens, config.admin.insecure) = (Vec::new(), true);
    nothing_is_executed(&config).await;
}
