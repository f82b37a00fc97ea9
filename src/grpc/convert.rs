//! Conversions between messages and domain types.

use std::time::Duration;

use super::pb;
use crate::cache::Tier;
use crate::domain::{
    ChangeKind, Denial, InvalidField, InvalidFields, KeyEvent, KeyFilter, KeyId, KeyPrefix, KeyState,
    MAX_OVERLAP, OwnerId, ScopeMatch, ScopeSet, StateSet, Timestamp, Verdict, Violations,
};
use crate::service::{Expiry, Freshness, KeyRecord, Validation};

const NANOS_PER_MICRO: i32 = 1_000;
const MICROS_PER_SECOND: i64 = 1_000_000;

pub(super) fn validate_response(validation: Validation) -> pb::ValidateResponse {
    let reason = match validation.verdict {
        Verdict::Allowed => pb::Reason::Valid,
        Verdict::Denied(Denial::Malformed) => pb::Reason::Malformed,
        Verdict::Denied(Denial::NotFound) => pb::Reason::NotFound,
        Verdict::Denied(Denial::Revoked) => pb::Reason::Revoked,
        Verdict::Denied(Denial::Expired) => pb::Reason::Expired,
        Verdict::Denied(Denial::InsufficientScope) => pb::Reason::InsufficientScope,
    };
    let key = validation.key.map(|key| match validation.verdict {
        Verdict::Allowed => pb::ValidatedKey {
            id: key.id.to_string(),
            name: key.name.as_str().to_owned(),
            owner_id: key.owner_id.as_str().to_owned(),
            scopes: scope_list(&key.scopes),
            metadata: key.metadata.as_map().clone(),
            expire_time: key.expires_at.map(to_proto_time),
            revision: key.revision.get(),
        },
        Verdict::Denied(_) => pb::ValidatedKey { id: key.id.to_string(), ..pb::ValidatedKey::default() },
    });
    pb::ValidateResponse {
        valid: validation.verdict == Verdict::Allowed,
        reason: reason.into(),
        key,
        freshness: validation.freshness.map(freshness),
    }
}

fn freshness(Freshness { tier, staleness, revision }: Freshness) -> pb::Freshness {
    let tier = match tier {
        Tier::Local => pb::Tier::LocalCache,
        Tier::Shared => pb::Tier::RedisCache,
        Tier::Backend => pb::Tier::Store,
    };
    pb::Freshness {
        tier: tier.into(),
        staleness: Some(to_proto_duration(staleness)),
        revision: revision.get(),
    }
}

/// Converts a duration that was measured by this process, and so never exceeds the limits of the message.
pub(super) fn to_proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

pub(super) fn key_message(record: KeyRecord) -> pb::Key {
    let KeyRecord { key, last_used_at, as_of } = record;
    let state = match key.state(as_of) {
        KeyState::Active => pb::KeyState::Active,
        KeyState::Revoked => pb::KeyState::Revoked,
        KeyState::Expired => pb::KeyState::Expired,
    };
    let scopes = scope_list(&key.scopes);
    let (revoke_time, revoke_reason) = match key.revocation {
        None => (None, String::new()),
        Some(revocation) => (Some(to_proto_time(revocation.at)), revocation.reason.as_str().to_owned()),
    };
    let id_or_empty = |id: Option<KeyId>| id.map_or_else(String::new, |id| id.to_string());
    pb::Key {
        id: key.id.to_string(),
        prefix: key.prefix.as_str().to_owned(),
        name: key.name.as_str().to_owned(),
        description: key.description.as_str().to_owned(),
        owner_id: key.owner_id.as_str().to_owned(),
        scopes,
        metadata: key.metadata.as_map().clone(),
        create_time: Some(to_proto_time(key.created_at)),
        update_time: Some(to_proto_time(key.updated_at)),
        expire_time: key.expires_at.map(to_proto_time),
        revoke_time,
        revoke_reason,
        last_used_time: last_used_at.map(to_proto_time),
        revision: key.revision.get(),
        state: state.into(),
        rotated_from: id_or_empty(key.rotated_from),
        replaced_by: id_or_empty(key.replaced_by),
    }
}

fn scope_list(scopes: &ScopeSet) -> Vec<String> {
    scopes.iter().map(|scope| scope.as_str().to_owned()).collect()
}

fn event_kind(kind: ChangeKind) -> pb::EventKind {
    match kind {
        ChangeKind::Created => pb::EventKind::Created,
        ChangeKind::Updated => pb::EventKind::Updated,
        ChangeKind::Revoked => pb::EventKind::Revoked,
        ChangeKind::Rotated => pb::EventKind::Rotated,
        ChangeKind::Deleted => pb::EventKind::Deleted,
        ChangeKind::Unknown => pb::EventKind::Unspecified,
    }
}

