//! Conversion between rows and keys or events. A row that violates a rule of the domain is reported as
//! corrupt, and never repaired by guessing.

use std::collections::BTreeMap;
use std::fmt;

use sea_orm::sea_query::Expr;
use sea_orm::{ColIdx, FromQueryResult, QueryResult, TryGetError, TryGetable};
use uuid::Uuid;

use super::error::from_db;
use super::tables::Tables;
use crate::domain::{
    ApiKey, ChangeId, ChangeKind, ChangedField, Description, InvalidField, KeyEvent, KeyHash, KeyId, KeyName,
    KeyPrefix, Metadata, OwnerId, Revision, Revocation, RevokeReason, Scope, ScopeSet, Timestamp,
};
use crate::repository::unreadable::{UNREADABLE, revoked_key, skipped_event, skipped_key};
use crate::repository::{
    ErrorKind, EventPosition, FeedItem, ListedEvent, ListedKey, PagePosition, RepositoryError, Result,
};

/// A stored key.
#[derive(FromQueryResult)]
pub(super) struct KeyRow {
    pub id: Uuid,
    pub hash: Vec<u8>,
    prefix: String,
    name: String,
    description: String,
    pub owner_id: Exact,
    scopes: String,
    metadata: String,
    created_at: i64,
    updated_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    revoke_reason: Option<String>,
    rotated_from: Option<Uuid>,
    replaced_by: Option<Uuid>,
    pub revision: i64,
    nonce: Option<i64>,
    /// The revision that `nonce` belongs to. Releases before 0.2 only change `revision`.
    nonce_revision: Option<i64>,
}

/// The identifying columns of a key that can't be read otherwise. SQLite stores values of any type in any
/// column, so only the id has to be valid.
pub(super) struct KeyStub {
    pub id: Uuid,
    pub hash: Vec<u8>,
    pub owner_id: Exact,
    pub revoked_at: Option<i64>,
    pub revision: i64,
    pub nonce: Option<i64>,
}

impl KeyStub {
    pub(super) fn read(row: &QueryResult) -> Result<Self> {
        let time: std::result::Result<Option<i64>, _> = row.try_get("", "revoked_at");
        Ok(Self {
            id: row.try_get("", "id").map_err(from_db)?,
            hash: row.try_get("", "hash").unwrap_or_default(),
            owner_id: row.try_get("", "owner_id").unwrap_or(Exact(UNREADABLE.to_owned())),
            // An invalid time is treated as unset.
            revoked_at: time.unwrap_or_default(),
            revision: row.try_get("", "revision").unwrap_or_default(),
            nonce: row.try_get("", "nonce").unwrap_or_default(),
        })
    }

    /// Returns a key that is revoked for `reason`, with defaults for all columns that are missing here.
    pub(super) fn into_key(self, reason: &RevokeReason) -> Result<ApiKey> {
        let at = self.revoked_at.and_then(Timestamp::from_micros).unwrap_or(Timestamp::MIN);
        // A hash of another length is not the digest of any key string, so no cache contains it.
        let hash = hash(self.hash).unwrap_or(KeyHash::from_bytes([0; KeyHash::BYTES]));
        let owner_id = OwnerId::parse("owner_id", self.owner_id.0)
            .or_else(|_| OwnerId::parse("owner_id", UNREADABLE))
            .map_err(corrupt)?;
        let revocation = Revocation { at, reason: reason.clone() };
        Ok(ApiKey {
            revision: Revision::new(self.revision),
            nonce: self.nonce.map_or(ChangeId::UNKNOWN_NONCE, i64::cast_unsigned),
            ..revoked_key(KeyId::from_uuid(self.id), hash, owner_id, Timestamp::MIN, revocation)?
        })
    }
}

/// A stored event.
#[derive(FromQueryResult)]
pub(super) struct EventRow {
    revision: i64,
    nonce: i64,
    key_id: Uuid,
    hash: Vec<u8>,
    owner_id: Exact,
    kind: String,
    changed_fields: String,
    actor: String,
    request_id: String,
    created_at: i64,
}

/// A text that the database compares byte by byte: see [`Tables::exact`].
pub(super) struct Exact(pub String);

