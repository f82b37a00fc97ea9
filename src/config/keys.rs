//! `[keys]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::domain::{ForeignPattern, KeyFormat, KeyPrefix};

/// Format of key strings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// Prefixes that new keys can have; the first is the default. A prefix has up to 16 characters of `a-z`, `0-9` and
    /// `_`, and ends in `_` unless it is empty.
    pub prefix: Vec<String>,
    /// Older prefixes of keys that still validate.
    pub accept_prefix: Vec<String>,
    /// Forms of keys of another system: `[{ prefix = "pa_", length = 46 }]`. A string that matches neither a prefix nor
    /// a form is malformed and never looked up.
    pub foreign: Vec<ForeignConfig>,
}

/// Format of another system's keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForeignConfig {
    /// Prefix of the key strings.
    pub prefix: String,
    /// Length of the full key string in bytes.
    pub length: usize,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { prefix: vec!["kv_".into()], accept_prefix: Vec::new(), foreign: Vec::new() }
    }
}

impl KeysConfig {
    /// Returns the format of key strings.
    pub(super) fn parse(&self) -> Result<KeyFormat, ConfigError> {
        let prefixes = parse_prefixes("keys.prefix", &self.prefix)?;
        let accepted = parse_prefixes("keys.accept_prefix", &self.accept_prefix)?;
        let foreign =
            self.foreign.iter().map(|it| ForeignPattern { prefix: it.prefix.clone(), length: it.length });
        Ok(KeyFormat::new(prefixes, accepted, foreign.collect())?)
    }
}

fn parse_prefixes(name: &str, prefixes: &[String]) -> Result<Vec<KeyPrefix>, ConfigError> {
    prefixes.iter().map(|prefix| Ok(KeyPrefix::parse(name, prefix)?)).collect()
}
