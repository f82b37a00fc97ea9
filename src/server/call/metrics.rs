//! Counts calls.

use std::sync::Arc;

use http::Response;
use tonic::Code;
use tonic::body::Body;

use crate::domain::{BootClock, Moment, Stopwatch as _};
use crate::telemetry::{CallMetrics, MethodMetrics};

/// A call that is counted exactly once, when it is answered or dropped.
#[derive(Debug)]
pub(super) struct CountedCall {
    metrics: CallMetrics,
    method: Arc<MethodMetrics>,
    began: Moment,
    is_answered: bool,
}

impl CountedCall {
    pub(super) fn begin(metrics: &CallMetrics, path: &str) -> Self {
        let method = metrics.method(path);
        Self { metrics: metrics.clone(), method, began: BootClock.moment(), is_answered: false }
    }

    /// Returns the method. Unknown methods share one name, so that clients can't write text of their choice
    /// into the log.
    pub(super) fn method(&self) -> Arc<MethodMetrics> {
        Arc::clone(&self.method)
    }

    /// Counts the call as answered with `code`.
    pub(super) fn answered(mut self, code: Code) {
        self.is_answered = true;
        self.count(code);
    }

    fn count(&self, code: Code) {
        self.metrics.answered(&self.method, code, BootClock.moment().since(self.began));
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        if !self.is_answered {
            // The client cancelled the call.
            self.count(Code::Cancelled);
        }
    }
}

/// Returns the status of a response without a body. The status of any other response is known only at its
/// end, so that response counts as `OK`.
pub(super) fn code(response: &Response<Body>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn a_call_is_counted_once() {
        let path = "/keyvouch.v1.Validator/Validate".to_owned();
        let (metrics, exposition) = Metrics::new(std::slice::from_ref(&path), None, Box::new(Vec::new));
        CountedCall::begin(&metrics.calls, &path).answered(Code::NotFound);
        drop(CountedCall::begin(&metrics.calls, &path));
        let text = exposition.text().unwrap();
        for code in ["NOT_FOUND", "CANCELLED"] {
            let counted = format!("keyvouch_grpc_calls_total{{method=\"{}\",code=\"{code}\"}} 1", &path[1..]);
            assert!(text.contains(&counted), "{text}");
        }
    }
}
