//! A row of an import: converts named values to a request.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde_json::value::RawValue;

use super::json::{Object, as_text};
use crate::domain::InvalidField;
use crate::grpc::pb;

/// Columns of a row. `hash` is required; the others are fields of a key.
pub(super) const COLUMNS: [&str; 15] = [
    "hash",
    "id",
    "prefix",
    "name",
    "owner_id",
    "description",
    "scopes",
    "metadata",
    "create_time",
    "expire_time",
    "revoke_time",
    "revoke_reason",
    "last_used_time",
    "rotated_from",
    "replaced_by",
];

/// A row of the source.
#[derive(Debug)]
pub(super) struct Row {
    /// Human-readable location in the source.
    pub(super) label: String,
    /// The key, or the reason why it is invalid.
    pub(super) request: Result<pb::ImportKeysRequest, InvalidField>,
}

/// Converts `values` to a request. `owner` is the owner of the key if `values` has none.
pub(super) fn request(values: &Object, owner: Option<&str>) -> Result<pb::ImportKeysRequest, InvalidField> {
    if let Some(unknown) = values.names().find(|name| !COLUMNS.contains(name)) {
        return Err(unknown_column(unknown));
    }
    let text = |name| text(name, values.get(name));
    let time = |name| time(name, values.get(name));
    let key = pb::Key {
        id: text("id")?,
        prefix: text("prefix")?,
        name: text("name")?,
        owner_id: match values.get("owner_id") {
            None => owner.unwrap_or_default().to_owned(),
            Some(_) => text("owner_id")?,
        },
        description: text("description")?,
        scopes: scopes(values.get("scopes"))?,
        metadata: metadata(values.get("metadata"))?,
        create_time: time("create_time")?,
        expire_time: time("expire_time")?,
        revoke_time: time("revoke_time")?,
        revoke_reason: text("revoke_reason")?,
        last_used_time: time("last_used_time")?,
        rotated_from: text("rotated_from")?,
        replaced_by: text("replaced_by")?,
        ..pb::Key::default()
    };
    Ok(pb::ImportKeysRequest { key: Some(key), hash: digest(&text("hash")?)?, allow_revoked_hash: false })
}

/// Returns the error for the unknown column `name`, with the most similar known one.
pub(super) fn unknown_column(name: &str) -> InvalidField {
    let nearest = COLUMNS.iter().max_by(|a, b| {
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        likeness(a).total_cmp(&likeness(b))
    });
    let problem = format!(
        "unknown column; did you mean `{}`? Supported columns: {}",
        nearest.unwrap_or(&"hash"),
        COLUMNS.join(", ")
    );
    InvalidField::new(name, problem)
}

/// Parses a SHA-256 digest in hex.
pub(super) fn digest(hex: &str) -> Result<Vec<u8>, InvalidField> {
    let digest = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok().filter(|digest| digest.len() == 32);
    digest.ok_or_else(|| InvalidField::new("hash", "not a SHA-256 digest; expected 64 hex digits"))
}

/// Parses the pairs of a JSON object. Values that are not strings are kept as JSON texts.
pub(super) fn metadata(json: Option<&str>) -> Result<BTreeMap<String, String>, InvalidField> {
    let Some(json) = json else {
        return Ok(BTreeMap::new());
    };
    let problem = "not a JSON object, or it has a duplicate key";
    let pairs = Object::parse(json).ok_or_else(|| InvalidField::new("metadata", problem))?;
    Ok(pairs.into_pairs().map(|(name, value)| (name, as_text(&value))).collect())
}

/// Parses a JSON array of strings.
pub(super) fn scopes(json: Option<&str>) -> Result<Vec<String>, InvalidField> {
    let Some(json) = json else {
        return Ok(Vec::new());
    };
    serde_json::from_str(json).map_err(|_| InvalidField::new("scopes", "not a JSON array of strings"))
}

fn text(name: &str, json: Option<&str>) -> Result<String, InvalidField> {
    let Some(json) = json else {
        return Ok(String::new());
    };
    serde_json::from_str(json).map_err(|_| InvalidField::new(name, "not a string"))
}

fn time(name: &str, json: Option<&str>) -> Result<Option<prost_types::Timestamp>, InvalidField> {
    match text(name, json)?.as_str() {
        "" => Ok(None),
        text => parse_time(name, text).map(Some),
    }
}

/// Converts `text` to JSON.
pub(super) fn quoted(text: &str) -> Result<Box<RawValue>, InvalidField> {
    serde_json::value::to_raw_value(text).map_err(|_| InvalidField::new("row", "not a string"))
}

/// Parses a time in the format of RFC 3339.
pub(super) fn parse_time(name: &str, text: &str) -> Result<prost_types::Timestamp, InvalidField> {
    prost_types::Timestamp::from_str(text).map_err(|_| {
        InvalidField::new(name, "invalid time; expected RFC 3339, for example 2030-01-31T12:00:00Z")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: serde_json::Value) -> Result<pb::ImportKeysRequest, InvalidField> {
        request(&Object::parse(&value.to_string()).unwrap(), Some("default-owner"))
    }

    #[test]
    fn a_row_is_converted_to_a_request() {
        let row = of(json!({
            "hash": "AB".repeat(32), "name": "n", "scopes": ["a", "b"], "owner_id": null,
            "metadata": {"text": "x", "number": 7, "list": [1, "y"]}, "expire_time": "1970-01-01T00:00:09Z",
        }))
        .unwrap();
        let key = row.key.unwrap();
        assert_eq!(row.hash, vec![0xab; 32]);
        assert_eq!((key.name.as_str(), key.owner_id.as_str()), ("n", "default-owner"));
        assert_eq!(key.scopes, ["a", "b"]);
        assert_eq!(key.metadata["list"], "[1,\"y\"]");
        assert_eq!((key.metadata["text"].as_str(), key.metadata["number"].as_str()), ("x", "7"));
        assert_eq!(key.expire_time.unwrap().seconds, 9);
    }

    #[test]
    fn errors_name_the_column_without_its_value() {
        let hash = "ab".repeat(32);
        for (field, row) in [
            ("hash", json!({ "name": "n" })),
            ("hash", json!({ "hash": "abc" })),
            ("hash", json!({ "hash": "zz".repeat(32) })),
            ("name", json!({ "hash": hash, "name": 1 })),
            ("scopes", json!({ "hash": hash, "scopes": "read" })),
            ("scopes", json!({ "hash": hash, "scopes": [1] })),
            ("metadata", json!({ "hash": hash, "metadata": [] })),
            ("expire_time", json!({ "hash": hash, "expire_time": "tomorrow" })),
            ("expires", json!({ "hash": hash, "expires": "1970-01-01T00:00:09Z" })),
        ] {
            let error = of(row.clone()).unwrap_err();
            assert_eq!(error.field, field, "{row}");
            assert!(!error.to_string().contains(&hash), "{error}");
        }
        assert!(of(json!({ "hash": hash, "owner": "x" })).unwrap_err().to_string().contains("`owner_id`"));
    }
}
