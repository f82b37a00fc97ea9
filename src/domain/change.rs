//! What the audit trail keeps of a change.

use super::{ChangeId, KeyHash, KeyId, OwnerId, RequestDigest, Revision, Timestamp};

/// Who changes a key, for which call, and when. Every write takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeContext {
    /// The name of the credential that made the call.
    pub actor: String,
    /// The id of the call, as in its logs.
    pub request_id: String,
    /// The instant of the change.
    pub now: Timestamp,
    /// The request that makes a key, if a retry of it must not make another one.
    pub request: Option<RequestDigest>,
    /// Whether an active key may get the hash of a key that was revoked and deleted.
    pub may_revive: bool,
}

impl ChangeContext {
    /// Returns the context of a change that `actor` makes by the call `request_id` at `now`. The change has no request to
    /// be recognised by and revives no key.
    pub fn new(actor: impl Into<String>, request_id: impl Into<String>, now: Timestamp) -> Self {
        Self { actor: actor.into(), request_id: request_id.into(), now, request: None, may_revive: false }
    }
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

impl KeyEvent {
    /// Returns the change that this event tells of.
    #[must_use]
    pub fn change(&self) -> ChangeId {
        ChangeId::new(self.revision, self.nonce)
    }
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
    /// Something that this release doesn't know: a newer one wrote the event. Caches treat it as a change of the key.
    Unknown,
}

impl ChangeKind {
    /// All that this release knows.
    const ALL: [Self; 5] = [Self::Created, Self::Updated, Self::Revoked, Self::Rotated, Self::Deleted];

    /// Reads what [`ChangeKind::as_str`] gave; [`ChangeKind::Unknown`] for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Self::Unknown)
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
            Self::Unknown => "unknown",
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