impl TryGetable for Exact {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> std::result::Result<Self, TryGetError> {
        if let Ok(text) = row.try_get_by::<String, _>(index) {
            return Ok(Self(text));
        }
        let bytes = Vec::<u8>::try_get_by(row, index)?;
        let text = String::from_utf8(bytes);
        text.map(Self)
            .map_err(|_| TryGetError::DbErr(sea_orm::DbErr::Type("a text that is not valid UTF-8".into())))
    }
}

/// Shows only the id, because a row contains the hash.
impl fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRow").field("id", &self.id).finish_non_exhaustive()
    }
}

impl KeyRow {
    pub(super) fn into_key(self) -> Result<ApiKey> {
        let scopes: Vec<String> = serde_json::from_str(&self.scopes).map_err(corrupt_json)?;
        let metadata: BTreeMap<String, String> =
            serde_json::from_str(&self.metadata).map_err(corrupt_json)?;
        let revocation = match self.revoked_at {
            None => None,
            Some(at) => Some(Revocation {
                at: timestamp(at)?,
                reason: RevokeReason::parse("revoke_reason", self.revoke_reason.unwrap_or_default())
                    .map_err(corrupt)?,
            }),
        };
        Ok(ApiKey {
            id: KeyId::from_uuid(self.id),
            hash: hash(self.hash)?,
            prefix: KeyPrefix::parse("prefix", self.prefix).map_err(corrupt)?,
            name: KeyName::parse("name", self.name).map_err(corrupt)?,
            description: Description::parse("description", self.description).map_err(corrupt)?,
            owner_id: OwnerId::parse("owner_id", self.owner_id.0).map_err(corrupt)?,
            scopes: ScopeSet::parse("scopes", scopes).map_err(corrupt)?,
            metadata: Metadata::parse(metadata).map_err(corrupt)?,
            created_at: timestamp(self.created_at)?,
            updated_at: timestamp(self.updated_at)?,
            expires_at: self.expires_at.map(timestamp).transpose()?,
            revocation,
            rotated_from: self.rotated_from.map(KeyId::from_uuid),
            replaced_by: self.replaced_by.map(KeyId::from_uuid),
            revision: Revision::new(self.revision),
            nonce: self
                .nonce
                .filter(|_| self.nonce_revision == Some(self.revision))
                .map_or(ChangeId::UNKNOWN_NONCE, i64::cast_unsigned),
        })
    }
}

/// Parses a row of a listing. The position of an unreadable row is returned nevertheless.
pub(super) fn listed_key(row: &QueryResult) -> Result<ListedKey> {
    match KeyRow::from_query_result(row, "").map_err(from_db).and_then(KeyRow::into_key) {
        Ok(key) => Ok(ListedKey::Read(key)),
        Err(error) => {
            let id = row.try_get("", "id").map_err(from_db)?;
            // SQLite sorts values that are not numbers after all numbers.
            let created_at = row.try_get("", "created_at").unwrap_or(i64::MAX);
            // A time out of range is before or after all valid times, so clamping it preserves the order.
            let limit = if created_at < 0 { Timestamp::MIN } else { Timestamp::MAX };
            let created_at = Timestamp::from_micros(created_at).unwrap_or(limit);
            skipped_key(KeyId::from_uuid(id), &error);
            Ok(ListedKey::Unreadable(PagePosition { created_at, id: KeyId::from_uuid(id) }))
        }
    }
}

/// Parses an event. The revision of an unreadable event is returned nevertheless.
pub(super) fn feed_item(row: &QueryResult) -> Result<FeedItem> {
    match EventRow::from_query_result(row, "").map_err(from_db).and_then(EventRow::into_event) {
        Ok(event) => Ok(FeedItem::Read(event)),
        Err(error) => {
            let revision = Revision::new(row.try_get("", "revision").map_err(from_db)?);
            skipped_event(revision, &error);
            Ok(FeedItem::Unreadable(revision))
        }
    }
}

/// Parses an event of the audit trail.
pub(super) fn listed_event(row: &QueryResult) -> Result<ListedEvent> {
    Ok(match feed_item(row)? {
        FeedItem::Read(event) => ListedEvent::Read(event),
        FeedItem::Unreadable(revision) => {
            let key_id = row.try_get("", "key_id").unwrap_or_default();
            ListedEvent::Unreadable(EventPosition { revision, key_id: KeyId::from_uuid(key_id) })
        }
    })
}

