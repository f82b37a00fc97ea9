//! Tests of `DeleteKey`.

use tonic::Code;

use super::{Api, error_reason, new_key};
use crate::grpc::pb;

/// Validations, reads and listings no longer find the key, and neither does a second deletion.
pub async fn a_deleted_key_is_not_found(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    let mut key_store = api.key_store();
    let request = pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None };
    key_store.delete_key(request.clone()).await.unwrap();
    assert_eq!(api.reason(&secret).await, pb::Reason::NotFound);
    let not_found = (Code::NotFound, "KEY_NOT_FOUND".to_owned());
    assert_eq!(error_reason(key_store.get_key(pb::GetKeyRequest { id: key.id }).await), not_found);
    assert_eq!(error_reason(key_store.delete_key(request).await), not_found);
    let listed = key_store.list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.keys, []);
}

/// A key that has changed since the expected revision is not deleted.
pub async fn an_outdated_revision_aborts_the_deletion(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let request = |revision| pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: Some(revision) };
    let outdated = api.key_store().delete_key(request(key.revision - 1)).await;
    assert_eq!(error_reason(outdated), (Code::Aborted, "REVISION_MISMATCH".to_owned()));
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    api.key_store().delete_key(request(key.revision)).await.unwrap();
    assert_eq!(api.reason(&secret).await, pb::Reason::NotFound);
}
