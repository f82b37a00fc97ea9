//! A stored event of a stream.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{
    ChangeContext, ChangeKind, ChangedField, KeyEvent, KeyHash, KeyId, OwnerId, Revision, Timestamp,
};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// An event without its revision, which is part of the id of its entry in the stream.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredEvent {
    nonce: u64,
    key_id: Uuid,
    hash: String,
    owner_id: String,
    kind: String,
    changed_fields: Vec<String>,
    actor: String,
    request_id: String,
    at: i64,
}

impl StoredEvent {
    pub(super) fn new(
        kind: ChangeKind,
        (key_id, hash, owner_id): (KeyId, &KeyHash, &OwnerId),
        changed_fields: &[ChangedField],
        context: &ChangeContext,
        nonce: u64,
    ) -> Self {
        Self {
            nonce,
            key_id: key_id.as_uuid(),
            hash: hash.to_hex(),
            owner_id: owner_id.as_str().to_owned(),
            kind: kind.as_str().to_owned(),
            changed_fields: changed_fields.iter().map(|field| field.as_str().to_owned()).collect(),
            actor: context.actor.clone(),
            request_id: context.request_id.clone(),
            at: context.now.as_micros(),
        }
    }

    pub(super) fn into_event(self, revision: Revision) -> Result<KeyEvent> {
        // A newer release may write fields that this one does not support. They are skipped.
        let fields = self.changed_fields.iter().filter_map(|field| ChangedField::parse(field));
        let event = KeyEvent {
            revision,
            nonce: self.nonce,
            key_id: KeyId::from_uuid(self.key_id),
            hash: KeyHash::from_hex(&self.hash).ok_or_else(corrupt)?,
            owner_id: OwnerId::parse("owner_id", self.owner_id).map_err(|_| corrupt())?,
            kind: ChangeKind::parse(&self.kind),
            changed_fields: fields.collect(),
            actor: self.actor,
            request_id: self.request_id,
            at: Timestamp::from_micros(self.at).ok_or_else(corrupt)?,
        };
        Ok(event)
    }
}

fn corrupt() -> RepositoryError {
    RepositoryError::new(ErrorKind::Corrupt, "an event breaks a rule")
}
