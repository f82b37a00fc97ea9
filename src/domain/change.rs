//! What the audit trail keeps of a change.

use super::Timestamp;

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
