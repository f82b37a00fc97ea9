//! Page tokens: the position at which a listing continues, bound to its filter. They are stateless, so every replica
//! accepts them. They are opaque but not secret: they give access to nothing that the filter would not show.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::domain::{InvalidField, KeyId, KeyPrefix, KeyState, OwnerId, Revision, Timestamp};
use crate::repository::{EventPageRequest, EventPosition, PagePosition};
use crate::service::ListRequest;

/// Version of a token of a listing of keys.
const VERSION: u8 = 1;
/// Version of a token of a listing of the audit trail.
const EVENT_VERSION: u8 = 101;
/// Bytes of the filter's digest. They only have to detect mistakes, not attacks.
const FILTER_BYTES: usize = 8;
const TIME_BYTES: usize = 8;
const ID_BYTES: usize = 16;
const TOKEN_BYTES: usize = 1 + FILTER_BYTES + TIME_BYTES + ID_BYTES;

/// Returns the token of the page after `position`, in the listing of `request`.
pub(super) fn encode(position: PagePosition, request: &ListRequest) -> String {
    join(VERSION, filter_digest(request), position.created_at.as_micros(), position.id)
}

/// Returns the position in `token`. `None` if it is empty, which means the first page.
///
/// # Errors
/// The token is malformed, or belongs to a listing with another filter than `request`.
pub(crate) fn decode(token: &str, request: &ListRequest) -> Result<Option<PagePosition>, InvalidField> {
    let position =
        |(created_at, id)| Some(PagePosition { created_at: Timestamp::from_micros(created_at)?, id });
    read(token, VERSION, filter_digest(request), position)
}

/// Returns the token of the page after `position`, in the listing of events of `request`.
pub(super) fn encode_event(position: EventPosition, request: &EventPageRequest) -> String {
    join(EVENT_VERSION, event_filter_digest(request), position.revision.get(), position.key_id)
}

/// Returns the position in `token`. `None` if it is empty, which means the first page.
///
/// # Errors
/// The token is malformed, or belongs to a listing with another filter than `request`.
pub(crate) fn decode_event(
    token: &str,
    request: &EventPageRequest,
) -> Result<Option<EventPosition>, InvalidField> {
    let position = |(revision, key_id)| Some(EventPosition { revision: Revision::new(revision), key_id });
    read(token, EVENT_VERSION, event_filter_digest(request), position)
}

fn join(version: u8, filter: [u8; FILTER_BYTES], number: i64, id: KeyId) -> String {
    let mut token = Vec::with_capacity(TOKEN_BYTES);
    token.push(version);
    token.extend(filter);
    token.extend(number.to_be_bytes());
    token.extend(id.as_uuid().as_bytes());
    BASE64URL_NOPAD.encode(&token)
}

fn read<P>(
    token: &str,
    version: u8,
    filter: [u8; FILTER_BYTES],
    position: impl FnOnce((i64, KeyId)) -> Option<P>,
) -> Result<Option<P>, InvalidField> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok();
    let parts = bytes.as_deref().and_then(|bytes| split(bytes, version, filter));
    parts.and_then(position).map(Some).ok_or_else(|| {
        InvalidField::new(
            "page_token",
            "not a token of this listing; pass next_page_token of the previous page, with the same filter",
        )
    })
}

/// Returns the number and the id of a token, if it has this version and this filter.
fn split(token: &[u8], version: u8, filter: [u8; FILTER_BYTES]) -> Option<(i64, KeyId)> {
    let (&made_as, rest) = token.split_first()?;
    let (made_for, rest) = rest.split_at_checked(FILTER_BYTES)?;
    let (number, id) = rest.split_first_chunk::<TIME_BYTES>()?;
    if made_as != version || made_for != filter {
        return None;
    }
    Some((i64::from_be_bytes(*number), KeyId::from_uuid(Uuid::from_slice(id).ok()?)))
}

/// Returns a digest of the filter. The time and the page size are not part of it, so they may differ between pages.
fn filter_digest(request: &ListRequest) -> [u8; FILTER_BYTES] {
    let states = [KeyState::Active, KeyState::Revoked, KeyState::Expired];
    digest(
        [
            request.owner_id.as_ref().map(OwnerId::as_str),
            request.filter.prefix.as_ref().map(KeyPrefix::as_str),
        ]
        .into_iter()
        .chain(states.map(|state| request.filter.states.contains(state).then_some(""))),
    )
}

fn event_filter_digest(request: &EventPageRequest) -> [u8; FILTER_BYTES] {
    let key_id = request.key_id.map(|id| id.to_string());
    digest([key_id.as_deref(), request.owner_id.as_ref().map(OwnerId::as_str)].into_iter())
}

fn digest<'t>(parts: impl Iterator<Item = Option<&'t str>>) -> [u8; FILTER_BYTES] {
    let mut digest = Sha256::new();
    for text in parts {
        // The length prefix makes sure that different lists of parts have different encodings.
        let bytes = text.unwrap_or_default().as_bytes();
        digest.update([u8::from(text.is_some())]);
        digest.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(bytes);
    }
    let mut short = [0; FILTER_BYTES];
    short.copy_from_slice(&digest.finalize()[..FILTER_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{KeyFilter, StateSet};

    fn request(owner: Option<&str>, states: &[KeyState], prefix: Option<&str>) -> ListRequest {
        ListRequest {
            owner_id: owner.map(|owner| OwnerId::parse("o", owner).unwrap()),
            filter: KeyFilter {
                states: StateSet::any_of(states),
                prefix: prefix.map(|prefix| KeyPrefix::parse("p", prefix).unwrap()),
                as_of: Timestamp::MIN,
            },
            after: None,
            limit: 1,
        }
    }

    fn position(micros: i64, id: u128) -> PagePosition {
        PagePosition {
            created_at: Timestamp::from_micros(micros).unwrap(),
            id: KeyId::from_uuid(Uuid::from_u128(id)),
        }
    }

    #[test]
    fn a_token_is_valid_only_for_its_own_filter() {
        let filters = [
            request(None, &[], None),
            request(Some("a"), &[], None),
            request(Some("A"), &[], None),
            request(Some("a"), &[KeyState::Active], None),
            request(Some("a"), &[], Some("kv_")),
            request(None, &[], Some("kv_")),
            request(None, &[], Some("")),
        ];
        for (made_for, one) in filters.iter().enumerate() {
            let token = encode(position(5, 7), one);
            for (used_for, other) in filters.iter().enumerate() {
                assert_eq!(decode(&token, other).is_ok(), made_for == used_for, "{one:?} {other:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_encoded_position_is_decoded(
            micros in Timestamp::MIN.as_micros()..=Timestamp::MAX.as_micros(),
            id: u128,
        ) {
            let request = request(Some("a"), &[], None);
            let token = encode(position(micros, id), &request);
            prop_assert_eq!(decode(&token, &request), Ok(Some(position(micros, id))));
        }

        #[test]
        fn arbitrary_tokens_are_rejected(token in any::<String>(), bytes in any::<Vec<u8>>()) {
            let request = request(None, &[], None);
            for token in [token, BASE64URL_NOPAD.encode(&bytes)] {
                if !token.is_empty() {
                    prop_assert_eq!(decode(&token, &request).unwrap_err().field, "page_token");
                }
            }
        }
    }
}
