//! Tests of the limits on the size and the number of fields of requests.

use keyvouch::conformance::api::{error_reason, invalid_field, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::MemoryRepository;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::{TestServer, config, validate_request};

#[tokio::test]
async fn messages_above_the_size_limit_are_rejected() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let request = |bytes| validate_request(&"x".repeat(bytes));
    let response = api.validator().validate(request(15 * 1024)).await.unwrap().into_inner();
    assert_eq!(response.reason(), pb::Reason::Malformed);
    let expected = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(error_reason(api.validator().validate(request(17 * 1024)).await), expected);
    let large = pb::CreateKeyRequest { description: "x".repeat(150 * 1024), ..new_key() };
    assert_eq!(error_reason(api.key_store().create_key(large).await), expected);
    let mut health = HealthClient::new(server.channel().await);
    let service = HealthCheckRequest { service: "x".repeat(5 * 1024) };
    assert_eq!(error_reason(health.check(service.clone()).await), expected);
    assert_eq!(error_reason(health.watch(service).await), expected);
    api.create(new_key()).await;
}

/// An error of reflection can only end its stream.
#[tokio::test]
async fn reflection_has_a_size_limit_and_can_be_disabled() {
    let ask = |size| {
        let name = "x".repeat(size);
        let message_request = Some(MessageRequest::FileContainingSymbol(name));
        tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request }])
    };
    let server = TestServer::start(MemoryRepository::new()).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let mut answers = reflection.server_reflection_info(ask(3 * 1024)).await.unwrap().into_inner();
    assert!(answers.message().await.is_err_and(|unknown| unknown.code() == Code::NotFound));
    let mut answers = reflection.server_reflection_info(ask(5 * 1024)).await.unwrap().into_inner();
    // tonic's service ends its stream without an error.
    assert!(!matches!(answers.message().await, Ok(Some(_))));

    let mut config = config();
    config.server.reflection = false;
    let server = TestServer::start_with(MemoryRepository::new(), &config).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let unknown = error_reason(reflection.server_reflection_info(ask(1)).await);
    assert_eq!(unknown, (Code::Unimplemented, "METHOD_UNKNOWN".to_owned()));
    server.api().await.create(new_key()).await;
}

/// Repeated values cost as much as distinct ones, so they are counted before they are deduplicated.
#[tokio::test]
async fn repeated_fields_are_counted_before_they_are_parsed() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    let validate = |scopes: usize| {
        let required_scopes = vec!["a".to_owned(); scopes];
        pb::ValidateRequest { secret: secret.clone(), required_scopes, ..pb::ValidateRequest::default() }
    };
    let answer = api.validator().validate(validate(64)).await.unwrap().into_inner();
    assert_eq!(answer.reason(), pb::Reason::InsufficientScope);
    assert_eq!(invalid_field(api.validator().validate(validate(65)).await), "required_scopes");
    let too_many = (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned());
    assert_eq!(error_reason(api.validator().validate(validate(1_000)).await), too_many);
    let update = pb::UpdateKeyRequest {
        key: Some(key),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into(); 1_500] }),
        expected_revision: None,
    };
    assert_eq!(error_reason(api.key_store().update_key(update).await), too_many);
    let list = |states| pb::ListKeysRequest { states: vec![1; states], ..pb::ListKeysRequest::default() };
    assert_eq!(invalid_field(api.key_store().list_keys(list(4)).await), "states");
    assert_eq!(error_reason(api.key_store().list_keys(list(10_000)).await), too_many);
}

/// Each header field takes more memory than its length.
#[tokio::test]
async fn header_fields_above_the_limit_are_rejected() {
    let server = TestServer::start(MemoryRepository::new()).await;
    let mut validator = server.api().await.validator();
    let mut ask = async |fields: usize| {
        let mut request = tonic::Request::new(pb::ValidateRequest::default());
        for number in 0..fields {
            let name = format!("x-{number}").parse::<tonic::metadata::AsciiMetadataKey>().unwrap();
            request.metadata_mut().insert(name, "v".parse().unwrap());
        }
        validator.validate(request).await
    };
    ask(50).await.unwrap();
    assert_eq!(error_reason(ask(70).await), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
}
