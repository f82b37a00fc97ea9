//! What the audit trail keeps of a change.

use super::{KeyHash, KeyId, OwnerId, Revision, Timestamp};

/// Who changes a key, for which call, and when. Every write takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeContext {
    /// The name of the credential that made the call.
    pub actor: String,
    /// The id of the call, as in its logs.
    pub request_id: String,
    /// The instant of the change.
    pub now: Timestamp,
}

/// One change of a key, as the audit trail and the change feed tell it. It outlives its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    /// The revision that the key got by it.
    pub revision: Revision,
    /// Drawn for this event: tells it from another one that gets its revision after history was rewound.
    pub nonce: u64,
    /// The key.
    pub key_id: KeyId,
    /// The digest of the key string, for caches.
    pub hash: KeyHash,
    /// The key's owner.
    pub owner_id: OwnerId,
    /// What was done.
    pub kind: ChangeKind,
    /// What an update changed.
    pub changed_fields: Vec<ChangedField>,
    /// The name of the credential that made the call.
    pub actor: String,
    /// The id of the call, as in its logs.
    pub request_id: String,
    /// The instant of the change, by the clock of the replica that made it.
    pub at: Timestamp,
}

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The key was made.
    Created,
    /// Some of its attributes were changed.
    Updated,
    /// It was revoked.
    Revoked,
    /// It was replaced by a successor.
    Rotated,
    /// It was deleted.
    Deleted,
}

impl ChangeKind {
    /// All of them.
    const ALL: [Self; 5] = [Self::Created, Self::Updated, Self::Revoked, Self::Rotated, Self::Deleted];

    /// Reads what [`ChangeKind::as_str`] gave.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The kind as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Revoked => "revoked",
            Self::Rotated => "rotated",
            Self::Deleted => "deleted",
        }
    }
}

/// The parts of a key that can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangedField {
    /// `name`
    Name,
    /// `description`
    Description,
    /// `scopes`
    Scopes,
    /// `metadata`
    Metadata,
    /// `expires_at`
    ExpiresAt,
    /// `revocation`
    Revocation,
    /// `replaced_by`
    ReplacedBy,
}

impl ChangedField {
    /// All of them.
    const ALL: [Self; 7] = [
        Self::Name,
        Self::Description,
        Self::Scopes,
        Self::Metadata,
        Self::ExpiresAt,
        Self::Revocation,
        Self::ReplacedBy,
    ];

    /// Reads what [`ChangedField::as_str`] gave.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == text)
    }

    /// The field as it is stored: the name that it has in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Description => "description",
            Self::Scopes => "scopes",
            Self::Metadata => "metadata",
            Self::ExpiresAt => "expire_time",
            Self::Revocation => "revoke_time",
            Self::ReplacedBy => "replaced_by",
        }
    }
}