/// Creates a response of `WatchChanges`. Clients get the ids of changed keys, never their hashes.
pub(super) fn watch_response(
    position: String,
    events: Vec<KeyEvent>,
    staleness: Option<Duration>,
) -> pb::WatchChangesResponse {
    use pb::watch_changes_response::News;
    let news = if events.is_empty() {
        News::Heartbeat(pb::Heartbeat { staleness: staleness.map(to_proto_duration) })
    } else {
        let change = |event: KeyEvent| pb::Change {
            key_id: event.key_id.to_string(),
            revision: event.revision.get(),
            kind: event_kind(event.kind).into(),
        };
        News::Changes(pb::ChangeList { changes: events.into_iter().map(change).collect() })
    };
    pb::WatchChangesResponse { position, news: Some(news) }
}

pub(super) fn event_message(event: KeyEvent) -> pb::Event {
    pb::Event {
        revision: event.revision.get(),
        key_id: event.key_id.to_string(),
        owner_id: event.owner_id.as_str().to_owned(),
        kind: event_kind(event.kind).into(),
        changed_fields: event.changed_fields.iter().map(|field| field.as_str().to_owned()).collect(),
        actor: event.actor,
        request_id: event.request_id,
        event_time: Some(to_proto_time(event.at)),
    }
}

pub(super) fn scope_match(value: i32) -> Result<ScopeMatch, InvalidField> {
    match pb::ScopeMatch::try_from(value) {
        Ok(pb::ScopeMatch::Unspecified | pb::ScopeMatch::All) => Ok(ScopeMatch::All),
        Ok(pb::ScopeMatch::Any) => Ok(ScopeMatch::Any),
        Err(_) => {
            Err(InvalidField::new("scope_match", "unknown value; use SCOPE_MATCH_ALL or SCOPE_MATCH_ANY"))
        }
    }
}

/// Parses the owner of a listing. An empty one means all owners. Owners that earlier releases accepted can be listed.
pub(super) fn listed_owner(owner_id: String) -> Result<Option<OwnerId>, InvalidField> {
    if owner_id.is_empty() {
        return Ok(None);
    }
    OwnerId::parse("owner_id", owner_id).map(Some)
}

/// Number of key states.
const STATES: usize = 3;

pub(super) fn filter(
    states: &[i32],
    prefix: Option<String>,
    as_of: Timestamp,
) -> Result<KeyFilter, InvalidFields> {
    let mut violations = Violations::default();
    let states: Option<Vec<_>> = if states.len() > STATES {
        violations.take(Err(InvalidField::new("states", "more than 3 states; list each state once")))
    } else {
        let states = states.iter().enumerate().map(|(at, &state)| violations.take(key_state(at, state)));
        // All states are parsed, also those after an invalid one.
        states.collect::<Vec<_>>().into_iter().collect()
    };
    let prefix = violations.take(prefix.map(|prefix| KeyPrefix::parse("prefix", prefix)).transpose());
    let filter = states.zip(prefix);
    violations.finish(filter.map(|(states, prefix)| KeyFilter {
        states: StateSet::any_of(&states),
        prefix,
        as_of,
    }))
}

fn key_state(at: usize, state: i32) -> Result<KeyState, InvalidField> {
    match pb::KeyState::try_from(state) {
        Ok(pb::KeyState::Active) => Ok(KeyState::Active),
        Ok(pb::KeyState::Revoked) => Ok(KeyState::Revoked),
        Ok(pb::KeyState::Expired) => Ok(KeyState::Expired),
        Ok(pb::KeyState::Unspecified) | Err(_) => {
            let problem = "unknown state; use KEY_STATE_ACTIVE, KEY_STATE_REVOKED or KEY_STATE_EXPIRED";
            Err(InvalidField::new(format!("states[{at}]"), problem))
        }
    }
}

/// Converts the `expiry` of CreateKey.
pub(super) fn create_expiry(
    expiry: Option<pb::create_key_request::Expiry>,
) -> Result<Option<Expiry>, InvalidField> {
    use pb::create_key_request::Expiry as Given;
    match expiry {
        None => Ok(None),
        Some(Given::ExpireTime(time)) => {
            from_proto_time("expire_time", time).map(|time| Some(Expiry::At(time)))
        }
        Some(Given::Ttl(ttl)) => from_proto_duration("ttl", ttl).map(|ttl| Some(Expiry::After(ttl))),
    }
}

