//! Tests of ids, and of the errors that methods have in common.

use prost_types::FieldMask;
use tonic::Code;

use super::{Api, error_reason, invalid_field, invalid_fields, new_key, seconds};
use crate::grpc::pb;

const UNKNOWN: &str = "0190a6f0-1a2b-7c3d-8e4f-0123456789ab";

fn update(id: &str) -> pb::UpdateKeyRequest {
    pb::UpdateKeyRequest {
        key: Some(pb::Key { id: id.into(), name: "name".into(), ..pb::Key::default() }),
        update_mask: Some(FieldMask { paths: vec!["name".into()] }),
        expected_revision: None,
    }
}

/// All methods return `NOT_FOUND`.
pub async fn unknown_ids_are_not_found(api: Api) {
    let id = || UNKNOWN.to_owned();
    let mut key_store = api.key_store();
    let errors = [
        error_reason(key_store.get_key(pb::GetKeyRequest { id: id() }).await),
        error_reason(key_store.update_key(update(UNKNOWN)).await),
        error_reason(
            key_store.rotate_key(pb::RotateKeyRequest { id: id(), ..pb::RotateKeyRequest::default() }).await,
        ),
        error_reason(key_store.revoke_key(pb::RevokeKeyRequest { id: id(), reason: String::new() }).await),
        error_reason(key_store.delete_key(pb::DeleteKeyRequest { id: id(), expected_revision: None }).await),
    ];
    for error in errors {
        assert_eq!(error, (Code::NotFound, "KEY_NOT_FOUND".to_owned()));
    }
}

/// All methods return `INVALID_ARGUMENT`.
pub async fn malformed_ids_are_invalid_fields(api: Api) {
    let mut key_store = api.key_store();
    for malformed in ["", "x", "0190a6f01a2b7c3d8e4f0123456789ab", "'; DROP TABLE api_key; --"] {
        let id = || malformed.to_owned();
        assert_eq!(invalid_field(key_store.get_key(pb::GetKeyRequest { id: id() }).await), "id");
        assert_eq!(invalid_field(key_store.update_key(update(malformed)).await), "key.id");
        let rotate = pb::RotateKeyRequest { id: id(), ..pb::RotateKeyRequest::default() };
        assert_eq!(invalid_field(key_store.rotate_key(rotate).await), "id");
        let revoke = pb::RevokeKeyRequest { id: id(), reason: String::new() };
        assert_eq!(invalid_field(key_store.revoke_key(revoke).await), "id");
        assert_eq!(
            invalid_field(
                key_store.delete_key(pb::DeleteKeyRequest { id: id(), expected_revision: None }).await
            ),
            "id"
        );
    }
}

/// Ids of all methods are accepted in upper and lower case. Responses have them in lower case.
pub async fn ids_are_accepted_in_any_case(api: Api) {
    let (key, _) = api.create(new_key()).await;
    let upper = || key.id.to_uppercase();
    let mut key_store = api.key_store();
    assert_eq!(api.get(&upper()).await, key);
    let updated = key_store.update_key(update(&upper())).await.unwrap().into_inner().key.unwrap();
    assert_eq!(updated.id, key.id);
    let rotate = pb::RotateKeyRequest { id: upper(), ..pb::RotateKeyRequest::default() };
    let rotated = key_store.rotate_key(rotate).await.unwrap().into_inner();
    assert_eq!(
        (rotated.replaced.unwrap().id, rotated.key.unwrap().rotated_from),
        (key.id.clone(), key.id.clone())
    );
    assert_eq!(api.revoke(&upper(), "").await.id, key.id);
    let events = pb::ListEventsRequest { key_id: upper(), ..pb::ListEventsRequest::default() };
    let events = key_store.list_events(events).await.unwrap().into_inner().events;
    assert!(events.len() > 1 && events.iter().all(|event| event.key_id == key.id), "{events:?}");
    let delete = pb::DeleteKeyRequest { id: upper(), expected_revision: None };
    key_store.delete_key(delete).await.unwrap();
    let get = pb::GetKeyRequest { id: key.id.clone() };
    assert_eq!(error_reason(key_store.get_key(get).await), (Code::NotFound, "KEY_NOT_FOUND".to_owned()));
}

/// The error has a violation for each invalid field, and the message has the first one and the number of the others.
pub async fn all_invalid_fields_are_reported_at_once(api: Api) {
    use pb::create_key_request::Expiry;
    let mut key_store = api.key_store();
    let create = pb::CreateKeyRequest {
        scopes: vec!["read".into(), "a b".into()],
        metadata: [(String::new(), String::new())].into(),
        prefix: Some("other_".into()),
        expiry: Some(Expiry::ExpireTime(prost_types::Timestamp { seconds: 1, nanos: 0 })),
        request_id: "a b".into(),
        ..pb::CreateKeyRequest::default()
    };
    let mut fields = invalid_fields(key_store.create_key(create).await);
    assert_eq!(fields[0], "name");
    fields.sort();
    let expected = ["expire_time", "metadata", "name", "owner_id", "prefix", "request_id", "scopes[1]"];
    assert_eq!(fields, expected);

    let (key, _) = api.create(new_key()).await;
    let changed = pb::Key { name: String::new(), scopes: vec![String::new()], ..key.clone() };
    let paths = ["name", "bogus", "scopes"].map(str::to_owned).into();
    let update_mask = Some(FieldMask { paths });
    let update = pb::UpdateKeyRequest { key: Some(changed), update_mask, expected_revision: None };
    let mut fields = invalid_fields(key_store.update_key(update).await);
    fields.sort();
    assert_eq!(fields, ["key.name", "key.scopes[0]", "update_mask.paths[1]"]);

    let expiry = Some(pb::rotate_key_request::Expiry::Ttl(seconds(0)));
    let rotate = pb::RotateKeyRequest {
        id: "x".into(),
        overlap: Some(seconds(-1)),
        expiry,
        ..pb::RotateKeyRequest::default()
    };
    let mut fields = invalid_fields(key_store.rotate_key(rotate).await);
    fields.sort();
    assert_eq!(fields, ["id", "overlap", "ttl"]);

    let revoke = pb::RevokeKeyRequest { id: "x".into(), reason: "r".repeat(257) };
    assert_eq!(invalid_fields(key_store.revoke_key(revoke).await), ["id", "reason"]);
    let list = pb::ListKeysRequest { page_size: -1, states: vec![9, 1, 8], ..pb::ListKeysRequest::default() };
    let mut fields = invalid_fields(key_store.list_keys(list).await);
    fields.sort();
    assert_eq!(fields, ["page_size", "states[0]", "states[2]"]);
    let events =
        pb::ListEventsRequest { key_id: "x".into(), page_size: -1, ..pb::ListEventsRequest::default() };
    let mut fields = invalid_fields(key_store.list_events(events).await);
    fields.sort();
    assert_eq!(fields, ["key_id", "page_size"]);
    assert_eq!(api.get(&key.id).await, key);
}
