//! A record in its stored form.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{StoredHash, corrupt, from_json, to_json, valid_timestamp};
use crate::domain::{
    ApiKey, ChangeId, Description, InvalidField, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revision,
    Revocation, RevokeReason, Scope, ScopeSet, Timestamp,
};
use crate::repository::Result;

/// The format that this release writes. Other formats are rejected.
pub(in crate::repository) const FORMAT: u32 = 1;

/// A key as a document for serde. Times are in microseconds since the Unix epoch, and the hash is in
/// lowercase hexadecimal.
///
/// A document that is read is checked against the rules of the domain. An invalid document, or one in a
/// format that this release does not support, is an error of the kind
/// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt).
///
/// ```
/// # use keyvouch::domain::ApiKey;
/// # use keyvouch::repository::StoredKey;
/// # fn round_trip(key: &ApiKey) -> keyvouch::repository::Result<()> {
/// let document = StoredKey::new(key).to_json()?;
/// assert_eq!(StoredKey::from_json(document.as_bytes())?.into_key()?, *key);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredKey {
    pub(in crate::repository) format: u32,
    pub(in crate::repository) id: Uuid,
    pub(in crate::repository) hash: StoredHash,
    pub(in crate::repository) prefix: String,
    pub(in crate::repository) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::repository) description: String,
    pub(in crate::repository) owner_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::repository) scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in crate::repository) metadata: BTreeMap<String, String>,
    pub(in crate::repository) created_at: i64,
    pub(in crate::repository) updated_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::repository) expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::repository) revoked_at: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(in crate::repository) revoke_reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::repository) rotated_from: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::repository) replaced_by: Option<Uuid>,
    pub(in crate::repository) revision: i64,
    /// Missing in documents of releases before 0.2.
    #[serde(default, skip_serializing_if = "is_unknown")]
    pub(in crate::repository) nonce: u64,
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
            hash: StoredHash::of(key.hash),
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

    /// Encodes the document as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::repository::ErrorKind::Internal) if encoding fails, which is a defect.
    pub fn to_json(&self) -> Result<String> {
        to_json(self)
    }

    /// Decodes a document that [`to_json`](Self::to_json) returned. Its values are not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt) if it is not such a document. The error
    /// contains no part of it.
    pub fn from_json(document: &[u8]) -> Result<Self> {
        from_json(document)
    }

    /// Converts the document into a key with another revision. Some backends assign the revision while they
    /// store the document, and store it beside the document.
    ///
    /// # Errors
    /// The errors of [`into_key`](Self::into_key).
    pub fn into_key_at(self, revision: Revision) -> Result<ApiKey> {
        Ok(ApiKey { revision, ..self.into_key()? })
    }

    /// Converts the document into a key.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`](crate::repository::ErrorKind::Corrupt) if a value is invalid, or if this release
    /// does not support the document's format.
    pub fn into_key(self) -> Result<ApiKey> {
        if self.format != FORMAT {
            return Err(corrupt("the format of the record is not supported by this release"));
        }
        self.parse().map_err(corrupt)
    }

    /// Returns `stub` with all valid texts, scopes, metadata and times of `document`. A readable revocation
    /// takes precedence over the one in `stub`.
    pub(in crate::repository) fn salvage(document: &[u8], stub: ApiKey) -> ApiKey {
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
        let revocation = match self.revoked_at {
            None => None,
            Some(at) => Some(Revocation {
                at: valid_timestamp("revoked_at", at)?,
                reason: RevokeReason::parse("revoke_reason", self.revoke_reason)?,
            }),
        };
        Ok(ApiKey {
            id: KeyId::from_uuid(self.id),
            hash: self.hash.parse()?,
            prefix: KeyPrefix::parse("prefix", self.prefix)?,
            name: KeyName::parse("name", self.name)?,
            description: Description::parse("description", self.description)?,
            owner_id: OwnerId::parse("owner_id", self.owner_id)?,
            scopes: ScopeSet::parse("scopes", self.scopes)?,
            metadata: Metadata::parse(self.metadata)?,
            created_at: valid_timestamp("created_at", self.created_at)?,
            updated_at: valid_timestamp("updated_at", self.updated_at)?,
            expires_at: self.expires_at.map(|at| valid_timestamp("expires_at", at)).transpose()?,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{KeyHash, sample_key};
    use crate::repository::ErrorKind;

    fn read(document: Value) -> Result<ApiKey> {
        serde_json::from_value::<StoredKey>(document).unwrap().into_key()
    }

    #[test]
    fn keys_survive_the_round_trip() {
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

    /// The documents as every release with nonces has written them.
    #[test]
    fn documents_of_keys_keep_their_form() {
        let uuid = Uuid::from_u128(0x01a2_0fb3_1162_7e43_9734_93a5_d025_9ef2);
        let time = |micros| Timestamp::from_micros(micros).unwrap();
        let bare = ApiKey {
            id: KeyId::from_uuid(uuid),
            hash: KeyHash::from_bytes([0xab; KeyHash::BYTES]),
            prefix: KeyPrefix::parse("prefix", "kv_").unwrap(),
            name: KeyName::parse("name", "a name").unwrap(),
            description: Description::default(),
            owner_id: OwnerId::parse("owner_id", "owner").unwrap(),
            scopes: ScopeSet::default(),
            metadata: Metadata::default(),
            created_at: time(-5),
            updated_at: time(7),
            expires_at: None,
            revocation: None,
            rotated_from: None,
            replaced_by: None,
            revision: Revision::new(3),
            nonce: ChangeId::UNKNOWN_NONCE,
        };
        let begin = concat!(
            r#"{"format":1,"id":"01a20fb3-1162-7e43-9734-93a5d0259ef2","#,
            r#""hash":"abababababababababababababababababababababababababababababababab","#,
            r#""prefix":"kv_","name":"a name","#
        );
        let document = format!(r#"{begin}"owner_id":"owner","created_at":-5,"updated_at":7,"revision":3}}"#);
        assert_eq!(StoredKey::new(&bare).to_json().unwrap(), document);
        assert_eq!(StoredKey::from_json(document.as_bytes()).unwrap().into_key().unwrap(), bare);

        let full = ApiKey {
            description: Description::parse("description", "text").unwrap(),
            scopes: ScopeSet::parse("scopes", ["b", "a"]).unwrap(),
            metadata: Metadata::parse([("k".into(), "🔑".into())].into()).unwrap(),
            expires_at: Some(time(8)),
            revocation: Some(Revocation { at: time(9), reason: RevokeReason::parse("r", "leaked").unwrap() }),
            rotated_from: Some(bare.id),
            replaced_by: Some(bare.id),
            nonce: u64::MAX,
            ..bare
        };
        let document = format!(
            r#"{begin}"description":"text","owner_id":"owner","scopes":["a","b"],"metadata":{{"k":"🔑"}},"created_at":-5,"updated_at":7,"expires_at":8,"revoked_at":9,"revoke_reason":"leaked","rotated_from":"{uuid}","replaced_by":"{uuid}","revision":3,"nonce":18446744073709551615}}"#
        );
        assert_eq!(StoredKey::new(&full).to_json().unwrap(), document);
        let parsed = StoredKey::from_json(document.as_bytes()).unwrap();
        assert_eq!(parsed.clone().into_key().unwrap(), full);
        let moved = ApiKey { revision: Revision::new(4), ..full };
        assert_eq!(parsed.into_key_at(Revision::new(4)).unwrap(), moved);
    }

    #[test]
    fn invalid_values_are_corrupt() {
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
    fn valid_values_of_an_invalid_document_are_salvaged() {
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
        let key = sample_key();
        assert!(!format!("{:?}", StoredKey::new(&key)).contains(&key.hash.to_hex()));
    }
}
