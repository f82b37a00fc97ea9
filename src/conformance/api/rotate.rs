//! Tests of `RotateKey`.

use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Api, error_reason, invalid_field, new_key, seconds};
use crate::grpc::pb;
use crate::grpc::pb::create_key_request::Expiry;

const DAY: i64 = 86_400;

fn request(id: &str, overlap: i64) -> pb::RotateKeyRequest {
    pb::RotateKeyRequest { id: id.into(), overlap: Some(seconds(overlap)), ..pb::RotateKeyRequest::default() }
}

async fn rotate(api: &Api, request: pb::RotateKeyRequest) -> (pb::Key, String, pb::Key) {
    let response = api.key_store().rotate_key(request).await.unwrap().into_inner();
    (response.key.unwrap(), response.secret, response.replaced.unwrap())
}

/// The old key stays valid until its expiry, which the rotation sets.
pub async fn both_keys_are_valid_during_the_overlap(api: Api) {
    let (old, old_secret) = api.create(new_key()).await;
    let (new, new_secret, replaced) = rotate(&api, request(&old.id, 3_600)).await;
    assert_ne!((&new.id, &new_secret), (&old.id, &old_secret));
    assert_eq!((&new.rotated_from, &replaced.replaced_by), (&old.id, &new.id));
    let end = replaced.expire_time.unwrap().seconds - replaced.update_time.unwrap().seconds;
    assert_eq!(end, 3_600);
    assert_eq!(api.reason(&old_secret).await, pb::Reason::Valid);
    assert_eq!(api.reason(&new_secret).await, pb::Reason::Valid);
    assert_eq!(api.get(&old.id).await.replaced_by, new.id);
}

/// The old key is revoked at once.
pub async fn without_overlap_the_old_key_is_revoked(api: Api) {
    let (old, old_secret) = api.create(new_key()).await;
    let without = pb::RotateKeyRequest { overlap: None, ..request(&old.id, 0) };
    let (_, new_secret, replaced) = rotate(&api, without).await;
    assert_eq!(replaced.state(), pb::KeyState::Revoked);
    assert_eq!(api.reason(&old_secret).await, pb::Reason::Revoked);
    assert_eq!(api.reason(&new_secret).await, pb::Reason::Valid);
}

/// A request can set another expiry. The overlap never extends the lifetime of the old key.
pub async fn the_successor_inherits_attributes_and_lifetime(api: Api) {
    let create = pb::CreateKeyRequest {
        description: "purpose".into(),
        scopes: vec!["read".into()],
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        expiry: Some(Expiry::Ttl(seconds(10 * DAY))),
        ..new_key()
    };
    let (old, _) = api.create(create).await;
    let (new, _, replaced) = rotate(&api, request(&old.id, 20 * DAY)).await;
    assert_eq!(
        (&new.name, &new.owner_id, &new.description, &new.scopes, &new.metadata, &new.prefix),
        (&old.name, &old.owner_id, &old.description, &old.scopes, &old.metadata, &old.prefix)
    );
    let micros = |time: Option<prost_types::Timestamp>| {
        let time = time.unwrap();
        time.seconds * 1_000_000 + i64::from(time.nanos / 1_000)
    };
    assert_eq!(micros(new.expire_time) - micros(new.create_time), 10 * DAY * 1_000_000);
    assert_eq!(replaced.expire_time, old.expire_time);

    let hour = pb::rotate_key_request::Expiry::Ttl(seconds(3_600));
    let (newer, _, _) =
        rotate(&api, pb::RotateKeyRequest { expiry: Some(hour), ..request(&new.id, 0) }).await;
    assert_eq!(micros(newer.expire_time) - micros(newer.create_time), 3_600 * 1_000_000);
}

/// Revoked, expired and replaced keys are rejected.
pub async fn inactive_keys_are_not_rotated(api: Api) {
    let mut key_store = api.key_store();
    let (revoked, _) = api.create(new_key()).await;
    api.revoke(&revoked.id, "").await;
    let rejected = |reason: &str| (Code::FailedPrecondition, reason.to_owned());
    assert_eq!(error_reason(key_store.rotate_key(request(&revoked.id, 1)).await), rejected("KEY_REVOKED"));

    let (replaced, _) = api.create(new_key()).await;
    rotate(&api, request(&replaced.id, 3_600)).await;
    assert_eq!(error_reason(key_store.rotate_key(request(&replaced.id, 1)).await), rejected("KEY_REPLACED"));

    let ttl = prost_types::Duration { seconds: 0, nanos: 1_000_000 };
    let expiring = pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(ttl)), ..new_key() };
    let (expired, secret) = api.create(expiring).await;
    while api.reason(&secret).await != pb::Reason::Expired {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(error_reason(key_store.rotate_key(request(&expired.id, 1)).await), rejected("KEY_EXPIRED"));
}

