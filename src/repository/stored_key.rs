//! A key as a document, for backends without columns.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{ErrorKind, RepositoryError, Result};
use crate::domain::{
    ApiKey, ChangeId, Description, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId,
    Revision, Revocation, RevokeReason, Scope, ScopeSet, Timestamp,
};

/// The format that this release writes. Other formats are rejected.
const FORMAT: u32 = 1;

/// A key as a document for serde. Times are in microseconds since the Unix epoch, and the hash is in
/// hexadecimal.
///
/// A document that is read is checked against the rules of the domain. An invalid document, or one in a
/// format that this release does not support, is an [`ErrorKind::Corrupt`] error.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredKey {
    format: u32,
    id: Uuid,
    hash: String,
    prefix: String,
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    owner_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    created_at: i64,
    updated_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    revoke_reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotated_from: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced_by: Option<Uuid>,
    revision: i64,
    /// Missing in documents of releases before 0.2.
    #[serde(default, skip_serializing_if = "is_unknown")]
    nonce: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_unknown(nonce: &u64) -> bool {
    *nonce == ChangeId::UNKNOWN_NONCE
}

impl StoredKey {
    /// Converts `key` into a document.
    #[must_use]
    pub fn new(key: &ApiKey) -> Self {
        let revocation = key.revocation.as_ref();
        Self {
            format: FORMAT,
            id: key.id.as_uuid(),
            hash: key.hash.to_hex(),
            prefix: key.prefix.as_str().to_owned(),
            name: key.name.as_str().to_owned(),
            description: key.description.as_str().to_owned(),
            owner_id: key.owner_id.as_str().to_owned(),
            scopes: key.scopes.iter().map(Scope::as_str).map(str::to_owned).collect(),
            metadata: key.metadata.as_map().clone(),
            created_at: key.created_at.as_micros(),
            updated_at: key.updated_at.as_micros(),
            expires_at: key.expires_at.map(Timestamp::as_micros),
            revoked_at: revocation.map(|revocation| revocation.at.as_micros()),
            revoke_reason: revocation.map(|it| it.reason.as_str().to_owned()).unwrap_or_default(),
            rotated_from: key.rotated_from.map(|id| id.as_uuid()),
            replaced_by: key.replaced_by.map(|id| id.as_uuid()),
            revision: key.revision.get(),
            nonce: key.nonce,
        }
    }

    /// Converts the document into a key.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a value is invalid, or if this release does not support the document's
    /// format.
    pub fn into_key(self) -> Result<ApiKey> {
        if self.format != FORMAT {
            return Err(corrupt("the format of the record is not supported by this release"));
        }
        self.parse().map_err(corrupt)
    }

    /// Returns `stub` with all valid texts, scopes, metadata and times of `document`. A readable revocation
    /// takes precedence over the one in `stub`.
    pub(super) fn salvage(document: &[u8], stub: ApiKey) -> ApiKey {
        let Ok(Value::Object(document)) = serde_json::from_slice(document) else { return stub };
        let time = |name| document.get(name).and_then(Value::as_i64).and_then(Timestamp::from_micros);
        let id = |name| read(&document, name, |_, id| Ok(KeyId::from_uuid(id)));
        let reason = read::<String, _>(&document, "revoke_reason", RevokeReason::parse).unwrap_or_default();
        let first = time("revoked_at").map(|at| Revocation { at, reason });
        ApiKey {
            prefix: read::<String, _>(&document, "prefix", KeyPrefix::parse).unwrap_or(stub.prefix),
            name: read::<String, _>(&document, "name", KeyName::parse).unwrap_or(stub.name),
            description: read::<String, _>(&document, "description", Description::parse)
                .unwrap_or(stub.description),
            scopes: read(&document, "scopes", |name, scopes: Vec<String>| ScopeSet::parse(name, scopes))
                .unwrap_or(stub.scopes),
            metadata: read(&document, "metadata", |_, pairs| Metadata::parse(pairs)).unwrap_or(stub.metadata),
            expires_at: time("expires_at").or(stub.expires_at),
            rotated_from: id("rotated_from").or(stub.rotated_from),
            replaced_by: id("replaced_by").or(stub.replaced_by),
            revocation: first.or(stub.revocation),
            ..stub
        }
    }

