//! `[keys]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::domain::{ForeignPattern, KeyFormat, KeyPrefix};

/// What key strings look like.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeysConfig {
    /// Prefixes that keys are made with; the first is the default.
    pub prefix: Vec<String>,
    /// Older prefixes, of keys that still validate.
    pub accept_prefix: Vec<String>,
    /// Forms of keys that another system made.
    pub foreign: Vec<ForeignConfig>,
}

/// The form of another system's keys.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForeignConfig {
    /// What they begin with.
    pub prefix: String,
    /// The length of the whole key string in bytes.
    pub length: usize,
}

impl Default for KeysConfig {
    fn default() -> Self {
        Self { prefix: vec!["kv_".into()], accept_prefix: Vec::new(), foreign: Vec::new() }
    }
}

impl KeysConfig {
    /// The rules for key strings.
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
