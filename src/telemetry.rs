//! Observability of a running server: logs, metrics and traces.

mod audit;
mod collector_url;
mod log_limit;
mod logs;
mod metrics;
mod traces;

use std::error::Error;
use std::fmt;

pub(crate) use audit::{Rejection, log_rejection};
pub use collector_url::CollectorUrl;
pub(crate) use log_limit::LogLimit;
pub use logs::LogFormat;
pub(crate) use logs::{init_logs, parse_filter};
pub(crate) use metrics::{
    CallMetrics, ConnectionClosure, ConnectionMetrics, ConnectionRejection, Exposition, MethodMetrics,
    Metrics, Reading, ReloadMetrics, ValidationMetrics, seconds,
};
pub(crate) use traces::{TraceOptions, Traces, continue_trace, record_status};

/// Returns `error` and its causes in one line, for the log.
pub(crate) fn error_chain(error: &dyn Error) -> impl fmt::Display {
    struct Chain<'e>(&'e dyn Error);

    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut last = self.0.to_string();
            f.write_str(&last)?;
            let mut cause = self.0.source();
            while let Some(error) = cause {
                let text = error.to_string();
                // Drivers repeat the text of their cause.
                if !last.ends_with(&text) {
                    write!(f, ": {text}")?;
                }
                last = text;
                cause = error.source();
            }
            Ok(())
        }
    }

    Chain(error)
}
