//! `WatchChanges`, and what a validation says of its freshness.

use std::time::Duration;

use tonic::{Code, Streaming};

use super::{Api, new_key, refusal, wrong_field};
use crate::grpc::pb;
use crate::grpc::pb::watch_changes_response::News;

async fn watch(api: &Api, position: &str) -> Streaming<pb::WatchChangesResponse> {
    let request = pb::WatchChangesRequest { position: position.into() };
    api.admin_validator().watch_changes(request).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<pb::WatchChangesResponse>) -> pb::WatchChangesResponse {
    let next = tokio::time::timeout(Duration::from_secs(30), stream.message());
    next.await.expect("something comes").unwrap().expect("it does not end")
}

/// Reads on until `count` changes came; gives them and the position behind them.
async fn changes(
    stream: &mut Streaming<pb::WatchChangesResponse>,
    count: usize,
) -> (Vec<pb::Change>, String) {
    let mut changes = Vec::new();
    loop {
        let answer = next(stream).await;
        match answer.news.unwrap() {
            News::Changes(list) => {
                assert!(!list.changes.is_empty());
                changes.extend(list.changes);
            }
            News::Heartbeat(_) => {}
        }
        if changes.len() >= count {
            return (changes, answer.position);
        }
    }
}

/// From now on, each change once; it goes on after any position, on a stream of its own.
pub async fn changes_are_told_once_and_resumed(api: Api) {
    let (before, _) = api.create(new_key()).await;
    let mut stream = watch(&api, "").await;
    let first = next(&mut stream).await;
    assert!(matches!(first.news, Some(News::Heartbeat(_))), "a position comes before any change: {first:?}");
    let (key, _) = api.create(new_key()).await;
    api.revoke(&key.id, "").await;
    let (told, position) = changes(&mut stream, 2).await;
    let told: Vec<_> = told.iter().map(|it| (it.key_id.as_str(), it.kind())).collect();
    let expected =
        [(key.id.as_str(), pb::EventKind::Created), (key.id.as_str(), pb::EventKind::Revoked)];
    assert!(told.ends_with(&expected), "{told:?}");
    assert!(told.len() == 2 || told[0].0 == before.id, "the position may be from before the first key");
    drop(stream);

    api.key_store().delete_key(pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None }).await.unwrap();
    let (told, _) = changes(&mut watch(&api, &position).await, 1).await;
    assert_eq!((told.len(), told[0].kind()), (1, pb::EventKind::Deleted));
    let (again, _) = changes(&mut watch(&api, &first.position).await, 3).await;
    assert_eq!(again.last().unwrap().kind(), pb::EventKind::Deleted);
}

/// Ids say who has which key, so nobody sees them without a credential; and what is no position is told.
pub async fn it_needs_a_credential_and_a_position_of_its_own(api: Api) {
    let anonymous = api.validator().watch_changes(pb::WatchChangesRequest::default()).await;
    assert_eq!(refusal(anonymous), (Code::Unauthenticated, "CREDENTIAL_REQUIRED".into()));
    for odd in ["nonsense", "AQ==", "AgAA"] {
        let request = pb::WatchChangesRequest { position: odd.into() };
        assert_eq!(wrong_field(api.admin_validator().watch_changes(request).await), "position");
    }
}

/// It says where the record came from, how old it may be and what it knows; a malformed key was not looked up.
pub async fn a_validation_says_how_fresh_it_is(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let freshness = api.validate(&secret).await.freshness.unwrap();
    assert_ne!(freshness.tier(), pb::Tier::Unspecified);
    assert!(freshness.revision >= key.revision);
    let staleness = Duration::try_from(freshness.staleness.unwrap()).unwrap();
    assert!(staleness < Duration::from_mins(5));
    assert_eq!(api.validate("nonsense").await.freshness, None);
}

/// 0 asks the store; less than the floor needs a credential; wrong values are named.
pub async fn a_call_can_ask_for_less_staleness(api: Api) {
    let (_, secret) = api.create(new_key()).await;
    let request = |seconds, nanos| pb::ValidateRequest {
        secret: secret.clone(),
        max_staleness: Some(prost_types::Duration { seconds, nanos }),
        ..pb::ValidateRequest::default()
    };
    let answer = api.admin_validator().validate(request(0, 0)).await.unwrap().into_inner();
    assert_eq!(answer.freshness.unwrap().tier(), pb::Tier::Store);
    let refused = refusal(api.validator().validate(request(0, 999_999_999)).await);
    assert_eq!(refused, (Code::Unauthenticated, "CREDENTIAL_REQUIRED".into()));
    assert!(api.validator().validate(request(1, 0)).await.unwrap().into_inner().valid);
    assert_eq!(wrong_field(api.validator().validate(request(-1, 0)).await), "max_staleness");
}
