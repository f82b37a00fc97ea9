//! Tests of the limits on concurrent calls, and of deadlines.

use std::collections::HashMap;
use std::time::Duration;

use keyvouch::config::HumanDuration;
use keyvouch::conformance::api::{Api, error_reason, invalid_field, new_key};
use keyvouch::domain::{KeyPrefix, SecretKey, SystemEntropy};
use keyvouch::grpc::pb;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::faulty::{Faulty, Mode};
use super::slow_clients::{raw_call, raw_client};
use crate::support::{
    TOKEN, TestServer, config, key_with_scope, overloaded, unauthenticated, uncached, until, validate_request,
};

/// Returns the secrets of `count` new keys. Concurrent calls for one key can share a lookup.
pub(super) async fn secrets(api: &Api, count: usize) -> Vec<String> {
    let mut secrets = Vec::new();
    for _ in 0..count {
        secrets.push(api.create(new_key()).await.1);
    }
    secrets
}

/// Returns a well-formed key string that is not stored.
fn unknown() -> String {
    let prefix = KeyPrefix::parse("prefix", "kv_").unwrap();
    SecretKey::generate(&prefix, &SystemEntropy).unwrap().expose().to_owned()
}

/// While calls wait for the backend, cached keys are answered, and administrators have slots of their own.
#[tokio::test]
async fn cached_keys_and_administrators_are_served_while_calls_wait_for_the_backend() {
    let mut config = config();
    config.server.max_calls = 10;
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    backend.set(Mode::Hang);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..11 {
        let mut validator = api.validator();
        waiting.spawn(async move {
            let request = validate_request(&unknown());
            error_reason(validator.validate(request).await)
        });
    }
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), overloaded(), "a call above the limit");
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid, "the key is cached");
    let get = pb::GetKeyRequest { id: "nonsense".into() };
    assert_eq!(invalid_field(api.key_store().get_key(get).await), "id");
    assert!(waiting.try_join_next().is_none());
    backend.set(Mode::Work);
}

/// A call above the limit is answered from the cache. Its credential is not looked up either, and is not reported as
/// invalid, because its state is unknown.
#[tokio::test]
async fn a_call_above_the_limit_looks_up_no_credential() {
    let mut config = config();
    config.server.max_calls = 1;
    config.validator.access = keyvouch::grpc::ValidatorAccess::Credential;
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let (_, cached) = api.create(key_with_scope("keyvouch.validate")).await;
    let cached = Api::new(server.channel().await, &cached);
    cached.admin_validator().validate(validate_request(&secret)).await.unwrap();
    backend.set(Mode::Hang);
    let before = backend.lookups();
    let waiting = tokio::spawn({
        let mut validator = api.admin_validator();
        async move { validator.validate(validate_request(&unknown())).await }
    });
    until("a lookup", async || backend.lookups() == before + 1).await;
    for max_staleness in [None, Some(prost_types::Duration::default())] {
        let uncached = Api::new(server.channel().await, &unknown());
        let request = pb::ValidateRequest { max_staleness, ..validate_request(&secret) };
        assert_eq!(error_reason(uncached.admin_validator().validate(request).await), overloaded());
    }
    let answer = cached.admin_validator().validate(validate_request(&secret)).await.unwrap();
    assert!(answer.into_inner().valid, "the credential and the key are cached");
    assert_eq!(backend.lookups(), before + 1);
    backend.set(Mode::Work);
    waiting.await.unwrap().unwrap();
    let unknown = Api::new(server.channel().await, &unknown());
    let rejected = error_reason(unknown.admin_validator().validate(validate_request(&secret)).await);
    assert_eq!(rejected, unauthenticated("CREDENTIAL_INVALID"));
}

