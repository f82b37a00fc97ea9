//! Builds the responses of listings.

use prost::Message as _;

use crate::grpc::{convert, page_token, pb};
use crate::repository::{EventPageRequest, ListedEvent};
use crate::service::{ListRequest, ListedPage, ListedRecord};

/// Maximum size of a page, unless it has a single item. A thousand typical keys take a third of it.
pub(super) const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// Creates the response for a page, and truncates it if its keys are large. At least one is kept, so that
/// listings make progress.
pub(super) fn list_response(page: ListedPage, request: &ListRequest) -> pb::ListKeysResponse {
    let mut response = pb::ListKeysResponse::default();
    let (mut bytes, mut last, mut next) = (0, None, page.next);
    for listed in page.records {
        let position = listed.position();
        match listed {
            ListedRecord::Read(record) => {
                let key = convert::key_message(record);
                bytes += key.encoded_len();
                if last.is_some() && bytes > MAX_PAGE_BYTES {
                    next = last;
                    break;
                }
                response.keys.push(key);
            }
            ListedRecord::Unreadable(position) => response.unreadable_ids.push(position.id.to_string()),
        }
        last = Some(position);
    }
    response.next_page_token = next.map_or_else(String::new, |next| page_token::encode(next, request));
    response
}

/// Creates the response for `events`, of which the page has at most `limit`. One event more shows that another page
/// follows.
pub(super) fn events_response(
    mut events: Vec<ListedEvent>,
    request: &EventPageRequest,
    limit: usize,
) -> pb::ListEventsResponse {
    let has_more = events.len() > limit;
    events.truncate(limit);
    let next = events.last().filter(|_| has_more).map(ListedEvent::position);
    let next_page_token = next.map_or_else(String::new, |next| page_token::encode_event(next, request));
    let mut response = pb::ListEventsResponse { next_page_token, ..pb::ListEventsResponse::default() };
    for event in events {
        match event {
            ListedEvent::Read(event) => response.events.push(convert::event_message(event)),
            ListedEvent::Unreadable(position) => {
                response.unreadable_revisions.push(position.revision.get());
            }
        }
    }
    response
}

pub(super) fn stream_response(listed: ListedRecord) -> pb::StreamKeysResponse {
    match listed {
        ListedRecord::Read(record) => {
            pb::StreamKeysResponse { key: Some(convert::key_message(record)), unreadable_id: String::new() }
        }
        ListedRecord::Unreadable(position) => {
            pb::StreamKeysResponse { key: None, unreadable_id: position.id.to_string() }
        }
    }
}
