//! Tests of compressed requests, and of the size limits that apply after decompression.

use http::Request;
use keyvouch::conformance::api::{error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{TestServer, validate_request};

const ENCODINGS: [CompressionEncoding; 2] = [CompressionEncoding::Gzip, CompressionEncoding::Deflate];
/// The size of messages that are far above all limits, and about a kilobyte when they are compressed.
const LARGE: usize = 1 << 20;

fn row(number: u8, description: usize) -> pb::ImportKeysRequest {
    let key = pb::Key {
        name: "n".into(),
        owner_id: "o".into(),
        description: "x".repeat(description),
        ..pb::Key::default()
    };
    pb::ImportKeysRequest { key: Some(key), hash: vec![number; 32], allow_revoked_hash: false }
}

#[tokio::test]
async fn compressed_requests_are_accepted_by_all_services() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    for (number, encoding) in (0..).zip(ENCODINGS) {
        let mut key_store = api.key_store().send_compressed(encoding);
        let request = pb::CreateKeyRequest { description: "x".repeat(1_000), ..new_key() };
        let secret = key_store.create_key(request).await.unwrap().into_inner().secret;
        let rows = tokio_stream::iter([row(number, 1_000)]);
        let mut imported = key_store.import_keys(rows).await.unwrap().into_inner();
        let first = imported.message().await.unwrap().unwrap();
        assert!(matches!(first.result, Some(pb::import_keys_response::Result::Key(_))), "{first:?}");
        let mut validator = api.validator().send_compressed(encoding);
        let answer = validator.validate(validate_request(&secret)).await.unwrap().into_inner();
        assert_eq!(answer.reason(), pb::Reason::Valid);
        let mut health = HealthClient::new(server.channel().await).send_compressed(encoding);
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
}

/// Checks that a call is rejected because its message has more than `limit` bytes.
fn check_too_large<T: std::fmt::Debug>(outcome: Result<T, Status>, limit: usize) {
    let status = outcome.unwrap_err();
    assert!(status.message().contains(&format!(" {limit} bytes")), "{status:?}");
    let found = error_reason::<()>(Err(status));
    assert_eq!(found, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn size_limits_apply_after_decompression() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let key = pb::CreateKeyRequest { description: "x".repeat(LARGE), ..new_key() };
    let service = HealthCheckRequest { service: "x".repeat(LARGE) };
    for encoding in ENCODINGS.map(Some).into_iter().chain([None]) {
        let (mut validator, mut key_store) = (api.validator(), api.key_store());
        let mut health = HealthClient::new(server.channel().await);
        if let Some(encoding) = encoding {
            validator = validator.send_compressed(encoding);
            key_store = key_store.send_compressed(encoding);
            health = health.send_compressed(encoding);
        }
        let secret = "x".repeat(LARGE);
        check_too_large(
            validator.validate(validate_request(&secret)).await.map(Response::into_inner),
            16_384,
        );
        check_too_large(key_store.create_key(key.clone()).await.map(Response::into_inner), 131_072);
        check_too_large(health.check(service.clone()).await.map(Response::into_inner), 4_096);
        check_too_large(health.watch(service.clone()).await.map(|_| ()), 4_096);
    }
    api.create(new_key()).await;
}

/// The rows before the large one are stored.
#[tokio::test]
async fn a_large_row_ends_its_import() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    for (number, encoding) in (0..).zip(ENCODINGS.map(Some).into_iter().chain([None])) {
        let mut key_store = api.key_store();
        if let Some(encoding) = encoding {
            key_store = key_store.send_compressed(encoding);
        }
        let rows = tokio_stream::iter([row(2 * number, 10), row(2 * number + 1, LARGE)]);
        let mut imported = key_store.import_keys(rows).await.unwrap().into_inner();
        let first = imported.message().await.unwrap().unwrap();
        assert!(matches!(first.result, Some(pb::import_keys_response::Result::Key(_))), "{first:?}");
        check_too_large(imported.message().await, 131_072);
    }
}

/// The response to a call of `Validate`: its HTTP status, `grpc-status`, `grpc-message`, `grpc-accept-encoding` and
/// `grpc-encoding`.
type Answer = (u16, String, String, Option<String>, Option<String>);

/// Calls `Validate` with the encoding `encoding` and this message, whose compression flag is `flag`.
async fn validate(server: &TestServer, encoding: Option<&str>, flag: u8, message: &[u8]) -> Answer {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://{}/keyvouch.v1.Validator/Validate", server.address))
        .header("content-type", "application/grpc")
        .header("grpc-accept-encoding", "gzip,deflate")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data([&[flag][..], &length, message].concat().into(), true).unwrap();
    let answer = answer.await.unwrap();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let status = header("grpc-status").unwrap_or_default();
    let text = header("grpc-message").unwrap_or_default();
    (answer.status().as_u16(), status, text, header("grpc-accept-encoding"), header("grpc-encoding"))
}

#[tokio::test]
async fn other_encodings_are_rejected_by_name() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let long = "x".repeat(1_000);
    for (encoding, named) in [("zstd", "zstd"), ("snappy", "snappy"), (&long, &long[..32])] {
        for flag in [0, 1] {
            let (http, status, message, accepted, _) = validate(&server, Some(encoding), flag, b"any").await;
            // A 404 would be reported as an unknown method.
            assert_eq!((http, &*status), (200, "12"), "{encoding}: {message}");
            assert_eq!(accepted.as_deref(), Some("gzip,deflate,identity"), "{encoding}");
            assert!(
                message.contains(&format!("`{named}`")) || message.contains(&format!("%60{named}%60")),
                "{message}"
            );
        }
    }
    let mut call = tonic::client::Grpc::new(server.channel().await);
    call.ready().await.unwrap();
    let mut request = tonic::Request::new(pb::ValidateRequest::default());
    request.metadata_mut().insert("grpc-encoding", "zstd".parse().unwrap());
    let path = http::uri::PathAndQuery::from_static("/keyvouch.v1.Validator/Validate");
    let codec = tonic_prost::ProstCodec::<pb::ValidateRequest, pb::ValidateResponse>::default();
    let rejected = error_reason(call.unary(request, path, codec).await);
    assert_eq!(rejected, (Code::Unimplemented, "ENCODING_UNSUPPORTED".to_owned()));
}

#[tokio::test]
async fn damaged_messages_are_malformed() {
    let server = TestServer::start(MemoryRepository::new()).await;
    for (encoding, flag) in [(Some("gzip"), 1), (Some("deflate"), 1), (None, 1), (Some("gzip"), 2)] {
        let (http, status, message, ..) = validate(&server, encoding, flag, b"not compressed at all").await;
        let expected = (Code::InvalidArgument as i32).to_string();
        assert_eq!((http, status), (200, expected), "{encoding:?} {flag}: {message}");
    }
}

/// The length of a compressed response would depend on the secret in it.
#[tokio::test]
async fn responses_are_not_compressed() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let request = validate_request("nonsense").encode_to_vec();
    let (http, status, _, _, encoding) = validate(&server, None, 0, &request).await;
    assert_eq!((http, &*status, encoding), (200, "", None));
}