/// Random credentials use no slots of validations, nor of credentials that are cached.
#[tokio::test]
async fn lookups_of_credentials_have_a_limit_of_their_own() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &config()).await;
    let api = server.api().await;
    let (_, reader) = api.create(key_with_scope("keyvouch.read")).await;
    let list = async |secret: &str| {
        let api = Api::new(server.channel().await, secret);
        api.key_store().get_key(pb::GetKeyRequest { id: "nonsense".into() }).await
    };
    assert_eq!(invalid_field(list(&reader).await), "id");
    backend.set(Mode::Hang);
    let mut calls = Vec::new();
    for _ in 0..40 {
        let caller = Api::new(server.channel().await, &unknown());
        calls.push(tokio::spawn(async move {
            error_reason(caller.key_store().get_key(pb::GetKeyRequest { id: "nonsense".into() }).await)
        }));
    }
    until("the rejected calls", async || calls.iter().filter(|call| call.is_finished()).count() == 8).await;
    assert_eq!(invalid_field(list(&reader).await), "id", "the key is cached");
    assert_eq!(invalid_field(list(TOKEN).await), "id");
    backend.set(Mode::Work);
    let mut reasons = HashMap::<_, usize>::new();
    for call in calls {
        *reasons.entry(call.await.unwrap().1).or_default() += 1;
    }
    assert_eq!((reasons["OVERLOADED"], reasons["CREDENTIAL_INVALID"]), (8, 32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_above_the_limit_are_rejected_immediately_except_health_checks() {
    let backend = Faulty::new();
    let mut config = uncached();
    config.server.max_calls = 2;
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let secrets = secrets(&api, 2).await;
    backend.set(Mode::Hang);
    let before = backend.lookups();
    let hanging: Vec<_> = secrets
        .into_iter()
        .map(|secret| {
            let api = api.clone();
            tokio::spawn(async move { api.reason(&secret).await })
        })
        .collect();
    until("two lookups", async || backend.lookups() == before + 2).await;
    let request = validate_request(&secret);
    let rejected = api.validator().validate(request.clone()).await.unwrap_err();
    assert!(tonic_types::StatusExt::get_details_retry_info(&rejected).is_some(), "{rejected:?}");
    assert_eq!(error_reason(Err::<tonic::Response<()>, _>(rejected)), overloaded());
    let mut health = HealthClient::new(server.channel().await);
    health.check(HealthCheckRequest::default()).await.unwrap();
    backend.set(Mode::Work);
    for call in hanging {
        assert_eq!(call.await.unwrap(), pb::Reason::Valid);
    }
    api.validator().validate(request).await.unwrap();
}

#[tokio::test]
async fn a_call_ends_by_its_deadline() {
    let backend = Faulty::new();
    let mut config = uncached();
    config.server.call_timeout = HumanDuration(Duration::from_millis(200));
    let server = TestServer::start_with(backend.clone(), &config).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    backend.set(Mode::Hang);
    let request = || {
        let message = validate_request(&secret);
        tonic::Request::new(message)
    };
    let exceeded = (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned());
    assert_eq!(
        error_reason(api.validator().validate(request()).await),
        exceeded,
        "the timeout of the server"
    );
    let mut config = config.clone();
    config.server.call_timeout = HumanDuration(Duration::from_mins(1));
    backend.set(Mode::Work);
    let server = TestServer::start_with(backend.clone(), &config).await;
    assert_eq!(status_by_raw_http(&server, &secret, "10S").await, "0");
    backend.set(Mode::Hang);
    assert_eq!(status_by_raw_http(&server, &secret, "20m").await, "4", "the timeout of the caller");
}

/// Returns the status code of a `Validate` call with `timeout`. tonic's own client would time out by itself.
async fn status_by_raw_http(server: &TestServer, secret: &str, timeout: &str) -> String {
    let request = raw_call(server, "/keyvouch.v1.Validator/Validate").header("grpc-timeout", timeout);
    let mut client = raw_client(server).await;
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let message = validate_request(secret);
    let message = prost::Message::encode_to_vec(&message);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data([&[0][..], &length, &message].concat().into(), true).unwrap();
    let answer = answer.await.unwrap();
    let status = answer.headers().get("grpc-status");
    // A response with a body has its status in the trailers.
    status.map_or("0", |status| status.to_str().unwrap()).to_owned()
}
