//! Tests of health, request ids and reflection.

use keyvouch::conformance::api::new_key;
use keyvouch::grpc::pb;
use keyvouch::repository::ErrorKind;
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::faulty::{Faulty, Mode};
use crate::support::{TestServer, uncached, until};

#[tokio::test]
async fn each_service_reports_its_health() {
    let backend = Faulty::new();
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let mut health = HealthClient::new(server.channel().await);
    let mut check = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        health.check(request).await.map(|answer| answer.into_inner().status())
    };
    let services = ["", "keyvouch.v1.Validator", "keyvouch.v1.KeyStore"];
    for service in services {
        assert_eq!(
            wait_for(&mut check, service, ServingStatus::NotServing).await,
            (),
            "before the backend has responded"
        );
    }
    backend.set(Mode::Work);
    for service in services {
        wait_for(&mut check, service, ServingStatus::Serving).await;
    }
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    for service in &services[1..] {
        wait_for(&mut check, service, ServingStatus::NotServing).await;
    }
    assert_eq!(check("").await.unwrap(), ServingStatus::Serving, "the server itself is healthy");
    assert_eq!(check("nobody").await.unwrap_err().code(), tonic::Code::NotFound);
}

async fn wait_for(
    check: &mut impl AsyncFnMut(&str) -> Result<ServingStatus, tonic::Status>,
    service: &str,
    expected: ServingStatus,
) {
    // A service that is not registered yet is NOT_FOUND.
    until(service, async || check(service).await.ok() == Some(expected)).await;
}

#[tokio::test]
async fn every_response_has_a_request_id() {
    let server = TestServer::start_with(Faulty::new(), &uncached()).await;
    let api = server.api().await;
    let answered = |id: Option<&'static str>| {
        let mut request = Request::new(pb::ValidateRequest::default());
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let mut validator = api.validator();
        async move {
            let answer = validator.validate(request).await.unwrap();
            answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
        }
    };
    assert_eq!(answered(Some("my-id-1")).await, "my-id-1");
    let (first, second) = (answered(None).await, answered(None).await);
    assert!(!first.is_empty() && first != second);
    assert_ne!(answered(Some("not an id")).await, "not an id");

    let status = api.key_store().get_key(pb::GetKeyRequest::default()).await.unwrap_err();
    assert!(status.metadata().get("x-request-id").is_some(), "errors have a request id");
    let nobody = pb::key_store_client::KeyStoreClient::new(server.channel().await);
    let status = { nobody }.create_key(new_key()).await.unwrap_err();
    assert!(status.metadata().get("x-request-id").is_some(), "rejections have a request id");
}
