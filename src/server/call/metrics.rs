//! Counts calls.

use std::sync::Arc;

use http::Response;
use tonic::Code;
use tonic::body::Body;

use crate::domain::{Moment, Stopwatch};
use crate::telemetry::{CallMetrics, MethodMetrics};

/// A call that is counted exactly once, when it is answered or dropped.
#[derive(Debug)]
pub(super) struct CountedCall {
    metrics: CallMetrics,
    method: Arc<MethodMetrics>,
    stopwatch: Arc<dyn Stopwatch>,
    began: Moment,
    is_answered: bool,
}

impl CountedCall {
    /// Begins a call of the method at `path`, whose duration `stopwatch` measures.
    pub(super) fn begin(metrics: &CallMetrics, stopwatch: &Arc<dyn Stopwatch>, path: &str) -> Self {
        let method = metrics.method(path);
        let (began, stopwatch) = (stopwatch.moment(), Arc::clone(stopwatch));
        Self { metrics: metrics.clone(), method, stopwatch, began, is_answered: false }
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
        self.metrics.answered(&self.method, code, self.stopwatch.moment().since(self.began));
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
    use std::time::Duration;

    use super::*;
    use crate::domain::ManualStopwatch;
    use crate::telemetry::Metrics;

    #[test]
    fn answered_and_cancelled_calls_are_counted_with_their_duration() {
        let path = "/keyvouch.v1.Validator/Validate".to_owned();
        let (metrics, exposition) = Metrics::new(std::slice::from_ref(&path), None, Box::new(Vec::new));
        let manual = Arc::new(ManualStopwatch::default());
        let stopwatch: Arc<dyn Stopwatch> = Arc::<ManualStopwatch>::clone(&manual);
        let answered = CountedCall::begin(&metrics.calls, &stopwatch, &path);
        let cancelled = CountedCall::begin(&metrics.calls, &stopwatch, &path);
        manual.advance(Duration::from_secs(3));
        answered.answered(Code::NotFound);
        drop(cancelled);
        let text = exposition.text().unwrap();
        for code in ["NOT_FOUND", "CANCELLED"] {
            let counted = format!("keyvouch_grpc_calls_total{{method=\"{}\",code=\"{code}\"}} 1", &path[1..]);
            assert!(text.contains(&counted), "{text}");
        }
        let duration = format!("keyvouch_grpc_call_duration_seconds_sum{{method=\"{}\"}} 6", &path[1..]);
        assert!(text.contains(&duration), "{text}");
    }
}
