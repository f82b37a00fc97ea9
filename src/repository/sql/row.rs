//! Conversion between rows and keys or events. [`StoredKey`] and [`StoredEvent`] parse the values of rows.

use std::fmt;

use sea_orm::sea_query::Expr;
use sea_orm::{ColIdx, FromQueryResult, QueryResult, TryGetError, TryGetable};
use uuid::Uuid;

use super::error::from_db;
use super::tables::Tables;
use crate::domain::{
    ApiKey, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyHash, KeyId, OwnerId, Revision, Revocation,
    RevokeReason, Scope, Timestamp,
};
use crate::repository::stored::{KEY_FORMAT, StoredHash, corrupt, from_json, to_json};
use crate::repository::unreadable::{UNREADABLE, revoked_key, skipped_event, skipped_key};
use crate::repository::{
    EventPosition, FeedItem, ListedEvent, ListedKey, PagePosition, Result, StoredEvent, StoredKey,
};

/// A stored key.
#[derive(FromQueryResult)]
pub(super) struct KeyRow {
    pub id: Uuid,
    pub hash: Vec<u8>,
    prefix: String,
    name: String,
    description: String,
    pub owner_id: BinaryText,
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
    pub owner_id: BinaryText,
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
            owner_id: row.try_get("", "owner_id").unwrap_or(BinaryText(UNREADABLE.to_owned())),
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
        let hash = KeyHash::from_slice(&self.hash).unwrap_or(KeyHash::from_bytes([0; KeyHash::BYTES]));
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
    owner_id: BinaryText,
    kind: String,
    changed_fields: String,
    actor: String,
    request_id: String,
    created_at: i64,
}

/// A text that the database compares byte by byte: see [`Tables::exact`].
pub(super) struct BinaryText(pub String);

impl TryGetable for BinaryText {
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
        // A nonce counts only with the revision that it was stored with.
        let nonce = self.nonce.filter(|_| self.nonce_revision == Some(self.revision));
        let stored = StoredKey {
            format: KEY_FORMAT,
            id: self.id,
            hash: StoredHash::from_bytes(&self.hash),
            prefix: self.prefix,
            name: self.name,
            description: self.description,
            owner_id: self.owner_id.0,
            scopes: from_json(self.scopes.as_bytes())?,
            metadata: from_json(self.metadata.as_bytes())?,
            created_at: self.created_at,
            updated_at: self.updated_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            revoke_reason: self.revoke_reason.unwrap_or_default(),
            rotated_from: self.rotated_from,
            replaced_by: self.replaced_by,
            revision: self.revision,
            nonce: nonce.map_or(ChangeId::UNKNOWN_NONCE, i64::cast_unsigned),
        };
        stored.into_key()
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
    fn into_event(self) -> Result<KeyEvent> {
        let fields = self.changed_fields.split(',').filter(|field| !field.is_empty());
        let stored = StoredEvent {
            nonce: self.nonce.cast_unsigned(),
            key_id: self.key_id,
            hash: StoredHash::from_bytes(&self.hash),
            owner_id: self.owner_id.0,
            kind: self.kind,
            changed_fields: fields.map(str::to_owned).collect(),
            actor: self.actor,
            request_id: self.request_id,
            at: self.created_at,
        };
        stored.into_event(Revision::new(self.revision))
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
        to_json(&scopes)?.into(),
        to_json(key.metadata.as_map())?.into(),
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
