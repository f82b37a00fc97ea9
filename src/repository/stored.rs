//! The one parser of stored records and events, for all backends and for the Redis cache.
//!
//! Encodings differ. SQL has a column for each attribute, so that the database can index and join them. Redis,
//! the Redis cache and most custom backends store a record or an event as one JSON document. Each encoding is
//! first decoded into a [`StoredKey`] or a [`StoredEvent`], which has the stored texts and numbers. These two
//! types alone convert stored values into domain types. A value that violates a rule of the domain is an error
//! of the kind [`ErrorKind::Corrupt`], and is never repaired by guessing.

mod event;
mod key;

use std::error::Error;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ErrorKind, RepositoryError, Result};
use crate::domain::{InvalidField, KeyHash, Timestamp};

pub use event::StoredEvent;
pub(super) use key::FORMAT as KEY_FORMAT;
pub use key::StoredKey;

/// A stored hash. It is `None` if the stored value has the wrong length or is not hexadecimal, which
/// [`parse`](Self::parse) reports.
///
/// In documents, it is the digest in lowercase hexadecimal.
#[derive(Clone, Copy)]
pub(super) struct StoredHash(Option<KeyHash>);

impl StoredHash {
    fn of(hash: KeyHash) -> Self {
        Self(Some(hash))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self(KeyHash::from_slice(bytes))
    }

    fn parse(self) -> std::result::Result<KeyHash, InvalidField> {
        self.0.ok_or_else(|| InvalidField::new("hash", "not a SHA-256 digest"))
    }
}

impl Serialize for StoredHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.map_or_else(String::new, |hash| hash.to_hex()))
    }
}

impl<'de> Deserialize<'de> for StoredHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer).map(|hex| Self(KeyHash::from_hex(&hex)))
    }
}

/// Parses a JSON document. The error has only the category and the position of the problem, because the
/// parser's message can quote the document.
pub(super) fn from_json<T: DeserializeOwned>(document: &[u8]) -> Result<T> {
    serde_json::from_slice(document).map_err(|error| {
        let problem =
            format!("JSON: {:?} error at line {} column {}", error.classify(), error.line(), error.column());
        corrupt(problem)
    })
}

/// Encodes a value as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| RepositoryError::new(ErrorKind::Internal, error))
}

/// Converts the stored time of `field`, in microseconds since the Unix epoch.
pub(super) fn timestamp(field: &str, micros: i64) -> Result<Timestamp> {
    valid_timestamp(field, micros).map_err(corrupt)
}

fn valid_timestamp(field: &str, micros: i64) -> std::result::Result<Timestamp, InvalidField> {
    let timestamp = Timestamp::from_micros(micros);
    timestamp.ok_or_else(|| InvalidField::new(field, "the year is not within 1 to 9999"))
}

/// Returns an error of the kind [`ErrorKind::Corrupt`].
pub(super) fn corrupt(problem: impl Into<Box<dyn Error + Send + Sync>>) -> RepositoryError {
    RepositoryError::new(ErrorKind::Corrupt, problem)
}
