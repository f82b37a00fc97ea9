//! `[telemetry]`

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::telemetry::{LogFormat, TraceOptions, parse_filter};

/// What operators see.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where `/metrics`, `/livez`, `/startupz` and `/readyz` are answered by plain HTTP: `IP:port`. Empty: nowhere.
    pub listen: String,
    /// `text` for people or `json` for machines.
    pub log_format: LogFormat,
    /// Whether calls are traced, by OTLP over gRPC.
    pub traces: bool,
    /// The share of calls that are traced, of those whose caller does not say whether: 0 to 1.
    pub trace_ratio: f64,
    /// The collector of traces: `http://HOST:PORT`. Empty: what `OTEL_EXPORTER_OTLP_ENDPOINT` says, or port 4317 here.
    pub otlp_endpoint: String,
    /// The level, or levels by module: `info,keyvouch=debug`.
    pub log_filter: String,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            listen: String::new(),
            log_format: LogFormat::default(),
            traces: false,
            trace_ratio: 0.1,
            otlp_endpoint: String::new(),
            log_filter: "info".into(),
        }
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

    /// What is traced; `None`: nothing.
    #[must_use]
    pub fn trace_options(&self) -> Option<TraceOptions> {
        let endpoint = (!self.otlp_endpoint.is_empty()).then(|| self.otlp_endpoint.clone());
        // As OpenTelemetry has it: only the word `true` disables.
        self.traces.then_some(TraceOptions { endpoint, ratio: self.trace_ratio })
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.address()?;
        let endpoint = self.otlp_endpoint.as_str();
        if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let problem = "is no URL: give http://HOST:PORT, for example http://localhost:4317";
            return Err(ConfigError::invalid("telemetry.otlp_endpoint", problem));
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(ConfigError::invalid("telemetry.trace_ratio", "must be from 0 to 1"));
        }
        match parse_filter(&self.log_filter) {
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::Type(error.to_string())),
        }
    }
}
