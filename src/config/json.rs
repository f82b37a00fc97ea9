//! Settings in JSON, with the sections and fields of the TOML file. `null` leaves a setting unset.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use toml::{Table, Value};

/// Reads the settings in `text`.
///
/// # Errors
/// If `text` is not a JSON object, or an object has two values of one name. Errors do not contain values.
pub(super) fn parse(text: &str) -> Result<Table, serde_json::Error> {
    match serde_json::from_str(text)? {
        Node(Some(Value::Table(table))) => Ok(table),
        Node(_) => Err(serde_json::Error::custom("expected an object")),
    }
}

/// A value, or `None` for `null`.
struct Node(Option<Value>);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Nodes)
    }
}

struct Nodes;

impl<'de> Visitor<'de> for Nodes {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node(None))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node(Some(Value::Boolean(value))))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node(Some(Value::Integer(value))))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        i64::try_from(value)
            .map_err(|_| E::custom("a number is too large"))
            .and_then(|value| self.visit_i64(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node(Some(Value::Float(value))))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node(Some(Value::String(value.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(Node(item)) = items.next_element()? {
            list.push(item.ok_or_else(|| A::Error::custom("a list has a null in it"))?);
        }
        Ok(Node(Some(Value::Array(list))))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut table = Table::new();
        while let Some((name, Node(value))) = fields.next_entry::<String, Node>()? {
            if table.contains_key(&name) {
                return Err(A::Error::custom(format_args!("`{name}` is there twice")));
            }
            table.extend(value.map(|value| (name, value)));
        }
        Ok(Node(Some(Value::Table(table))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_toml_has() {
        let read = parse(
            r#"{"server": {"listen": ["127.0.0.1:1"], "max_calls": 5, "tls": {"cert_file": null}}, "cache": {"ttl": "5m"},
                "telemetry": {"sample_ratio": 0.5, "is": true}}"#,
        );
        let expected: Table = toml::from_str(
            r#"
            server = { listen = ["127.0.0.1:1"], max_calls = 5, tls = {} }
            cache = { ttl = "5m" }
            telemetry = { sample_ratio = 0.5, is = true }
            "#,
        )
        .unwrap();
        assert_eq!(read.unwrap(), expected);
    }

    #[test]
    fn errors_have_a_line_and_no_value() {
        for (text, line) in [
            ("[\"hunter2\"]", 0),
            ("{\"store\": {\n\"url\": \"hunter2\",\n\"url\": \"hunter2\"}}", 3),
            ("{\"a\": \"hunter2\",\n}", 2),
            ("{\"a\": [null, \"hunter2\"]}", 1),
            ("{\"a\": 18446744073709551615}", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line(), line, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
