//! Tests of `WatchChanges`, and of the freshness of validations.

use std::time::Duration;

use tonic::{Code, Streaming};

use super::{Api, error_reason, invalid_field, new_key};
use crate::grpc::pb;
use crate::grpc::pb::watch_changes_response::News;

async fn watch(api: &Api, position: &str) -> Streaming<pb::WatchChangesResponse> {
    let request = pb::WatchChangesRequest { position: position.into() };
    api.admin_validator().watch_changes(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<pb::WatchChangesResponse>) -> pb::WatchChangesResponse {
    let next = tokio::time::timeout(Duration::from_secs(30), stream.message());
    next.await.unwrap().unwrap().unwrap()
}

/// Reads the stream until the key `id` has the change `last`. Returns the changes of this key, and the
/// position after them. Changes of other keys may precede, follow or interleave with them.
async fn changes_of(
    stream: &mut Streaming<pb::WatchChangesResponse>,
    id: &str,
    last: pb::EventKind,
) -> (Vec<pb::EventKind>, String) {
    let mut kinds = Vec::new();
    loop {
        let answer = next(stream).await;
        if let News::Changes(list) = answer.news.unwrap() {
            assert!(!list.changes.is_empty());
            kinds.extend(list.changes.iter().filter(|it| it.key_id == id).map(pb::Change::kind));
        }
        if kinds.last() == Some(&last) {
            return (kinds, answer.position);
        }
    }
}

/// A stream delivers each later change once. Another stream resumes it from any position.
pub async fn changes_are_delivered_once_and_streams_resume(api: Api) {
    use pb::EventKind::{Created, Deleted, Revoked};
    let mut stream = watch(&api, "").await;
    let first = next(&mut stream).await;
    assert!(matches!(first.news, Some(News::Heartbeat(_))), "the first response has a position: {first:?}");
    let (key, _) = api.create(new_key()).await;
    api.create(new_key()).await;
    api.revoke(&key.id, "").await;
    let (delivered, position) = changes_of(&mut stream, &key.id, Revoked).await;
    assert_eq!(delivered, [Created, Revoked]);
    drop(stream);

    let delete = pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None };
    api.key_store().delete_key(delete).await.unwrap();
    let (delivered, _) = changes_of(&mut watch(&api, &position).await, &key.id, Deleted).await;
    assert_eq!(delivered, [Deleted]);
    let (again, _) = changes_of(&mut watch(&api, &first.position).await, &key.id, Deleted).await;
    assert_eq!(again, [Created, Revoked, Deleted]);
}

/// Changes reveal which owner has which key, so a credential is required. An invalid position is rejected.
pub async fn watching_requires_a_credential_and_a_valid_position(api: Api) {
    let anonymous = api.validator().watch_changes(pb::WatchChangesRequest::default()).await;
    assert_eq!(error_reason(anonymous), (Code::Unauthenticated, "CREDENTIAL_REQUIRED".into()));
    for invalid in ["nonsense", "AQ==", "AgAA"] {
        let request = pb::WatchChangesRequest { position: invalid.into() };
        assert_eq!(invalid_field(api.admin_validator().watch_changes(request).await), "position");
    }
}

/// The response has the tier of the record, its maximum staleness, and its revision. A malformed key is not
/// looked up.
pub async fn a_validation_reports_its_freshness(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let freshness = api.validate(&secret).await.freshness.unwrap();
    assert_ne!(freshness.tier(), pb::Tier::Unspecified);
    assert!(freshness.revision >= key.revision);
    let staleness = Duration::try_from(freshness.staleness.unwrap()).unwrap();
    assert!(staleness < Duration::from_mins(5));
    assert_eq!(api.validate("nonsense").await.freshness, None);
}

/// 0 forces a read from the backend. A staleness below the configured minimum requires a credential. An
/// invalid value is rejected.
pub async fn a_validation_can_limit_its_staleness(api: Api) {
    let (_, secret) = api.create(new_key()).await;
    let request = |seconds, nanos| pb::ValidateRequest {
        secret: secret.clone(),
        max_staleness: Some(prost_types::Duration { seconds, nanos }),
        ..pb::ValidateRequest::default()
    };
    let answer = api.admin_validator().validate(request(0, 0)).await.unwrap().into_inner();
    assert_eq!(answer.freshness.unwrap().tier(), pb::Tier::Store);
    let rejected = error_reason(api.validator().validate(request(0, 999_999_999)).await);
    assert_eq!(rejected, (Code::Unauthenticated, "CREDENTIAL_REQUIRED".into()));
    assert!(api.validator().validate(request(1, 0)).await.unwrap().into_inner().valid);
    assert_eq!(invalid_field(api.validator().validate(request(-1, 0)).await), "max_staleness");
}
