//! Parses the requests of `KeyStore`. Each error has all invalid fields of the request.

use crate::domain::{
    Description, InvalidField, InvalidFields, KeyFilter, KeyId, KeyName, Metadata, OwnerId, RevokeReason,
    ScopeSet, Timestamp, Violations,
};
use crate::grpc::{convert, page_token, pb};
use crate::repository::EventPageRequest;
use crate::service::{
    ClientRequestId, KeyStoreService, KeyUpdate, ListRequest, NewKey, RotateRequest, check_future,
};

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1_000;
/// Maximum number of paths of a mask that are checked, which bounds the work. Only five paths are valid, so a mask with
/// more has an invalid or repeated one among these.
const MAX_CHECKED_PATHS: usize = 16;
/// Maximum number of characters of a path in an error.
const MAX_SHOWN_CHARS: usize = 64;

/// Parses a request for a new key. The rules that depend on the time and on the settings are those of `service`, which
/// checks them itself if the request is valid otherwise: it has to recognize a retry first, whose expiry may have passed.
pub(super) fn new_key(
    request: pb::CreateKeyRequest,
    service: &KeyStoreService,
) -> Result<NewKey, InvalidFields> {
    let mut violations = Violations::default();
    let name = violations.take(KeyName::parse_new("name", request.name));
    let owner_id = violations.take(OwnerId::parse_new("owner_id", request.owner_id));
    let description = violations.take(Description::parse_new("description", request.description));
    let scopes = violations.take(ScopeSet::parse("scopes", request.scopes));
    let metadata = violations.take(Metadata::parse_new(request.metadata));
    let expiry = violations.take(convert::create_expiry(request.expiry));
    let request_id = violations.take(ClientRequestId::parse(request.request_id));
    let prefix = request.prefix;
    if !violations.is_empty() {
        violations.take(service.terms(prefix.as_deref(), expiry.flatten(), service.now()));
    }
    let assemble = || {
        Some(NewKey {
            name: name?,
            owner_id: owner_id?,
            description: description?,
            scopes: scopes?,
            metadata: metadata?,
            prefix,
            expiry: expiry?,
            request_id: request_id?,
        })
    };
    violations.finish(assemble())
}

/// Parses a rotation. The expiry is checked as in [`new_key`].
pub(super) fn rotate_request(
    request: pb::RotateKeyRequest,
    service: &KeyStoreService,
) -> Result<(KeyId, RotateRequest), InvalidFields> {
    let mut violations = Violations::default();
    let id = violations.take(KeyId::parse("id", &request.id));
    let overlap = violations.take(convert::overlap(request.overlap));
    let expiry = violations.take(convert::rotate_expiry(request.expiry));
    let request_id = violations.take(ClientRequestId::parse(request.request_id));
    if !violations.is_empty() {
        violations.take(service.terms(None, expiry.flatten(), service.now()));
    }
    let assemble =
        || Some((id?, RotateRequest { overlap: overlap?, expiry: expiry?, request_id: request_id? }));
    violations.finish(assemble())
}

/// Parses a revocation. The reason has no rules beyond its length, so that no revocation fails because of white space.
pub(super) fn revoke_request(request: pb::RevokeKeyRequest) -> Result<(KeyId, RevokeReason), InvalidFields> {
    let mut violations = Violations::default();
    let id = violations.take(KeyId::parse("id", &request.id));
    let reason = violations.take(RevokeReason::parse("reason", request.reason));
    violations.finish(id.zip(reason))
}

/// Parses an update. If the request has another invalid field, the expiry must be after `now` too; the service checks a
/// request that is valid otherwise.
pub(super) fn key_update(
    request: pb::UpdateKeyRequest,
    now: Timestamp,
) -> Result<(KeyId, KeyUpdate), InvalidFields> {
    let mut violations = Violations::default();
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    let key = violations
        .take(request.key.ok_or_else(|| InvalidField::new("key", "missing; set its id and the new values")));
    let id = key.as_ref().and_then(|key| violations.take(KeyId::parse("key.id", &key.id)));
    let mut update = KeyUpdate::default();
    if paths.is_empty() {
        let problem = "missing; list the fields to update";
        violations.take::<(), _>(Err(InvalidField::new("update_mask", problem)));
    }
    for (at, path) in paths.iter().take(MAX_CHECKED_PATHS).enumerate() {
        let field = || format!("update_mask.paths[{at}]");
        if paths[..at].contains(path) {
            let problem = format!("repeats {}; list each field once", shown(path));
            violations.take::<(), _>(Err(InvalidField::new(field(), problem)));
        } else if !UPDATABLE.contains(&path.as_str()) {
            let problem = format!(
                "{} is not an updatable field; use name, description, scopes, metadata or expire_time",
                shown(path)
            );
            violations.take::<(), _>(Err(InvalidField::new(field(), problem)));
        } else if let Some(key) = &key {
            violations.take(set_field(&mut update, path, key));
        }
    }
    if let Some(expires_at) = update.expires_at.filter(|_| !violations.is_empty()) {
        violations.take(check_future("key.expire_time", expires_at, now));
    }
    violations.finish(id.map(|id| (id, update)))
}

const UPDATABLE: [&str; 5] = ["name", "description", "scopes", "metadata", "expire_time"];

