//! `[telemetry]`

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::telemetry::{LogFormat, parse_filter};

/// What operators see.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where `/metrics`, `/livez`, `/startupz` and `/readyz` are answered by plain HTTP: `IP:port`. Empty: nowhere.
    pub listen: String,
    /// `text` for people or `json` for machines.
    pub log_format: LogFormat,
    /// The level, or levels by module: `info,keyvouch=debug`.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { listen: String::new(), log_format: LogFormat::default(), log_filter: "info".into() }
    }
}

impl TelemetryConfig {
    /// Where operators' endpoints are; `None`: nowhere.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        self.listen.parse().map(Some).map_err(|_| {
            let problem =
                format!("`{}` is no address: give IP:port, for example 127.0.0.1:9464", self.listen);
            ConfigError::invalid("telemetry.listen", problem)
        })
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.address()?;
        match parse_filter(&self.log_filter) {
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::Type(error.to_string())),
        }
    }
}