/// Converts the `expiry` of RotateKey.
pub(super) fn rotate_expiry(
    expiry: Option<pb::rotate_key_request::Expiry>,
) -> Result<Option<Expiry>, InvalidField> {
    use pb::create_key_request::Expiry as Same;
    use pb::rotate_key_request::Expiry as Given;
    create_expiry(expiry.map(|expiry| match expiry {
        Given::ExpireTime(time) => Same::ExpireTime(time),
        Given::Ttl(ttl) => Same::Ttl(ttl),
    }))
}

pub(super) fn overlap(overlap: Option<prost_types::Duration>) -> Result<Duration, InvalidField> {
    let overlap = overlap.map_or(Ok(Duration::ZERO), |overlap| from_proto_duration("overlap", overlap))?;
    if overlap > MAX_OVERLAP {
        return Err(InvalidField::new("overlap", "must be at most 30 days (2592000s)"));
    }
    Ok(overlap)
}

pub(crate) fn to_proto_time(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros();
    let below_a_second = i32::try_from(micros.rem_euclid(MICROS_PER_SECOND)).unwrap_or(0);
    prost_types::Timestamp {
        seconds: micros.div_euclid(MICROS_PER_SECOND),
        nanos: below_a_second * NANOS_PER_MICRO,
    }
}

/// Parses a time, and truncates it to microseconds.
pub(super) fn from_proto_time(field: &str, time: prost_types::Timestamp) -> Result<Timestamp, InvalidField> {
    let in_range = (0..1_000_000_000).contains(&time.nanos);
    let micros = time
        .seconds
        .checked_mul(MICROS_PER_SECOND)
        .and_then(|micros| micros.checked_add(i64::from(time.nanos / NANOS_PER_MICRO)));
    let parsed = micros.and_then(Timestamp::from_micros).filter(|_| in_range);
    parsed.ok_or_else(|| {
        InvalidField::new(field, "invalid timestamp; the year must be 1 to 9999, and nanos 0 to 999999999")
    })
}

pub(super) fn from_proto_duration(
    field: &str,
    duration: prost_types::Duration,
) -> Result<Duration, InvalidField> {
    let is_normal = duration.seconds >= 0 && (0..1_000_000_000).contains(&duration.nanos);
    let parsed = Duration::try_from(duration).ok().filter(|_| is_normal);
    parsed.ok_or_else(|| InvalidField::new(field, "invalid duration; it must not be negative"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_converted_time_is_converted_back_exactly(
            micros in Timestamp::MIN.as_micros()..=Timestamp::MAX.as_micros(),
        ) {
            let time = Timestamp::from_micros(micros).unwrap();
            prop_assert_eq!(from_proto_time("t", to_proto_time(time)), Ok(time));
        }

        #[test]
        fn arbitrary_times_and_durations_are_converted_or_rejected(seconds: i64, nanos: i32) {
            if let Ok(time) = from_proto_time("t", prost_types::Timestamp { seconds, nanos }) {
                let back = to_proto_time(time);
                prop_assert_eq!((back.seconds, back.nanos / NANOS_PER_MICRO), (seconds, nanos / NANOS_PER_MICRO));
            }
            if let Ok(duration) = from_proto_duration("d", prost_types::Duration { seconds, nanos }) {
                prop_assert!(seconds >= 0);
                prop_assert_eq!(duration.as_secs(), u64::try_from(seconds).unwrap());
            }
        }
    }

    #[test]
    fn unknown_enum_values_are_rejected_with_their_field() {
        assert_eq!(scope_match(7).unwrap_err().field, "scope_match");
        let filtered = |states: &[i32], prefix: Option<&str>| {
            let fields = filter(states, prefix.map(str::to_owned), Timestamp::MIN).unwrap_err();
            fields.iter().map(|it| it.field.clone()).collect::<Vec<_>>()
        };
        assert_eq!(filtered(&[1, 0], None), ["states[1]"]);
        assert_eq!(filtered(&[9, 1, 8], Some("No")), ["states[0]", "states[2]", "prefix"]);
        assert_eq!(filtered(&[1, 1, 1, 1], None), ["states"]);
    }

    #[test]
    fn the_overlap_is_limited() {
        let days = |days: i64| Some(prost_types::Duration { seconds: days * 86_400, nanos: 0 });
        assert_eq!(overlap(days(30)), Ok(MAX_OVERLAP));
        assert!(overlap(days(31)).is_err());
        assert!(overlap(days(-1)).is_err());
        assert_eq!(overlap(None), Ok(Duration::ZERO));
    }
}
