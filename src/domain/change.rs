//! The events of the audit trail and the change feed.

use super::{ApiKey, ChangeId, KeyHash, KeyId, OwnerId, RequestDigest, Revision, Timestamp};

/// The credential, the call and the time of a change. Every write takes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeContext {
    /// The name of the credential that made the call.
    pub actor: String,
    /// The id of the call, as in the log entries of that call.
    pub request_id: String,
    /// The instant of the change.
    pub now: Timestamp,
    /// The digest by which a retry of a request that creates a key is recognised, so that the retry does not
    /// create another key. `None` if retries are not recognised.
    pub request: Option<RequestDigest>,
    /// Whether an active key may get the hash of a key that was revoked and deleted.
    pub may_revive: bool,
}

impl ChangeContext {
    /// Returns the context of a change that `actor` makes by the call `request_id` at `now`. Retries of the
    /// change are not recognised, and it can't revive a key.
    pub fn new(actor: impl Into<String>, request_id: impl Into<String>, now: Timestamp) -> Self {
        Self { actor: actor.into(), request_id: request_id.into(), now, request: None, may_revive: false }
    }
}

/// One change of a key, as the audit trail stores it and the change feed delivers it. It outlives its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    /// The revision that the change gave to the key.
    pub revision: Revision,
    /// A random number, drawn for this event. It distinguishes this event from another one that gets the same
    /// revision after the backend was rewound.
    pub nonce: u64,
    /// The id of the changed key.
    pub key_id: KeyId,
    /// The digest of the key string. Caches find their entries by it.
    pub hash: KeyHash,
    /// The owner of the key.
    pub owner_id: OwnerId,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The fields that an update changed.
    pub changed_fields: Vec<ChangedField>,
    /// The name of the credential that made the call.
    pub actor: String,
    /// The id of the call, as in the log entries of that call.
    pub request_id: String,
    /// The instant of the change, by the clock of the replica that made it.
    pub at: Timestamp,
}

impl KeyEvent {
    /// Returns the event of the change that resulted in `key`, or that deleted it. Its revision and nonce are
    /// those of `key`.
    #[must_use]
    pub fn of(
        key: &ApiKey,
        kind: ChangeKind,
        changed_fields: Vec<ChangedField>,
        context: &ChangeContext,
    ) -> Self {
        Self {
            revision: key.revision,
            nonce: key.nonce,
            key_id: key.id,
            hash: key.hash,
            owner_id: key.owner_id.clone(),
            kind,
            changed_fields,
            actor: context.actor.clone(),
            request_id: context.request_id.clone(),
            at: context.now,
        }
    }

    /// Returns the identity of the change that this event describes.
    #[must_use]
    pub fn change(&self) -> ChangeId {
        ChangeId::new(self.revision, self.nonce)
    }
}

/// The kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// The key was created.
    Created,
    /// Some attributes of the key were changed.
    Updated,
    /// The key was revoked.
    Revoked,
    /// The key was replaced by a successor.
    Rotated,
    /// The key was deleted.
    Deleted,
    /// A kind that this release doesn't support, because a newer release wrote the event. Caches treat it as
    /// a change of the key.
    Unknown,
}

impl ChangeKind {
    /// All kinds that this release supports.
    const ALL: [Self; 5] = [Self::Created, Self::Updated, Self::Revoked, Self::Rotated, Self::Deleted];

    /// Parses a string that [`ChangeKind::as_str`] returned. Any other string is [`ChangeKind::Unknown`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).unwrap_or(Self::Unknown)
    }

    /// Returns the kind as it is stored.
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

/// The fields of a key that can change.
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
    /// All fields.
    const ALL: [Self; 7] = [
        Self::Name,
        Self::Description,
        Self::Scopes,
        Self::Metadata,
        Self::ExpiresAt,
        Self::Revocation,
        Self::ReplacedBy,
    ];

    /// Parses a string that [`ChangedField::as_str`] returned. `None` for any other string.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.as_str() == text)
    }

    /// Returns the field as it is stored, which is its name in the API.
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
