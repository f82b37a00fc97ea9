//! Initializes the log: text for people or JSON for machines, both on standard error.

use std::io::{IsTerminal as _, stderr};
use std::panic;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, fmt};

use super::Traces;

/// Format of log entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The reason why the log can't be initialized.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogFilterError {
    /// The filter is not valid.
    #[error("not a valid log filter; examples: \"info\", \"info,keyvouch=debug\"")]
    Filter(#[source] ParseError),
    /// A log was initialized before.
    #[error("the log was set up before")]
    Again(#[source] TryInitError),
}

/// Parses a filter without applying it.
///
/// # Errors
/// Returns an error if the filter is not valid.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, LogFilterError> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        // Keyvouch logs the applied migrations itself. Clients can cause HTTP/2 protocol errors at will.
        .parse(format!("sea_orm_migration=warn,h2=error,{filter}"))
        .map_err(LogFilterError::Filter)
}

/// Logs panics in the format of the log, within the span of their call.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message = panic.payload_as_str().unwrap_or_default(), "panicked");
    }));
}

/// Initializes the log with `filter`, which is a level or a list such as `info,keyvouch=debug,h2=warn`. Sends
/// the spans of this crate through `traces`, if that is set.
///
/// # Errors
/// Returns an error if the filter is not valid, or if a log was initialized before.
pub(crate) fn init_logs(
    format: LogFormat,
    filter: &str,
    traces: Option<&Traces>,
) -> Result<(), LogFilterError> {
    let filter = parse_filter(filter)?;
    let lines = fmt::layer().with_writer(stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces.map(|traces| {
            let ours = Targets::new().with_target("keyvouch", LevelFilter::DEBUG);
            tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_filter(ours)
        }))
        .try_init()
        .map_err(LogFilterError::Again)?;
    log_panics();
    Ok(())
}
