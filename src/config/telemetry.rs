//! `[telemetry]`

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::EnvFilter;

use super::ConfigError;
use crate::telemetry::{CollectorUrl, LogFormat, TraceOptions, parse_filter};

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
    /// machine. Credentials in it are not sent: set `OTEL_EXPORTER_OTLP_HEADERS`.
    pub otlp_endpoint: CollectorUrl,
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
            otlp_endpoint: CollectorUrl::default(),
            log_filter: "info".into(),
        }
    }
}

/// The parsed settings of `[telemetry]`.
#[derive(Clone, Debug)]
pub(crate) struct TelemetrySettings {
    /// The address of metrics and probes. `None` if they are disabled.
    pub(crate) listen: Option<SocketAddr>,
    /// The options of traces. `None` if calls are not traced.
    pub(crate) traces: Option<TraceOptions>,
    pub(crate) log_format: LogFormat,
    pub(crate) log_filter: EnvFilter,
}

impl TelemetryConfig {
    pub(super) fn parse(&self) -> Result<TelemetrySettings, ConfigError> {
        let listen = self.listen()?;
        let endpoint = self.otlp_endpoint.without_credentials();
        if !endpoint.is_empty() && !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let problem = "not an HTTP URL; expected http://HOST:PORT, for example http://localhost:4317";
            return Err(ConfigError::invalid("telemetry.otlp_endpoint", problem));
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(ConfigError::invalid("telemetry.trace_ratio", "must be from 0 to 1"));
        }
        let log_filter = parse_filter(&self.log_filter)
            .map_err(|error| ConfigError::invalid("telemetry.log_filter", error))?;
        let endpoint = (!endpoint.is_empty()).then(|| self.otlp_endpoint.clone());
        let traces = self.traces.then_some(TraceOptions { endpoint, ratio: self.trace_ratio });
        Ok(TelemetrySettings { listen, traces, log_format: self.log_format, log_filter })
    }

    fn listen(&self) -> Result<Option<SocketAddr>, ConfigError> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        self.listen.parse().map(Some).map_err(|_| {
            let problem =
                format!("invalid address `{}`: expected IP:PORT (for example 127.0.0.1:9464)", self.listen);
            ConfigError::invalid("telemetry.listen", problem)
        })
    }
}
