//! Tests that a failing backend is never reported as a verdict.

use keyvouch::conformance::api::{error_reason, new_key};
use keyvouch::grpc::pb;
use keyvouch::repository::{ErrorKind, KeyRepository as _, UsageStore as _};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::faulty::{DRIVER_TEXT, Faulty, Mode};
use crate::support::{TestServer, uncached, until, validate_request};

#[tokio::test]
async fn an_outage_is_an_error_and_not_a_verdict() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    let cases = [
        (ErrorKind::Unavailable, Code::Unavailable, "STORE_UNAVAILABLE"),
        (ErrorKind::Timeout, Code::DeadlineExceeded, "STORE_TIMEOUT"),
        (ErrorKind::Corrupt, Code::Internal, "RECORD_CORRUPT"),
        (ErrorKind::Internal, Code::Internal, "INTERNAL"),
        (ErrorKind::NotOffered, Code::Unimplemented, "NOT_OFFERED"),
    ];
    for (kind, code, reason) in cases {
        backend.set(Mode::Fail(kind));
        let status = api.validator().validate(validate_request(&secret)).await.unwrap_err();
        assert!(!format!("{status:?}").contains(DRIVER_TEXT), "{status:?}");
        assert_eq!(status.get_details_retry_info().is_some(), kind == ErrorKind::Unavailable);
        assert_eq!(error_reason::<()>(Err(status)), (code, reason.to_owned()));
    }
    backend.set(Mode::Work);
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
}

/// The error states whether a client may repeat the call without checking the outcome first.
#[tokio::test]
async fn the_error_of_a_change_states_whether_it_is_safe_to_retry() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (key, _) = api.create(new_key()).await;
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    let mut admin = api.key_store();
    let id = || key.id.clone();
    let row = pb::ImportKeysRequest {
        hash: vec![7; 32],
        key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
        ..pb::ImportKeysRequest::default()
    };
    let mut imported = admin.import_keys(futures_util::stream::iter([row])).await.unwrap().into_inner();
    let retried = pb::CreateKeyRequest { request_id: "once".into(), ..new_key() };
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { name: "new".into(), ..key.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
        ..pb::UpdateKeyRequest::default()
    };
    let rotate = pb::RotateKeyRequest { id: id(), ..pb::RotateKeyRequest::default() };
    let delete = pb::DeleteKeyRequest { id: id(), expected_revision: None };
    let revoke = pb::RevokeKeyRequest { id: id(), reason: String::new() };
    for (name, outcome, is_harmless) in [
        ("create", admin.create_key(new_key()).await.map(drop), false),
        ("create with a request_id", admin.create_key(retried).await.map(drop), true),
        ("update", admin.update_key(update).await.map(drop), false),
        ("rotate", admin.rotate_key(rotate).await.map(drop), false),
        ("revoke", admin.revoke_key(revoke).await.map(drop), true),
        ("delete", admin.delete_key(delete).await.map(drop), true),
        ("import", imported.message().await.map(drop), true),
    ] {
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{name}");
        assert_eq!(status.get_details_retry_info().is_some(), is_harmless, "{name}: {status:?}");
    }
}

/// The first part of a batch is stored when the second one fails, with the last uses of its keys.
#[tokio::test]
async fn an_import_stores_last_uses_even_if_a_later_key_fails() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    backend.reject_revivals();
    let used = prost_types::Timestamp { seconds: 1_600_000_000, nanos: 0 };
    let row = |number: u8, allow_revoked_hash| pb::ImportKeysRequest {
        hash: vec![number; 32],
        key: Some(pb::Key {
            name: "n".into(),
            owner_id: "o".into(),
            last_used_time: Some(used),
            ..pb::Key::default()
        }),
        allow_revoked_hash,
    };
    let rows = futures_util::stream::iter([row(1, false), row(2, true)]);
    let mut answers = api.key_store().import_keys(rows).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    let stored = backend.get_by_hash(&keyvouch::domain::KeyHash::from_bytes([1; 32])).await.unwrap().unwrap();
    let known = backend.usage(&[stored.id]).await.unwrap();
    assert_eq!(known[0].unwrap().as_micros(), 1_600_000_000_000_000);
}

#[tokio::test]
async fn a_malformed_key_is_not_looked_up() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;
    backend.set(Mode::Fail(ErrorKind::Unavailable));
    let before = backend.lookups();
    let last = if secret.ends_with('0') { "1" } else { "0" };
    let tampered = format!("{}{last}", &secret[..secret.len() - 1]);
    for malformed in ["", "nonsense", &tampered, &secret[1..], &secret.repeat(100)] {
        assert_eq!(api.reason(malformed).await, pb::Reason::Malformed);
    }
    assert_eq!(backend.lookups(), before);
    api.validator().validate(validate_request(&secret)).await.unwrap_err();
    assert_eq!(backend.lookups(), before + 1, "the lookup of a well-formed key is counted");
}

#[tokio::test]
async fn a_panic_fails_only_its_own_call() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (_, secret) = api.create(new_key()).await;

    // A call on the same connection waits for the backend while another one panics.
    backend.set(Mode::Hang);
    let lookups = backend.lookups();
    let waiting = {
        let (api, secret) = (api.clone(), secret.clone());
        tokio::spawn(async move { api.reason(&secret).await })
    };
    until("a lookup", async || backend.lookups() > lookups).await;
    backend.panic_once();
    let status = api.validator().validate(validate_request(&secret)).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("a panic of the test"), "{status:?}");
    assert!(!waiting.is_finished());
    backend.set(Mode::Work);
    assert_eq!(waiting.await.unwrap(), pb::Reason::Valid);
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
}

#[tokio::test]
async fn validations_do_not_wait_for_a_failing_usage_store() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    for mode in [Mode::Fail(ErrorKind::Unavailable), Mode::Hang] {
        backend.set_usage(mode);
        let flushes = backend.flushes();
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
        until("a flush", async || backend.flushes() > flushes).await;
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
    // The uses that could not be written are kept.
    backend.set_usage(Mode::Work);
    until("the last use", async || api.get(&key.id).await.last_used_time.is_some()).await;
}

#[tokio::test]
async fn a_revocation_succeeds_even_if_the_last_use_can_not_be_read() {
    let backend = Faulty::new();
    let server = TestServer::start_with(backend.clone(), &uncached()).await;
    let api = server.api().await;
    let (key, secret) = api.create(new_key()).await;
    backend.set_usage(Mode::Fail(ErrorKind::Unavailable));
    assert_eq!(api.revoke(&key.id, "leaked").await.state(), pb::KeyState::Revoked);
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
}

#[tokio::test]
async fn a_panic_of_a_background_task_ends_the_server_with_an_error() {
    let backend = Faulty::new();
    backend.panic_in_background();
    let server = TestServer::start_with(backend, &uncached()).await;
    let end = tokio::time::timeout(std::time::Duration::from_mins(1), server.ended()).await.unwrap();
    let reason = format!("{:#}", end.unwrap_err());
    assert!(reason.contains("background task \"event pruner\" failed"), "{reason}");
}
