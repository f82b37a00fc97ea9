//! The URL of a backend, which can contain a password.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use super::SecretText;

/// A URL whose `Debug` and `Serialize` redact everything that can contain a password: they show file URLs in full, and
/// only the scheme of others.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct StoreUrl(SecretText);

impl StoreUrl {
    /// Returns the full URL.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    fn shown(&self) -> String {
        match self.expose().split_once(':') {
            None if matches!(self.expose(), "" | "off") => self.expose().to_owned(),
            Some(("sqlite" | "memory", _)) => self.expose().to_owned(),
            Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') => {
                format!("{scheme}:(redacted)")
            }
            _ => "(redacted)".to_owned(),
        }
    }
}

impl From<String> for StoreUrl {
    fn from(url: String) -> Self {
        Self(url.into())
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

impl JsonSchema for StoreUrl {
    fn schema_name() -> Cow<'static, str> {
        "StoreUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let shown = |url: &str| format!("{:?}", StoreUrl::from(url.to_owned()));
        assert_eq!(shown("sqlite://kv.db"), "sqlite://kv.db");
        assert_eq!(shown("postgres://u:hunter2@h/d"), "postgres:(redacted)");
        assert_eq!(shown("hunter2"), "(redacted)");
        assert_eq!(shown("off"), "off");
        assert_eq!(shown("u:hunter2@h"), "u:(redacted)");
    }
}
