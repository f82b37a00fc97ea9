//! Metrics of calls.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use super::seconds;

/// Label of calls of unknown methods.
const OTHER: &str = "other";

/// Metrics of calls, by method and status.
#[derive(Clone, Debug)]
pub(crate) struct CallMetrics {
    running: Gauge,
    key_store_running: Gauge,
    answered: Family<CallLabels, Counter>,
    by_path: Arc<HashMap<String, Arc<MethodMetrics>>>,
    other: Arc<MethodMetrics>,
}

/// Metrics of one method. They are looked up before the request, which owns the path, is consumed.
#[derive(Debug)]
pub(crate) struct MethodMetrics {
    method: String,
    ok: Counter,
    duration: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: String,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: String,
}

impl MethodMetrics {
    /// Returns `package.Service/Method`, or the common name of unknown methods.
    pub(crate) fn name(&self) -> &str {
        &self.method
    }
}

impl CallMetrics {
    /// Registers the metrics of calls of `methods`, which are paths such as `/package.Service/Method`.
    pub(super) fn register(methods: &[String], registry: &mut Registry) -> Self {
        let answered = Family::<CallLabels, Counter>::default();
        let durations = Family::<MethodLabel, Histogram>::new_with_constructor(seconds);
        let running = Gauge::default();
        registry.register(
            "grpc_calls_running",
            "Calls in flight (before the first response byte), excluding KeyStore and health checks",
            running.clone(),
        );
        let key_store_running = Gauge::default();
        registry.register(
            "grpc_key_store_calls_running",
            "KeyStore calls in flight (before the first response byte)",
            key_store_running.clone(),
        );
        registry.register("grpc_calls", "Completed calls by method and status", answered.clone());
        registry.register_with_unit(
            "grpc_call_duration",
            "Time until the response began, by method",
            Unit::Seconds,
            durations.clone(),
        );
        let of = |method: &str| {
            Arc::new(MethodMetrics {
                method: method.to_owned(),
                ok: answered.get_or_create_owned(&CallLabels {
                    method: method.to_owned(),
                    code: code_name(Code::Ok),
                }),
                duration: durations.get_or_create_owned(&MethodLabel { method: method.to_owned() }),
            })
        };
        let by_path = methods.iter().map(|path| (path.clone(), of(path.trim_start_matches('/')))).collect();
        Self { other: of(OTHER), running, key_store_running, answered, by_path: Arc::new(by_path) }
    }

    /// Returns the metrics of the method with this path.
    pub(crate) fn method(&self, path: &str) -> Arc<MethodMetrics> {
        Arc::clone(self.by_path.get(path).unwrap_or(&self.other))
    }

    /// Returns the gauge of calls in flight, without those of `KeyStore` and health checks.
    pub(crate) fn running(&self) -> &Gauge {
        &self.running
    }

    /// Returns the gauge of `KeyStore` calls in flight.
    pub(crate) fn key_store_running(&self) -> &Gauge {
        &self.key_store_running
    }

    /// Counts a call of `method` that was answered with `code`.
    pub(crate) fn answered(&self, method: &MethodMetrics, code: Code, took: Duration) {
        method.duration.observe(took.as_secs_f64());
        if code == Code::Ok {
            method.ok.inc();
        } else {
            let labels = CallLabels { method: method.method.clone(), code: code_name(code) };
            self.answered.get_or_create(&labels).inc();
        }
    }
}

/// Returns the name of [gRPC's status code](https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
fn code_name(code: Code) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(i32::from(code)).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("UNKNOWN")
}
