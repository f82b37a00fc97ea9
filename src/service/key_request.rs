//! Requests of administrators, and their results.

use std::time::Duration;

use crate::domain::{
    ApiKey, Description, InvalidField, KeyFilter, KeyName, Metadata, OwnerId, ScopeSet, SecretKey, Timestamp,
};
use crate::repository::{Listed, PagePosition};

/// Attributes of a new key.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Display name.
    pub name: KeyName,
    /// Owner of the key.
    pub owner_id: OwnerId,
    /// Description of the key's purpose.
    pub description: Description,
    /// Scopes of the key.
    pub scopes: ScopeSet,
    /// Arbitrary metadata.
    pub metadata: Metadata,
    /// Prefix of the key string. `None` means the configured default.
    pub prefix: Option<String>,
    /// Expiry. `None` means that the key never expires.
    pub expiry: Option<Expiry>,
    /// Id that marks retries of the same request. `None` means that retries are not detected.
    pub request_id: Option<ClientRequestId>,
}

/// The id that a client assigned to a request that creates a key, and repeats in each retry of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequestId(String);

impl ClientRequestId {
    /// Maximum length of an id in characters.
    const MAX_CHARS: usize = 128;

    /// Parses a `request_id`. Returns `None` if it is empty.
    ///
    /// # Errors
    /// Returns an error if the id is too long, or has characters other than visible ASCII.
    pub fn parse(id: String) -> Result<Option<Self>, InvalidField> {
        if id.is_empty() {
            return Ok(None);
        }
        if id.len() > Self::MAX_CHARS || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            let problem = "must be at most 128 visible ASCII characters, for example a random UUID";
            return Err(InvalidField::new("request_id", problem));
        }
        Ok(Some(Self(id)))
    }

    /// Returns the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Expiry of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The key expires at this time.
    At(Timestamp),
    /// The key expires after this duration from now.
    After(Duration),
}

/// A key and its secret, which is returned only once.
#[derive(Clone, Debug)]
pub struct IssuedKey {
    /// The key.
    pub record: KeyRecord,
    /// The secret of the key.
    pub secret: SecretKey,
}

/// A key as administrators see it.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The key.
    pub key: ApiKey,
    /// Last recorded use.
    pub last_used_at: Option<Timestamp>,
    /// Time at which the record was read. The key's state depends on it.
    pub as_of: Timestamp,
}

/// An item of a listing of keys.
pub(crate) type ListedRecord = Listed<KeyRecord, PagePosition>;

/// Request for a page of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Owner whose keys are listed. `None` means all owners.
    pub owner_id: Option<OwnerId>,
    /// Filter for the listed keys.
    pub filter: KeyFilter,
    /// Position after which the page begins. `None` begins with the newest key.
    pub after: Option<PagePosition>,
    /// Maximum number of keys.
    pub limit: usize,
}

/// A page of keys.
#[derive(Debug)]
pub struct ListedPage {
    /// The keys, and the positions of records that can't be read.
    pub records: Vec<ListedRecord>,
    /// The position after which the next page begins. `None` if this is the last page.
    pub next: Option<PagePosition>,
}

impl ListedRecord {
    /// Returns the position directly after this item.
    #[must_use]
    pub fn position(&self) -> PagePosition {
        match self {
            Self::Read(record) => PagePosition::of(&record.key),
            Self::Unreadable(position) => *position,
        }
    }
}

/// Attributes to change. `None` keeps the current value.
#[derive(Clone, Debug, Default)]
pub struct KeyUpdate {
    /// New display name.
    pub name: Option<KeyName>,
    /// New description.
    pub description: Option<Description>,
    /// New scopes, which replace all current ones.
    pub scopes: Option<ScopeSet>,
    /// New metadata, which replaces all current metadata.
    pub metadata: Option<Metadata>,
    /// New expiry. `Some(None)` means that the key never expires.
    #[expect(clippy::option_option, reason = "unchanged, unset, or set")]
    pub expires_at: Option<Option<Timestamp>>,
}

/// Options of a rotation.
#[derive(Clone, Debug, Default)]
pub struct RotateRequest {
    /// Time for which the old key stays valid. 0 revokes it at once.
    pub overlap: Duration,
    /// Expiry of the successor. `None` gives it the lifetime of the old key, counted from now.
    pub expiry: Option<Expiry>,
    /// Id that marks retries of the same request. `None` means that retries are not detected.
    pub request_id: Option<ClientRequestId>,
}

/// Both keys of a rotation.
#[derive(Clone, Debug)]
pub struct RotatedKey {
    /// The successor.
    pub issued: IssuedKey,
    /// The old key.
    pub replaced: KeyRecord,
}
