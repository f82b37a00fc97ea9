//! JSON objects that reject duplicate keys and preserve the digits of numbers.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The pairs of an object, with unparsed values. An object with a duplicate key is rejected, because it is ambiguous.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    pub(super) fn push(&mut self, name: &str, value: Box<RawValue>) {
        self.0.push((name.to_owned(), value));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the value of `name`. `None` if it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.get()).filter(|value| *value != "null")
    }

    pub(super) fn into_pairs(self) -> impl Iterator<Item = (String, Box<RawValue>)> {
        self.0.into_iter()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if object.0.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom("duplicate key"));
                    }
                    object.0.push((name, value));
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

/// Converts `json` to a text: the content of a string, or otherwise the JSON without white space.
pub(super) fn as_text(json: &RawValue) -> String {
    if let Ok(text) = serde_json::from_str::<String>(json.get()) {
        return text;
    }
    let mut compact = String::new();
    let (mut is_quoted, mut is_escaped) = (false, false);
    for char in json.get().chars() {
        if is_quoted || !char.is_ascii_whitespace() {
            compact.push(char);
        }
        if char == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = is_quoted && char == '\\' && !is_escaped;
    }
    compact
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_strings_keep_their_digits() {
        let text = |json: &str| as_text(&RawValue::from_string(json.to_owned()).unwrap());
        assert_eq!(text("\"a \\\"b\\\" \\u00fc\""), "a \"b\" ü");
        assert_eq!(text("12345678901234567890123"), "12345678901234567890123");
        assert_eq!(text("1.10"), "1.10");
        assert_eq!(text("1e400"), "1e400");
        assert_eq!(text("[1, \"a \\\" b\\\\\", {\"k\" : null}]"), "[1,\"a \\\" b\\\\\",{\"k\":null}]");
    }

    #[test]
    fn duplicate_keys_are_rejected() {
        assert!(Object::parse("{\"a\": 1, \"b\": 2}").is_some());
        for invalid in ["{\"a\": 1, \"a\": 2}", "[]", "1", "", "{\"a\"}"] {
            assert!(Object::parse(invalid).is_none(), "{invalid}");
        }
    }
}