/// The expiry of a replaced key can be shortened, and its other attributes can be changed.
pub async fn the_expiry_of_a_replaced_key_is_not_extended(api: Api) {
    let (old, _) = api.create(new_key()).await;
    let (_, _, replaced) = rotate(&api, request(&old.id, 3_600)).await;
    let end = replaced.expire_time.unwrap().seconds;
    let until = |expire_time| pb::UpdateKeyRequest {
        key: Some(pb::Key { expire_time, ..replaced.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["expire_time".into()] }),
        expected_revision: None,
    };
    let later = Some(prost_types::Timestamp { seconds: end + 60, nanos: 0 });
    let sooner = Some(prost_types::Timestamp { seconds: end - 60, nanos: 0 });
    let mut key_store = api.key_store();
    let rejected = (Code::FailedPrecondition, "KEY_REPLACED".to_owned());
    assert_eq!(error_reason(key_store.update_key(until(later)).await), rejected);
    assert_eq!(error_reason(key_store.update_key(until(None)).await), rejected);
    assert_eq!(api.get(&old.id).await, replaced);
    let shortened = key_store.update_key(until(sooner)).await.unwrap().into_inner().key.unwrap();
    assert_eq!(shortened.expire_time, sooner);
}

/// Each error names the invalid field.
pub async fn invalid_fields_of_rotate_are_named(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let mut key_store = api.key_store();
    assert_eq!(invalid_field(key_store.rotate_key(request(&key.id, 31 * DAY)).await), "overlap");
    assert_eq!(invalid_field(key_store.rotate_key(request(&key.id, -1)).await), "overlap");
    let past = pb::rotate_key_request::Expiry::ExpireTime(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let expired = pb::RotateKeyRequest { expiry: Some(past), ..request(&key.id, 0) };
    assert_eq!(invalid_field(key_store.rotate_key(expired).await), "expire_time");
    assert_eq!(api.get(&key.id).await, key);
}

/// A retry does not create a second successor, with or without an overlap. It returns the id of the first
/// one.
pub async fn a_retry_with_a_request_id_creates_no_second_successor(api: Api) {
    for overlap in [0, 60] {
        let (old, _) = api.create(new_key()).await;
        let request = pb::RotateKeyRequest { request_id: "retry".into(), ..request(&old.id, overlap) };
        let rotated = api.key_store().rotate_key(request.clone()).await.unwrap().into_inner();
        let status = api.key_store().rotate_key(request).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "REQUEST_ALREADY_APPLIED");
        assert_eq!(info.metadata["key_id"], rotated.key.unwrap().id);
    }
}

/// One of several concurrent attempts creates a successor, and all others return its id.
pub async fn concurrent_rotations_with_one_request_id_create_one_successor(api: Api) {
    for overlap in [0, 60] {
        let (old, _) = api.create(new_key()).await;
        let request = pb::RotateKeyRequest { request_id: "once".into(), ..request(&old.id, overlap) };
        let rotating = (0..12).map(|_| {
            let (api, request) = (api.clone(), request.clone());
            async move { api.key_store().rotate_key(request).await }
        });
        let (rotated, rejected): (Vec<_>, Vec<_>) =
            futures_util::future::join_all(rotating).await.into_iter().partition(Result::is_ok);
        assert_eq!(rotated.len(), 1);
        let successor = rotated[0].as_ref().unwrap().get_ref().key.as_ref().unwrap().id.clone();
        for status in rejected {
            let status = status.unwrap_err();
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (status.code(), info.reason.as_str()),
                (Code::AlreadyExists, "REQUEST_ALREADY_APPLIED")
            );
            assert_eq!(info.metadata["key_id"], successor);
        }
    }
}

/// A second rotation, without a request id or with another one, returns the id of the successor, which can be
/// rotated.
pub async fn rotating_a_replaced_key_returns_the_id_of_its_successor(api: Api) {
    for overlap in [0, 60] {
        let (old, _) = api.create(new_key()).await;
        let rotated = api.key_store().rotate_key(request(&old.id, overlap)).await.unwrap().into_inner();
        let status = api.key_store().rotate_key(request(&old.id, overlap)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "KEY_REPLACED");
        let successor = &info.metadata["replaced_by"];
        assert_eq!(*successor, rotated.key.unwrap().id);
        assert!(status.message().contains(successor.as_str()), "{}", status.message());
        api.key_store().rotate_key(request(successor, overlap)).await.unwrap();
    }
}
