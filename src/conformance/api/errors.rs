//! Tests of the errors of all methods that take an id.

use prost_types::FieldMask;
use tonic::Code;

use super::{Api, error_reason, invalid_field};
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
