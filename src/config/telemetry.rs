//! `[telemetry]`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::telemetry::{LogFormat, parse_filter};

/// What operators see.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// `text` for people or `json` for machines.
    pub log_format: LogFormat,
    /// The level, or levels by module: `info,keyvouch=debug`.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log_format: LogFormat::default(), log_filter: "info".into() }
    }
}

impl TelemetryConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match parse_filter(&self.log_filter) {
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::Type(error.to_string())),
        }
    }
}
