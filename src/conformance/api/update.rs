//! Tests of `UpdateKey`.

use prost_types::FieldMask;
use tonic::Code;

use super::{Api, error_reason, invalid_field, new_key};
use crate::grpc::pb;

fn request(key: pb::Key, paths: &[&str]) -> pb::UpdateKeyRequest {
    let paths = paths.iter().map(ToString::to_string).collect();
    pb::UpdateKeyRequest { key: Some(key), update_mask: Some(FieldMask { paths }), expected_revision: None }
}

async fn update(api: &Api, request: pb::UpdateKeyRequest) -> pb::Key {
    api.key_store().update_key(request).await.unwrap().into_inner().key.unwrap()
}

/// All other fields of the request are ignored, even if their values are invalid.
pub async fn only_fields_in_the_mask_are_updated(api: Api) {
    let scopes = vec!["read".into()];
    let metadata = [("k".to_owned(), "v".to_owned())].into();
    let (key, _) = api.create(pb::CreateKeyRequest { scopes, metadata, ..new_key() }).await;
    let changed = pb::Key {
        id: key.id.clone(),
        name: "renamed".into(),
        description: "\n".into(),
        scopes: vec!["not a scope".into()],
        ..pb::Key::default()
    };
    let updated = update(&api, request(changed, &["name"])).await;
    assert!(updated.revision > key.revision);
    let instant = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
    assert!(instant(updated.update_time) > instant(key.update_time));
    let expected = pb::Key {
        name: "renamed".into(),
        revision: updated.revision,
        update_time: updated.update_time,
        ..key.clone()
    };
    assert_eq!(updated, expected);

    let changed = pb::Key { id: key.id.clone(), ..pb::Key::default() };
    let emptied = update(&api, request(changed, &["scopes", "metadata", "description"])).await;
    assert!(emptied.scopes.is_empty() && emptied.metadata.is_empty());
    assert_eq!(api.get(&key.id).await, emptied);
}

/// Such an update writes no event, and does not change the revision or the times of the key.
pub async fn an_update_to_equal_values_is_a_no_op(api: Api) {
    let scopes = vec!["read".into()];
    let (key, _) = api.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let all = ["name", "description", "scopes", "metadata", "expire_time"];
    for _ in 0..3 {
        assert_eq!(update(&api, request(key.clone(), &all)).await, key);
    }
    let events = pb::ListEventsRequest { key_id: key.id.clone(), ..pb::ListEventsRequest::default() };
    assert_eq!(api.key_store().list_events(events).await.unwrap().into_inner().events.len(), 1);
    let expected_revision = Some(key.revision + 1);
    let conflict = pb::UpdateKeyRequest { expected_revision, ..request(key, &all) };
    let rejected = error_reason(api.key_store().update_key(conflict).await);
    assert_eq!(rejected, (Code::Aborted, "REVISION_MISMATCH".to_owned()));
}

/// A mask must be present and not empty. It must not be `*`, and must not name a field that is immutable,
/// unknown or repeated.
pub async fn an_invalid_update_mask_is_rejected(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let mut key_store = api.key_store();
    let without = pb::UpdateKeyRequest { key: Some(key.clone()), update_mask: None, expected_revision: None };
    assert_eq!(invalid_field(key_store.update_key(without).await), "update_mask");
    assert_eq!(invalid_field(key_store.update_key(request(key.clone(), &[])).await), "update_mask");
    for path in ["*", "id", "hash", "prefix", "owner_id", "create_time", "revoke_time", "revision", "nam", ""]
    {
        let outcome = key_store.update_key(request(key.clone(), &["name", path])).await;
        assert_eq!(invalid_field(outcome), "update_mask.paths[1]", "{path}");
    }
    let twice = key_store.update_key(request(key.clone(), &["name", "name"])).await;
    assert_eq!(invalid_field(twice), "update_mask.paths[1]");
    let without_key = pb::UpdateKeyRequest { key: None, ..request(key.clone(), &["name"]) };
    assert_eq!(invalid_field(key_store.update_key(without_key).await), "key");
    let empty = pb::Key { name: String::new(), ..key.clone() };
    assert_eq!(invalid_field(key_store.update_key(request(empty, &["name"])).await), "key.name");
    assert_eq!(api.get(&key.id).await, key);
}

/// An outdated revision fails the update, so the caller has to read the key again.
pub async fn an_outdated_revision_aborts_the_update(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let expecting = |revision| pb::UpdateKeyRequest {
        expected_revision: Some(revision),
        ..request(pb::Key { name: "renamed".into(), ..key.clone() }, &["name"])
    };
    let updated = update(&api, expecting(key.revision)).await;
    for revision in [key.revision, 0, updated.revision + 1] {
        let outcome = api.key_store().update_key(expecting(revision)).await;
        assert_eq!(error_reason(outcome), (Code::Aborted, "REVISION_MISMATCH".into()));
    }
    assert_eq!(api.get(&key.id).await, updated);
}

/// An update never undoes a revocation.
pub async fn an_update_keeps_a_key_revoked(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let revoked = api.revoke(&key.id, "leaked").await;
    let changed = pb::Key { name: "renamed".into(), ..key };
    let updated = update(&api, request(changed, &["name", "expire_time"])).await;
    assert_eq!(updated.state(), pb::KeyState::Revoked);
    assert_eq!((updated.revoke_time, updated.revoke_reason), (revoked.revoke_time, revoked.revoke_reason));
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
}

/// A new expiry must be in the future. To end a key at once, callers revoke it.
pub async fn the_expiry_can_be_set_and_removed(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let until = |seconds| pb::Key {
        expire_time: Some(prost_types::Timestamp { seconds, nanos: 1_000 }),
        ..key.clone()
    };
    let set = update(&api, request(until(4_102_444_800), &["expire_time"])).await;
    assert_eq!(set.expire_time, until(4_102_444_800).expire_time);
    let outcome = api.key_store().update_key(request(until(1), &["expire_time"])).await;
    assert_eq!(invalid_field(outcome), "key.expire_time");
    let unset = update(&api, request(key.clone(), &["expire_time"])).await;
    assert_eq!(unset.expire_time, None);
}
