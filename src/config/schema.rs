//! The names and types of all settings, derived from the Rust types, so that no second list has to be kept in sync.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Config;

/// The type of a setting, which decides how the text of a variable or a flag is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Integer,
    Number,
    Text,
    List,
}

/// Returns the [JSON Schema](https://json-schema.org) of the settings, for editors and for tools that generate
/// settings. It is in draft 7 and has no references, which is what most tools support.
#[must_use]
pub fn json_schema() -> Value {
    let generator =
        SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator();
    Value::from(generator.into_root_schema_for::<Config>())
}

/// Returns all settings, as `section.field` or `section.subsection.field`.
pub(super) fn settings() -> BTreeMap<String, Kind> {
    let schema = json_schema();
    let mut settings = BTreeMap::new();
    for (section, schema) in properties(&schema) {
        collect(section, schema, &mut settings);
    }
    settings
}

fn collect(section: &str, schema: &Value, settings: &mut BTreeMap<String, Kind>) {
    for (field, schema) in properties(schema) {
        let name = format!("{section}.{field}");
        if properties(schema).next().is_some() {
            collect(&name, schema, settings);
        } else {
            settings.insert(name, kind(schema));
        }
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn kind(schema: &Value) -> Kind {
    // An optional setting has a list of types, with `null` as the last.
    let kind = schema.get("type").map(|kind| kind.get(0).unwrap_or(kind));
    match kind.and_then(Value::as_str) {
        Some("boolean") => Kind::Boolean,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("array") => Kind::List,
        _ => Kind::Text,
    }
}

/// Returns the known name that is most similar to `name`, if one is similar enough.
pub(super) fn nearest(name: &str, settings: &BTreeMap<String, Kind>) -> Option<String> {
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
    let best = settings.keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.5).then(|| best.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sections_and_kinds_are_found() {
        let settings = settings();
        assert_eq!(settings["server.listen"], Kind::List);
        assert_eq!(settings["server.max_connections"], Kind::Integer);
        assert_eq!(settings["telemetry.trace_ratio"], Kind::Number);
        assert_eq!(settings["store.auto_migrate"], Kind::Boolean);
        assert_eq!(settings["store.url"], Kind::Text);
        assert_eq!(settings["telemetry.log_format"], Kind::Text);
    }

    #[test]
    fn only_a_name_that_looks_alike_is_suggested() {
        assert_eq!(nearest("server.lisen", &settings()).as_deref(), Some("server.listen"));
        assert_eq!(nearest("zzz", &settings()), None);
    }
}
