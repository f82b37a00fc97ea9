//! What administrators ask for, and what they get.

use std::time::Duration;

use crate::domain::{ApiKey, Description, KeyName, Metadata, OwnerId, ScopeSet, SecretKey, Timestamp};

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
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateRequest {
    /// How long the old key stays valid.
    pub overlap: Duration,
    /// When the successor ends; `None`: after the old one's lifetime.
    pub expiry: Option<Expiry>,
}

/// Both keys of a rotation.
#[derive(Clone, Debug)]
pub struct RotatedKey {
    /// The successor.
    pub issued: IssuedKey,
    /// The old key.
    pub replaced: KeyRecord,
}
