//! Tests of the audit trail.

use super::{Api, invalid_field, new_key};
use crate::grpc::pb;

async fn list(api: &Api, request: pb::ListEventsRequest) -> pb::ListEventsResponse {
    api.key_store().list_events(request).await.unwrap().into_inner()
}

/// Each event has its actor, change, time and request id, even after its key was deleted.
pub async fn events_outlive_their_key(api: Api) {
    let (key, _) = api.create(new_key()).await;
    api.create(new_key()).await;
    api.revoke(&key.id, "leaked").await;
    let request = pb::DeleteKeyRequest { id: key.id.clone(), expected_revision: None };
    let deleted = api.key_store().delete_key(request).await.unwrap();
    let request_id = deleted.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let request = pb::ListEventsRequest { key_id: key.id.clone(), ..pb::ListEventsRequest::default() };
    let events = list(&api, request).await.events;
    let kinds: Vec<_> = events.iter().map(pb::Event::kind).collect();
    assert_eq!(kinds, [pb::EventKind::Deleted, pb::EventKind::Revoked, pb::EventKind::Created]);
    assert_eq!(events[0].request_id, request_id);
    assert_eq!(events[1].changed_fields, ["revoke_time"]);
    assert_eq!(events[2].revision, key.revision);
    assert_eq!(events[2].event_time, key.create_time);
    for event in events {
        assert_eq!((&event.key_id, event.owner_id.as_str()), (&key.id, "owner"));
        assert!(event.actor.starts_with("token:"), "{}", event.actor);
    }
}

/// The pages have every event once, newest first. A page token is valid only with the filter that it was
/// issued for.
pub async fn pages_list_every_event_once(api: Api) {
    for _ in 0..5 {
        api.create(new_key()).await;
    }
    let mut request =
        pb::ListEventsRequest { owner_id: "owner".into(), page_size: 2, ..pb::ListEventsRequest::default() };
    let mut revisions = Vec::new();
    loop {
        let page = list(&api, request.clone()).await;
        revisions.extend(page.events.iter().map(|event| event.revision));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(revisions.len(), 5);
    assert!(revisions.is_sorted_by(|newer, older| newer > older));
    request.owner_id = "other".into();
    assert_eq!(invalid_field(api.key_store().list_events(request).await), "page_token");
    let negative = pb::ListEventsRequest { page_size: -1, ..pb::ListEventsRequest::default() };
    assert_eq!(invalid_field(api.key_store().list_events(negative).await), "page_size");
    let malformed = pb::ListEventsRequest { key_id: "x".into(), ..pb::ListEventsRequest::default() };
    assert_eq!(invalid_field(api.key_store().list_events(malformed).await), "key_id");
}
