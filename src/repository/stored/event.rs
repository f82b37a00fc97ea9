//! An event in its stored form.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{StoredHash, corrupt, from_json, to_json, valid_timestamp};
use crate::domain::{ChangeKind, ChangedField, InvalidField, KeyEvent, KeyId, OwnerId, Revision};
use crate::repository::Result;

/// An event as a document for serde, without its revision. Backends store the revision beside the document,
/// because it is the event's position in the change feed.
///
/// The time is in microseconds since the Unix epoch, and the hash is in lowercase hexadecimal.
///
/// ```
/// # use keyvouch::domain::KeyEvent;
/// # use keyvouch::repository::StoredEvent;
/// # fn round_trip(event: &KeyEvent) -> keyvouch::repository::Result<()> {
/// let document = StoredEvent::new(event).to_json()?;
/// assert_eq!(StoredEvent::from_json(document.as_bytes())?.into_event(event.revision)?, *event);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredEvent {
    pub(in crate::repository) nonce: u64,
    pub(in crate::repository) key_id: Uuid,
    pub(in crate::repository) hash: StoredHash,
    pub(in crate::repository) owner_id: String,
    pub(in crate::repository) kind: String,
    pub(in crate::repository) changed_fields: Vec<String>,
    pub(in crate::repository) actor: String,
    pub(in crate::repository) request_id: String,
    pub(in crate::repository) at: i64,
}

impl StoredEvent {
    /// Converts `event` into a document. The revision is not part of it.
    #[must_use]
    pub fn new(event: &KeyEvent) -> Self {
        Self {
            nonce: event.nonce,
            key_id: event.key_id.as_uuid(),
            hash: StoredHash::of(event.hash),
            owner_id: event.owner_id.as_str().to_owned(),
            kind: event.kind.as_str().to_owned(),
            changed_fields: event.changed_fields.iter().map(|field| field.as_str().to_owned()).collect(),
            actor: event.actor.clone(),
            request_id: event.request_id.clone(),
            at: event.at.as_micros(),
        }
    }

    /// Encodes the document as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::repository::ErrorKind::Internal) if encoding fails, which is a defect.
    pub fn to_json(&self) -> Result<String> {
        to_json(self)
    }

    /// Decodes a document that [`to_json`](Self::to_json) returned. Its values are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt) if it is not such a document. The error
    /// contains no part of it.
    pub fn from_json(document: &[u8]) -> Result<Self> {
        from_json(document)
    }

    /// Converts the document into the event with this revision. A kind of change that this release does not
    /// support becomes [`ChangeKind::Unknown`], and unsupported fields are skipped, because a newer release
    /// may have written the event.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt) if a value is invalid.
    pub fn into_event(self, revision: Revision) -> Result<KeyEvent> {
        self.parse(revision).map_err(corrupt)
    }

    fn parse(self, revision: Revision) -> std::result::Result<KeyEvent, InvalidField> {
        Ok(KeyEvent {
            revision,
            nonce: self.nonce,
            key_id: KeyId::from_uuid(self.key_id),
            hash: self.hash.parse()?,
            owner_id: OwnerId::parse("owner_id", self.owner_id)?,
            kind: ChangeKind::parse(&self.kind),
            changed_fields: self.changed_fields.iter().filter_map(|it| ChangedField::parse(it)).collect(),
            actor: self.actor,
            request_id: self.request_id,
            at: valid_timestamp("at", self.at)?,
        })
    }
}

/// Shows only the key's id, because a document contains the hash.
impl fmt::Debug for StoredEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredEvent").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ApiKey, ChangeContext, KeyHash, Timestamp, sample_key};
    use crate::repository::ErrorKind;

    fn event() -> KeyEvent {
        let id = Uuid::from_u128(0x01a2_0fb3_1162_7e43_9734_93a5_d025_9ef2);
        let key = ApiKey {
            id: KeyId::from_uuid(id),
            hash: KeyHash::from_bytes([0xab; KeyHash::BYTES]),
            owner_id: OwnerId::parse("owner_id", "owner").unwrap(),
            revision: Revision::new(7),
            nonce: u64::MAX,
            ..sample_key()
        };
        let context = ChangeContext::new("token:a", "call", Timestamp::from_micros(5).unwrap());
        KeyEvent::of(&key, ChangeKind::Updated, vec![ChangedField::ExpiresAt, ChangedField::Name], &context)
    }

    /// The document as every release has written it.
    const DOCUMENT: &str = concat!(
        r#"{"nonce":18446744073709551615,"key_id":"01a20fb3-1162-7e43-9734-93a5d0259ef2","#,
        r#""hash":"abababababababababababababababababababababababababababababababab","owner_id":"owner","#,
        r#""kind":"updated","changed_fields":["expire_time","name"],"actor":"token:a","request_id":"call","at":5}"#
    );

    #[test]
    fn documents_of_events_keep_their_form() {
        assert_eq!(StoredEvent::new(&event()).to_json().unwrap(), DOCUMENT);
        let parsed = StoredEvent::from_json(DOCUMENT.as_bytes()).unwrap().into_event(Revision::new(7));
        assert_eq!(parsed.unwrap(), event());
    }

    #[test]
    fn unsupported_kinds_and_fields_are_accepted() {
        let newer = DOCUMENT.replace("updated", "frobbed").replace("expire_time", "colour");
        let parsed = StoredEvent::from_json(newer.as_bytes()).unwrap().into_event(Revision::new(7)).unwrap();
        assert_eq!((parsed.kind, parsed.changed_fields), (ChangeKind::Unknown, vec![ChangedField::Name]));
    }

    #[test]
    fn invalid_values_are_corrupt() {
        for (valid, invalid) in
            [("abab", "ab"), (r#""owner""#, r#""""#), (r#""at":5"#, r#""at":9223372036854775807"#)]
        {
            let document = DOCUMENT.replacen(valid, invalid, 1);
            assert_ne!(document, DOCUMENT);
            let parsed = StoredEvent::from_json(document.as_bytes()).unwrap().into_event(Revision::new(7));
            assert_eq!(parsed.unwrap_err().kind(), ErrorKind::Corrupt, "{invalid}");
        }
        assert_eq!(StoredEvent::from_json(b"{}").unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn debug_shows_no_hash() {
        let stored = StoredEvent::from_json(DOCUMENT.as_bytes()).unwrap();
        assert!(!format!("{stored:?}").contains("abab"));
    }
}
