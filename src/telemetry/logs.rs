//! Setting up the log: text for people, JSON for machines, both on standard error.

use std::io::{IsTerminal as _, stderr};
use std::panic;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{Layer as _, fmt};

use super::Traces;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// The filter is not one.
    #[error("telemetry.log_filter: is no log filter: give levels as in \"info\" or \"info,keyvouch=debug\"")]
    Filter(#[source] ParseError),
    /// There is a log already.
    #[error("the log was set up before")]
    Again(#[source] TryInitError),
}

/// Checks a filter without using it.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, LogFilterError> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        // Which migrations were applied is told by our own line; what clients do wrong with HTTP/2, they can do at will.
        .parse(format!("sea_orm_migration=warn,h2=error,{filter}"))
        .map_err(LogFilterError::Filter)
}

/// Puts panics into the log, in its format and with the call that they belong to.
fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, message = panic.payload_as_str().unwrap_or_default(), "panicked");
    }));
}

/// Starts logging what `filter` lets through: a level, or a list such as `info,keyvouch=debug,h2=warn`; and sending the spans
/// of this crate by `traces`.
pub fn init_logs(format: LogFormat, filter: &str, traces: Option<&Traces>) -> Result<(), LogFilterError> {
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
