//! What administrators ask for, and what they get.

use std::time::Duration;

use crate::domain::{
    ApiKey, Description, InvalidField, KeyFilter, KeyName, Metadata, OwnerId, ScopeSet, SecretKey, Timestamp,
};
use crate::repository::{Listed, PagePosition};

/// What a new key should be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// A label for people.
    pub name: KeyName,
    /// Whom it acts for.
    pub owner_id: OwnerId,
    /// What it is for.
    pub description: Description,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Free data.
    pub metadata: Metadata,
    /// `None`: the configured default.
    pub prefix: Option<String>,
    /// `None`: it never expires.
    pub expiry: Option<Expiry>,
    /// What tells a retry of this request from another one.
    pub request_id: Option<ClientRequestId>,
}

/// The id that a client chose for a request that makes a key, and gives again with each retry of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequestId(String);

impl ClientRequestId {
    /// Maximum number of characters.
    const MAX_CHARS: usize = 128;

    /// Checks a `request_id`; an empty one is none.
    ///
    /// # Errors
    /// It is too long or has other than visible ASCII characters.
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

/// When a key should end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// At this instant.
    At(Timestamp),
    /// So long from now on.
    After(Duration),
}

/// A key and the secret that belongs to it, to be shown once.
#[derive(Clone, Debug)]
pub struct IssuedKey {
    /// The key.
    pub record: KeyRecord,
    /// Its secret.
    pub secret: SecretKey,
}

/// A key as administrators see it.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The key.
    pub key: ApiKey,
    /// Its last recorded use.
    pub last_used_at: Option<Timestamp>,
    /// When this was found out; the key's state depends on it.
    pub as_of: Timestamp,
}

/// An item of a listing of keys.
pub type ListedRecord = Listed<KeyRecord, PagePosition>;

/// A page of keys to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys of this owner. `None`: keys of all owners.
    pub owner_id: Option<OwnerId>,
    /// Keys to show.
    pub filter: KeyFilter,
    /// Read on after this position. `None`: begin with the newest key.
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
    /// Returns the place right behind this item.
    #[must_use]
    pub fn position(&self) -> PagePosition {
        match self {
            Self::Read(record) => PagePosition::of(&record.key),
            Self::Unreadable(position) => *position,
        }
    }
}

/// New values; `None` leaves one as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyUpdate {
    /// A new label.
    pub name: Option<KeyName>,
    /// A new description.
    pub description: Option<Description>,
    /// All new scopes.
    pub scopes: Option<ScopeSet>,
    /// All new metadata.
    pub metadata: Option<Metadata>,
    /// A new end; `Some(None)`: it never expires.
    pub expires_at: Option<Option<Timestamp>>,
}

/// How to replace a key.
#[derive(Clone, Debug, Default)]
pub struct RotateRequest {
    /// How long the old key stays valid.
    pub overlap: Duration,
    /// When the successor ends; `None`: after the old one's lifetime.
    pub expiry: Option<Expiry>,
    /// What tells a retry of this request from another one.
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
