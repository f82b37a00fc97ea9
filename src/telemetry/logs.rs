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

/// A log filter that is not valid.
#[derive(Debug, thiserror::Error)]
#[error("not a valid log filter; examples: \"info\", \"info,keyvouch=debug\"")]
pub(crate) struct InvalidLogFilter(#[source] ParseError);

/// A log was initialized before.
#[derive(Debug, thiserror::Error)]
#[error("the log is already initialized")]
pub(crate) struct LogAlreadyInitialized(#[source] TryInitError);

/// Parses a filter without applying it.
///
/// # Errors
/// Returns an error if the filter is not valid.
pub(crate) fn parse_filter(filter: &str) -> Result<EnvFilter, InvalidLogFilter> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        // Keyvouch logs the applied migrations itself. Clients can cause HTTP/2 protocol errors at will.
        .parse(format!("sea_orm_migration=warn,h2=error,{filter}"))
        .map_err(InvalidLogFilter)
}

/// Logs panics in the format of the log, within the span of their call.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, panic = panic.payload_as_str().unwrap_or_default(), "panicked");
    }));
}

/// Initializes the log with `filter`, which is a level or a list such as `info,keyvouch=debug,h2=warn`. Sends
/// the spans of this crate to `traces`, if that is set.
///
/// # Errors
/// Returns an error if the filter is not valid, or if a log was initialized before.
pub(crate) fn init_logs(
    format: LogFormat,
    filter: EnvFilter,
    traces: Option<&Traces>,
) -> Result<(), LogAlreadyInitialized> {
    let entries = fmt::layer().with_writer(stderr);
    let entries = match format {
        LogFormat::Text => entries.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => entries.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(entries.with_filter(filter))
        .with(traces.map(|traces| {
            let own_spans = Targets::new().with_target("keyvouch", LevelFilter::DEBUG);
            tracing_opentelemetry::layer().with_tracer(traces.tracer()).with_filter(own_spans)
        }))
        .try_init()
        .map_err(LogAlreadyInitialized)?;
    log_panics();
    Ok(())
}
