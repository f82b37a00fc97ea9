//! Between rows and keys. A row that breaks a rule of the domain is corrupt: it is reported, never guessed at.

use std::collections::BTreeMap;

use sea_orm::{ActiveModelTrait as _, ActiveValue::Unchanged, IntoActiveModel as _};
use uuid::Uuid;

use super::entity::api_key;
use crate::domain::{
    ApiKey, Description, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revision,
    Revocation, RevokeReason, ScopeSet, Timestamp,
};
use crate::repository::{ErrorKind, RepositoryError, Result};

pub(super) fn uuid_of(id: KeyId) -> Uuid {
    id.as_uuid()
}

pub(super) fn timestamp(micros: i64) -> Result<Timestamp> {
    Timestamp::from_micros(micros)
        .ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "a time outside of the years 1 to 9999"))
}

pub(super) fn from_row(row: api_key::Model) -> Result<ApiKey> {
    let hash: [u8; KeyHash::BYTES] = row
        .hash
        .try_into()
        .map_err(|_| RepositoryError::new(ErrorKind::Corrupt, "a hash of the wrong length"))?;
    let scopes: Vec<String> = serde_json::from_str(&row.scopes).map_err(corrupt_json)?;
    let metadata: BTreeMap<String, String> = serde_json::from_str(&row.metadata).map_err(corrupt_json)?;
    let revocation = match row.revoked_at {
        None => None,
        Some(at) => Some(Revocation {
            at: timestamp(at)?,
            reason: RevokeReason::parse("revoke_reason", row.revoke_reason.unwrap_or_default())
                .map_err(corrupt)?,
        }),
    };
    Ok(ApiKey {
        id: KeyId::from_uuid(row.id),
        hash: KeyHash::from_bytes(hash),
        prefix: KeyPrefix::parse("prefix", row.prefix).map_err(corrupt)?,
        name: KeyName::parse("name", row.name).map_err(corrupt)?,
        description: Description::parse("description", row.description).map_err(corrupt)?,
        owner_id: OwnerId::parse("owner_id", row.owner_id).map_err(corrupt)?,
        scopes: ScopeSet::parse("scopes", scopes).map_err(corrupt)?,
        metadata: Metadata::parse(metadata).map_err(corrupt)?,
        created_at: timestamp(row.created_at)?,
        updated_at: timestamp(row.updated_at)?,
        expires_at: row.expires_at.map(timestamp).transpose()?,
        revocation,
        rotated_from: row.rotated_from.map(KeyId::from_uuid),
        replaced_by: row.replaced_by.map(KeyId::from_uuid),
        revision: Revision::new(row.revision),
    })
}

/// The row of `key`.
pub(super) fn to_row(key: &ApiKey) -> Result<api_key::Model> {
    let scopes: Vec<&str> = key.scopes.iter().map(crate::domain::Scope::as_str).collect();
    Ok(api_key::Model {
        id: uuid_of(key.id),
        hash: key.hash.as_bytes().to_vec(),
        prefix: key.prefix.as_str().to_owned(),
        name: key.name.as_str().to_owned(),
        description: key.description.as_str().to_owned(),
        owner_id: key.owner_id.as_str().to_owned(),
        scopes: serde_json::to_string(&scopes).map_err(unwritable)?,
        metadata: serde_json::to_string(key.metadata.as_map()).map_err(unwritable)?,
        created_at: key.created_at.as_micros(),
        updated_at: key.updated_at.as_micros(),
        expires_at: key.expires_at.map(Timestamp::as_micros),
        revoked_at: key.revocation.as_ref().map(|revocation| revocation.at.as_micros()),
        revoke_reason: key.revocation.as_ref().map(|revocation| revocation.reason.as_str().to_owned()),
        rotated_from: key.rotated_from.map(uuid_of),
        replaced_by: key.replaced_by.map(uuid_of),
        revision: key.revision.get(),
    })
}

/// All columns of `row`, to be written to the row with its id.
pub(super) fn to_write(row: api_key::Model) -> api_key::ActiveModel {
    let id = Unchanged(row.id);
    api_key::ActiveModel { id, ..row.into_active_model().reset_all() }
}

fn corrupt(error: InvalidField) -> RepositoryError {
    RepositoryError::new(ErrorKind::Corrupt, error)
}

/// The parser's message can quote the text, so only its category and place are kept.
fn corrupt_json(error: serde_json::Error) -> RepositoryError {
    let problem =
        format!("JSON: {:?} error at line {} column {}", error.classify(), error.line(), error.column());
    RepositoryError::new(ErrorKind::Corrupt, problem)
}

fn unwritable(error: serde_json::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Internal, error)
}
