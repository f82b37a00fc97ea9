//! `[keys]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::domain::{ForeignPattern, KeyFormat, KeyPrefix};

/// Format of key strings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// Prefixes of new keys. The first is the default.
    pub prefix: Vec<String>,
    /// Former prefixes. Keys that have them still validate.
    pub accept_prefix: Vec<String>,
    /// Formats of keys that another system created.
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
    /// Returns the parsed format of key strings.
    pub fn format(&self) -> Result<KeyFormat, ConfigError> {
        let prefixes = parse("keys.prefix", &self.prefix)?;
        let accepted = parse("keys.accept_prefix", &self.accept_prefix)?;
        let foreign =
            self.foreign.iter().map(|it| ForeignPattern { prefix: it.prefix.clone(), length: it.length });
        Ok(KeyFormat::new(prefixes, accepted, foreign.collect())?)
    }
}

fn parse(name: &str, prefixes: &[String]) -> Result<Vec<KeyPrefix>, ConfigError> {
    prefixes.iter().map(|prefix| Ok(KeyPrefix::parse(name, prefix)?)).collect()
}