impl EventRow {
    pub(super) fn into_event(self) -> Result<KeyEvent> {
        let fields = self.changed_fields.split(',').filter(|field| !field.is_empty());
        Ok(KeyEvent {
            revision: Revision::new(self.revision),
            nonce: self.nonce.cast_unsigned(),
            key_id: KeyId::from_uuid(self.key_id),
            hash: hash(self.hash)?,
            owner_id: OwnerId::parse("owner_id", self.owner_id.0).map_err(corrupt)?,
            kind: ChangeKind::parse(&self.kind),
            // A newer release may write fields that this one does not support. They are skipped.
            changed_fields: fields.filter_map(ChangedField::parse).collect(),
            actor: self.actor,
            request_id: self.request_id,
            at: timestamp(self.created_at)?,
        })
    }
}

/// Returns the values of `key` in the order of [`super::tables::Key::ALL`].
pub(super) fn key_values(key: &ApiKey, tables: &Tables) -> Result<[Expr; 18]> {
    let scopes: Vec<&str> = key.scopes.iter().map(Scope::as_str).collect();
    let revoked_at = key.revocation.as_ref().map(|revocation| revocation.at.as_micros());
    let revoke_reason = key.revocation.as_ref().map(|revocation| revocation.reason.as_str().to_owned());
    Ok([
        key.id.as_uuid().into(),
        key.hash.as_bytes().to_vec().into(),
        key.prefix.as_str().into(),
        key.name.as_str().into(),
        key.description.as_str().into(),
        tables.exact(key.owner_id.as_str()).into(),
        serde_json::to_string(&scopes).map_err(unwritable)?.into(),
        serde_json::to_string(key.metadata.as_map()).map_err(unwritable)?.into(),
        key.created_at.as_micros().into(),
        key.updated_at.as_micros().into(),
        key.expires_at.map(Timestamp::as_micros).into(),
        revoked_at.into(),
        revoke_reason.into(),
        key.rotated_from.map(|id| id.as_uuid()).into(),
        key.replaced_by.map(|id| id.as_uuid()).into(),
        key.revision.get().into(),
        key.nonce.cast_signed().into(),
        key.revision.get().into(),
    ])
}

/// Returns the values of `event` in the order of [`super::tables::Event::ALL`]. The key may be corrupt, so
/// its owner and hash are written as they are stored.
pub(super) fn event_values(event: &NewEvent<'_>, tables: &Tables) -> [Expr; 10] {
    let fields: Vec<_> = event.changed_fields.iter().map(|field| field.as_str()).collect();
    [
        event.revision.get().into(),
        event.nonce.cast_signed().into(),
        event.key_id.into(),
        event.hash.to_vec().into(),
        tables.exact(event.owner_id).into(),
        event.kind.as_str().into(),
        fields.join(",").into(),
        event.context.actor.as_str().into(),
        event.context.request_id.as_str().into(),
        event.context.now.as_micros().into(),
    ]
}

/// An event to be written.
pub(super) struct NewEvent<'e> {
    pub revision: Revision,
    pub nonce: u64,
    pub key_id: Uuid,
    pub hash: &'e [u8],
    pub owner_id: &'e str,
    pub kind: ChangeKind,
    pub changed_fields: &'e [ChangedField],
    pub context: &'e crate::domain::ChangeContext,
}

pub(super) fn timestamp(micros: i64) -> Result<Timestamp> {
    Timestamp::from_micros(micros)
        .ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "a time whose year is not within 1 to 9999"))
}

fn hash(bytes: Vec<u8>) -> Result<KeyHash> {
    let bytes: [u8; KeyHash::BYTES] = bytes
        .try_into()
        .map_err(|_| RepositoryError::new(ErrorKind::Corrupt, "a hash of the wrong length"))?;
    Ok(KeyHash::from_bytes(bytes))
}

fn corrupt(error: InvalidField) -> RepositoryError {
    RepositoryError::new(ErrorKind::Corrupt, error)
}

/// Keeps only the category and the position of the parser's error, because its message can quote the text.
fn corrupt_json(error: serde_json::Error) -> RepositoryError {
    let problem =
        format!("JSON: {:?} error at line {} column {}", error.classify(), error.line(), error.column());
    RepositoryError::new(ErrorKind::Corrupt, problem)
}

fn unwritable(error: serde_json::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Internal, error)
}
