//! `[telemetry]`

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::telemetry::{LogFormat, TraceOptions, parse_filter};

/// Metrics, logs and traces.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Address of `/metrics`, `/livez`, `/startupz` and `/readyz`, by plain HTTP, for example `0.0.0.0:9464`. Empty:
    /// these are not served.
    pub listen: String,
    /// Format of the log on standard error: `text` for people or `json` for machines.
    pub log_format: LogFormat,
    /// Whether calls are traced, by OTLP over gRPC. The variables `OTEL_*` of OpenTelemetry apply.
    pub traces: bool,
    /// Share (0 to 1) of the traced calls, among calls whose caller sends no sampling decision (`traceparent`).
    /// `OTEL_TRACES_SAMPLER` takes precedence.
    pub trace_ratio: f64,
    /// URL of the trace collector: `http://HOST:PORT`. Empty: `OTEL_EXPORTER_OTLP_ENDPOINT`, or port 4317 of this
    /// machine.
    pub otlp_endpoint: String,
    /// Log level, or levels by module: `info,keyvouch=debug`.
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
    /// Returns the address of metrics and probes. `None` if they are disabled.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        self.listen.parse().map(Some).map_err(|_| {
            let problem =
                format!("invalid address `{}`: expected IP:PORT (for example 127.0.0.1:9464)", self.listen);
            ConfigError::invalid("telemetry.listen", problem)
        })
    }

    /// Returns the options of traces. `None` if calls are not traced.
    #[must_use]
    pub fn trace_options(&self) -> Option<TraceOptions> {
        let endpoint = (!self.otlp_endpoint.is_empty()).then(|| self.otlp_endpoint.clone());
        self.traces.then_some(TraceOptions { endpoint, ratio: self.trace_ratio })
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.address()?;
        let endpoint = self.otlp_endpoint.as_str();
        if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let problem = "not an HTTP URL; expected http://HOST:PORT, for example http://localhost:4317";
            return Err(ConfigError::invalid("telemetry.otlp_endpoint", problem));
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(ConfigError::invalid("telemetry.trace_ratio", "must be from 0 to 1"));
        }
        match parse_filter(&self.log_filter) {
            Ok(_) => Ok(()),
            Err(error) => Err(ConfigError::invalid("telemetry.log_filter", error)),
        }
    }
}
