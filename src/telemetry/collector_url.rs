//! The URL of the collector of spans.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// A URL, or an empty text for none. A user and password in it are dropped, because the exporter does not send them, but
/// would show them in its log and its errors.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct CollectorUrl {
    scheme: String,
    /// The URL after the scheme and the credentials.
    rest: String,
    had_credentials: bool,
}

impl CollectorUrl {
    /// Returns the URL without credentials. Empty if it is unset.
    #[must_use]
    pub fn without_credentials(&self) -> String {
        format!("{}{}", self.scheme, self.rest)
    }

    /// Returns whether the URL had a user or a password.
    #[must_use]
    pub fn had_credentials(&self) -> bool {
        self.had_credentials
    }
}

impl From<String> for CollectorUrl {
    fn from(url: String) -> Self {
        let (scheme, rest) = url.split_at(url.find("://").map_or(0, |at| at + "://".len()));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        // A password can have an unescaped slash, so the credentials can end after the authority.
        let at = rest[..end].rfind('@').or_else(|| rest.rfind('@'));
        let rest_without = at.map_or(rest, |at| &rest[at + 1..]);
        Self { scheme: scheme.to_owned(), rest: rest_without.to_owned(), had_credentials: at.is_some() }
    }
}

/// Formats the URL with its credentials redacted.
impl fmt::Display for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.had_credentials { "(redacted)@" } else { "" };
        write!(f, "{}{credentials}{}", self.scheme, self.rest)
    }
}

impl fmt::Debug for CollectorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CollectorUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for CollectorUrl {
    fn schema_name() -> Cow<'static, str> {
        "CollectorUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_dropped_and_redacted() {
        for (given, shown, used) in [
            ("", "", ""),
            ("http://h:4317", "http://h:4317", "http://h:4317"),
            ("https://h/a@b", "https://(redacted)@b", "https://b"),
            ("http://u:hunter2@h:4317/p", "http://(redacted)@h:4317/p", "http://h:4317/p"),
            ("http://u:hun/ter2@h:4317", "http://(redacted)@h:4317", "http://h:4317"),
            ("http://hunter2@h", "http://(redacted)@h", "http://h"),
            ("u:hunter2@h", "(redacted)@h", "h"),
        ] {
            let url = CollectorUrl::from(given.to_owned());
            assert_eq!((url.to_string().as_str(), url.without_credentials().as_str()), (shown, used));
            assert_eq!(url.had_credentials(), given.contains('@'));
            assert_eq!(format!("{url:?}"), shown);
        }
    }
}