/// Sets the value of the field at `path`, which is one of [`UPDATABLE`].
fn set_field(update: &mut KeyUpdate, path: &str, key: &pb::Key) -> Result<(), InvalidField> {
    match path {
        "name" => update.name = Some(KeyName::parse_new("key.name", &key.name)?),
        "description" => {
            update.description = Some(Description::parse_new("key.description", &key.description)?);
        }
        "scopes" => update.scopes = Some(ScopeSet::parse("key.scopes", &key.scopes)?),
        "metadata" => update.metadata = Some(Metadata::parse_new(key.metadata.clone())?),
        _ => {
            let expires_at = key.expire_time.map(|time| convert::from_proto_time("key.expire_time", time));
            update.expires_at = Some(expires_at.transpose()?);
        }
    }
    Ok(())
}

/// Returns the beginning of `path` between backticks, with its control characters escaped.
fn shown(path: &str) -> String {
    let begin: String = path.chars().take(MAX_SHOWN_CHARS).collect();
    let rest = if begin.len() < path.len() { "…" } else { "" };
    format!("`{}{rest}`", begin.escape_debug())
}

/// Parses a request for a page of keys. Key states are determined at `now`.
pub(super) fn list_request(
    request: pb::ListKeysRequest,
    now: Timestamp,
) -> Result<ListRequest, InvalidFields> {
    let mut violations = Violations::default();
    let limit = violations.take(page_size(request.page_size));
    let owner_id = violations.take(convert::listed_owner(request.owner_id));
    let filter = violations.take(convert::filter(&request.states, request.prefix, now));
    let assemble = || Some(ListRequest { owner_id: owner_id?, filter: filter?, after: None, limit: limit? });
    let mut page = violations.finish(assemble())?;
    // A token is valid only for its own filter, so it is checked last.
    page.after = page_token::decode(&request.page_token, &page)?;
    Ok(page)
}

/// Parses a request for all keys of an owner, or of all owners. Key states are determined at `now`.
pub(super) fn stream_request(
    request: pb::StreamKeysRequest,
    now: Timestamp,
) -> Result<(Option<OwnerId>, KeyFilter), InvalidFields> {
    let mut violations = Violations::default();
    let owner_id = violations.take(convert::listed_owner(request.owner_id));
    let filter = violations.take(convert::filter(&request.states, request.prefix, now));
    violations.finish(owner_id.zip(filter))
}

pub(super) fn event_page_request(request: pb::ListEventsRequest) -> Result<EventPageRequest, InvalidFields> {
    let mut violations = Violations::default();
    let key_id = match request.key_id.as_str() {
        "" => Some(None),
        id => violations.take(KeyId::parse("key_id", id)).map(Some),
    };
    let owner_id = violations.take(convert::listed_owner(request.owner_id));
    let limit = violations.take(page_size(request.page_size));
    let assemble =
        || Some(EventPageRequest { key_id: key_id?, owner_id: owner_id?, after: None, limit: limit? });
    let mut page = violations.finish(assemble())?;
    page.after = page_token::decode_event(&request.page_token, &page)?;
    Ok(page)
}

fn page_size(requested: i32) -> Result<usize, InvalidField> {
    match usize::try_from(requested) {
        Err(_) => Err(InvalidField::new("page_size", "must not be negative; 0 means 100")),
        Ok(0) => Ok(DEFAULT_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::FieldMask;
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::grpc::status;

    fn update(key: pb::Key, paths: Vec<String>) -> InvalidFields {
        let request = pb::UpdateKeyRequest {
            key: Some(pb::Key { id: "x".into(), ..key }),
            update_mask: Some(FieldMask { paths }),
            expected_revision: None,
        };
        key_update(request, Timestamp::MAX).unwrap_err()
    }

    fn names(fields: &InvalidFields) -> Vec<&str> {
        fields.iter().map(|it| it.field.as_str()).collect()
    }

    #[test]
    fn all_invalid_fields_of_an_update_are_reported() {
        let key = pb::Key { expire_time: Some(prost_types::Timestamp::default()), ..pb::Key::default() };
        let fields = update(key, ["name", "bogus", "expire_time", "name"].map(str::to_owned).into());
        let expected =
            ["key.id", "key.name", "update_mask.paths[1]", "update_mask.paths[3]", "key.expire_time"];
        assert_eq!(names(&fields), expected);
        assert!(fields.to_string().ends_with("(and 4 more invalid fields)"), "{fields}");
        let empty = key_update(pb::UpdateKeyRequest::default(), Timestamp::MIN).unwrap_err();
        assert_eq!(names(&empty), ["key", "update_mask"]);
    }

    #[test]
    fn an_unknown_path_is_quoted_escaped_and_shortened() {
        let problem = |path: &str| {
            let fields = update(pb::Key::default(), vec![path.to_owned()]);
            fields.iter().nth(1).unwrap().problem.clone()
        };
        assert!(problem("bogus").starts_with("`bogus` is not an updatable field; use name, "));
        assert!(problem("a\u{1b}\u{202e}").starts_with("`a\\u{1b}\\u{202e}` is not"));
        assert!(problem(&"ü".repeat(65)).starts_with(&format!("`{}…` is not", "ü".repeat(64))));
    }

    #[test]
    fn a_status_stays_small_whatever_the_mask_has() {
        for path in ["bogus", &"\u{10ffff}".repeat(200)] {
            let fields = update(pb::Key::default(), vec![path.to_owned(); 500]);
            assert!(fields.iter().count() > 1);
            let status = status::invalid_field(fields);
            assert!(status.details().len() < 4_096, "{}", status.details().len());
            assert!(!status.get_details_bad_request().unwrap().field_violations.is_empty());
        }
    }
}
