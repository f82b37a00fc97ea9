//! Parses the requests of `KeyStore`.

use crate::domain::{Description, InvalidField, KeyId, KeyName, Metadata, OwnerId, ScopeSet, Timestamp};
use crate::grpc::{convert, page_token, pb};
use crate::repository::EventPageRequest;
use crate::service::{ClientRequestId, KeyUpdate, ListRequest, NewKey, RotateRequest};

const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1_000;

pub(super) fn new_key(request: pb::CreateKeyRequest) -> Result<NewKey, InvalidField> {
    Ok(NewKey {
        name: KeyName::parse("name", request.name)?,
        owner_id: OwnerId::parse("owner_id", request.owner_id)?,
        description: Description::parse("description", request.description)?,
        scopes: ScopeSet::parse("scopes", request.scopes)?,
        metadata: Metadata::parse(request.metadata)?,
        prefix: request.prefix,
        expiry: convert::create_expiry(request.expiry)?,
        request_id: ClientRequestId::parse(request.request_id)?,
    })
}

pub(super) fn rotate_request(request: pb::RotateKeyRequest) -> Result<(KeyId, RotateRequest), InvalidField> {
    let id = KeyId::parse("id", &request.id)?;
    let overlap = convert::overlap(request.overlap)?;
    let request_id = ClientRequestId::parse(request.request_id)?;
    Ok((id, RotateRequest { overlap, expiry: convert::rotate_expiry(request.expiry)?, request_id }))
}

pub(super) fn key_update(request: pb::UpdateKeyRequest) -> Result<(KeyId, KeyUpdate), InvalidField> {
    let Some(key) = request.key else {
        return Err(InvalidField::new("key", "missing; set its id and the new values"));
    };
    let id = KeyId::parse("key.id", &key.id)?;
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() {
        return Err(InvalidField::new("update_mask", "missing; list the fields to update"));
    }
    let mut update = KeyUpdate::default();
    for (at, path) in paths.iter().enumerate() {
        // Bounds the work: each path is parsed once.
        if paths[..at].contains(path) {
            let problem = format!("repeats `{path}`; list each field once");
            return Err(InvalidField::new(format!("update_mask.paths[{at}]"), problem));
        }
        match path.as_str() {
            "name" => update.name = Some(KeyName::parse("key.name", &key.name)?),
            "description" => {
                update.description = Some(Description::parse("key.description", &key.description)?);
            }
            "scopes" => update.scopes = Some(ScopeSet::parse("key.scopes", &key.scopes)?),
            "metadata" => update.metadata = Some(Metadata::parse(key.metadata.clone())?),
            "expire_time" => {
                let expires_at =
                    key.expire_time.map(|time| convert::from_proto_time("key.expire_time", time));
                update.expires_at = Some(expires_at.transpose()?);
            }
            _ => {
                let problem =
                    "not an updatable field; use name, description, scopes, metadata or expire_time";
                return Err(InvalidField::new(format!("update_mask.paths[{at}]"), problem));
            }
        }
    }
    Ok((id, update))
}

/// Parses a request for a page of keys. Key states are determined at `now`.
pub(super) fn list_request(
    request: pb::ListKeysRequest,
    now: Timestamp,
) -> Result<ListRequest, InvalidField> {
    let limit = page_size(request.page_size)?;
    let owner_id = convert::listed_owner(request.owner_id)?;
    let filter = convert::filter(&request.states, request.prefix, now)?;
    let mut page = ListRequest { owner_id, filter, after: None, limit };
    page.after = page_token::decode(&request.page_token, &page)?;
    Ok(page)
}

pub(super) fn event_page_request(request: pb::ListEventsRequest) -> Result<EventPageRequest, InvalidField> {
    let key_id = match request.key_id.as_str() {
        "" => None,
        id => Some(KeyId::parse("key_id", id)?),
    };
    let owner_id = convert::listed_owner(request.owner_id)?;
    let mut page = EventPageRequest { key_id, owner_id, after: None, limit: page_size(request.page_size)? };
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