    fn parse(self) -> std::result::Result<ApiKey, InvalidField> {
        let hash =
            KeyHash::from_hex(&self.hash).ok_or_else(|| InvalidField::new("hash", "not a SHA-256 digest"))?;
        let revocation = match self.revoked_at {
            None => None,
            Some(at) => Some(Revocation {
                at: timestamp("revoked_at", at)?,
                reason: RevokeReason::parse("revoke_reason", self.revoke_reason)?,
            }),
        };
        Ok(ApiKey {
            id: KeyId::from_uuid(self.id),
            hash,
            prefix: KeyPrefix::parse("prefix", self.prefix)?,
            name: KeyName::parse("name", self.name)?,
            description: Description::parse("description", self.description)?,
            owner_id: OwnerId::parse("owner_id", self.owner_id)?,
            scopes: ScopeSet::parse("scopes", self.scopes)?,
            metadata: Metadata::parse(self.metadata)?,
            created_at: timestamp("created_at", self.created_at)?,
            updated_at: timestamp("updated_at", self.updated_at)?,
            expires_at: self.expires_at.map(|at| timestamp("expires_at", at)).transpose()?,
            revocation,
            rotated_from: self.rotated_from.map(KeyId::from_uuid),
            replaced_by: self.replaced_by.map(KeyId::from_uuid),
            revision: Revision::new(self.revision),
            nonce: self.nonce,
        })
    }
}

/// Returns the field `name` of a document, if it is present and valid.
fn read<V: DeserializeOwned, T>(
    document: &Map<String, Value>,
    name: &str,
    parse: impl Fn(&str, V) -> std::result::Result<T, InvalidField>,
) -> Option<T> {
    let value = serde_json::from_value(document.get(name)?.clone()).ok()?;
    parse(name, value).ok()
}

/// Shows only the id, because a document contains the hash.
impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredKey").field("id", &self.id).finish_non_exhaustive()
    }
}

fn timestamp(field: &str, micros: i64) -> std::result::Result<Timestamp, InvalidField> {
    let timestamp = Timestamp::from_micros(micros);
    timestamp.ok_or_else(|| InvalidField::new(field, "the year is not within 1 to 9999"))
}

fn corrupt(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> RepositoryError {
    RepositoryError::new(ErrorKind::Corrupt, problem)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::sample_key;

    fn read(document: Value) -> Result<ApiKey> {
        serde_json::from_value::<StoredKey>(document).unwrap().into_key()
    }

    #[test]
    fn a_key_makes_the_round_trip() {
        let bare = sample_key();
        let full = ApiKey {
            expires_at: Some(Timestamp::MAX),
            rotated_from: Some(bare.id),
            replaced_by: Some(bare.id),
            metadata: Metadata::parse([("k".into(), "🔑".into())].into()).unwrap(),
            ..bare.revoked(RevokeReason::parse("r", "leaked").unwrap(), Timestamp::MIN).unwrap()
        };
        for key in [bare, full] {
            assert_eq!(read(serde_json::to_value(StoredKey::new(&key)).unwrap()).unwrap(), key);
        }
    }

    #[test]
    fn what_breaks_a_rule_is_corrupt() {
        let sound = serde_json::to_value(StoredKey::new(&sample_key())).unwrap();
        read(sound.clone()).unwrap();
        for (field, fault) in [
            ("format", json!(2)),
            ("hash", json!("ab")),
            ("name", json!("")),
            ("scopes", json!(["a b"])),
            ("created_at", json!(i64::MAX)),
        ] {
            let mut faulty = sound.clone();
            faulty[field] = fault;
            assert_eq!(read(faulty).unwrap_err().kind(), ErrorKind::Corrupt, "{field}");
        }
    }

    #[test]
    fn what_can_be_read_is_salvaged() {
        let bare = sample_key();
        let revoked = bare.revoked(RevokeReason::parse("r", "leaked").unwrap(), Timestamp::MAX).unwrap();
        let stub =
            ApiKey { name: KeyName::parse("name", "stub").unwrap(), scopes: ScopeSet::default(), ..revoked };
        let whole = ApiKey {
            expires_at: Some(Timestamp::MAX),
            replaced_by: Some(bare.id),
            metadata: Metadata::parse([("k".into(), "v".into())].into()).unwrap(),
            ..bare
        };
        let salvaged = |document: &Value| StoredKey::salvage(document.to_string().as_bytes(), stub.clone());
        let mut document = serde_json::to_value(StoredKey::new(&whole)).unwrap();
        document["scopes"] = json!(["a b"]);
        document["format"] = json!(2);
        let expected = ApiKey {
            scopes: stub.scopes.clone(),
            updated_at: stub.updated_at,
            revocation: stub.revocation.clone(),
            ..whole
        };
        assert_eq!(salvaged(&document), expected);
        document["revoked_at"] = json!(1);
        let first = Revocation { at: Timestamp::from_micros(1).unwrap(), reason: RevokeReason::default() };
        assert_eq!(salvaged(&document), ApiKey { revocation: Some(first), ..expected });
        for odd in [json!("text"), json!({}), json!({ "name": 1, "expires_at": "soon" })] {
            assert_eq!(salvaged(&odd), stub);
        }
    }

    #[test]
    fn debug_shows_no_hash() {
        let stored = StoredKey::new(&sample_key());
        assert!(!format!("{stored:?}").contains(&stored.hash));
    }
}
