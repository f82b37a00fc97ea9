//! Metrics in the format of Prometheus.
//!
//! Names follow [its conventions](https://prometheus.io/docs/practices/naming/). No label has a value that
//! callers choose, such as a key, an owner or an unknown method.

mod connections;
mod process;
mod reloads;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

pub(crate) use self::connections::ConnectionMetrics;
pub(crate) use self::connections::{ConnectionClosure, ConnectionRefusal};
use self::process::ProcessCollector;
pub(crate) use self::reloads::ReloadMetrics;

/// Label of calls of unknown methods.
const OTHER: &str = "other";

/// All metrics of a server. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Metrics of calls.
    pub calls: CallMetrics,
    /// Metrics of validations.
    pub validations: ValidationMetrics,
    /// Metrics of client connections.
    pub connections: ConnectionMetrics,
    /// Number of import rows that were rejected because of their caller.
    pub refused_imports: Counter,
    /// Metrics of reloaded files.
    pub reloads: ReloadMetrics,
}

/// Metrics of calls, by method and status.
#[derive(Clone, Debug)]
pub(crate) struct CallMetrics {
    running: Gauge,
    administering: Gauge,
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
    /// Returns the metrics of the method with this path.
    pub(crate) fn method(&self, path: &str) -> Arc<MethodMetrics> {
        Arc::clone(self.by_path.get(path).unwrap_or(&self.other))
    }

    /// Returns the gauge of calls in flight, without those that [`administering`](Self::administering)
    /// counts.
    pub(crate) fn running(&self) -> &Gauge {
        &self.running
    }

    /// Returns the gauge of `KeyStore` calls in flight.
    pub(crate) fn administering(&self) -> &Gauge {
        &self.administering
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

/// Metrics of verdicts, and of the tiers that the judged records came from.
#[derive(Clone, Debug)]
pub struct ValidationMetrics {
    verdicts: Family<ReasonLabel, Counter>,
    lookups: Family<TierLabel, Counter>,
    duration: Histogram,
}

impl Default for ValidationMetrics {
    fn default() -> Self {
        Self { verdicts: Family::default(), lookups: Family::default(), duration: seconds() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TierLabel {
    tier: &'static str,
}

impl ValidationMetrics {
    /// Counts a verdict.
    pub(crate) fn verdict(&self, reason: &'static str) {
        self.verdicts.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a record that came from `tier`.
    pub(crate) fn found_in(&self, tier: &'static str) {
        self.lookups.get_or_create(&TierLabel { tier }).inc();
    }

    /// Records the duration of a lookup that the local cache could not answer.
    pub(crate) fn looked_up(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }
}

/// Bucket bounds in seconds, from 0.25 ms to 8 s.
const SECONDS: [f64; 16] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0,
    8.0,
];

/// Creates a histogram of seconds.
pub(crate) fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// A gauge value that is read when metrics are collected.
pub(crate) struct Reading {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Option<Unit>,
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) value: f64,
}

/// A function that returns all readings.
pub(crate) type Readings = dyn Fn() -> Vec<Reading> + Send + Sync;

/// Collects the readings. Each name is declared once.
struct ReadingCollector(Box<Readings>);

impl fmt::Debug for ReadingCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadingCollector")
    }
}

impl Collector for ReadingCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let readings = (self.0)();
        for of_one in readings.chunk_by(|one, next| one.name == next.name) {
            let Reading { name, help, unit, .. } = &of_one[0];
            let gauge = ConstGauge::new(of_one[0].value);
            let kind = prometheus_client::metrics::MetricType::Gauge;
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            if of_one[0].labels.is_empty() {
                gauge.encode(metric)?;
                continue;
            }
            for reading in of_one {
                let labels: Vec<_> =
                    reading.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                ConstGauge::new(reading.value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// The content of `/metrics`.
#[derive(Clone, Debug)]
pub(crate) struct Exposition(Arc<Registry>);

impl Exposition {
    /// The content type of the text.
    pub(crate) const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// Returns all metrics as text.
    ///
    /// # Errors
    /// Returns an error if a metric can't be encoded.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.0)?;
        Ok(text)
    }
}

impl Metrics {
    /// Creates the metrics of calls of `methods`, which are paths such as `/package.Service/Method`, and the
    /// exposition of these metrics with `readings` and `propagation`.
    pub(crate) fn new(
        methods: &[String],
        propagation: Option<Histogram>,
        readings: Box<Readings>,
    ) -> (Self, Exposition) {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix("keyvouch");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "Version of the running release", Info::new(version));
        let calls = call_metrics(methods, registry);
        let validations = ValidationMetrics::default();
        registry.register(
            "validations",
            "Validations by verdict: allowed, or the reason for the denial",
            validations.verdicts.clone(),
        );
        registry.register(
            "lookups",
            "Validations by the tier that returned the record",
            validations.lookups.clone(),
        );
        registry.register_with_unit(
            "lookup_duration",
            "Duration of lookups that missed the cache in the process",
            Unit::Seconds,
            validations.duration.clone(),
        );
        let connections = ConnectionMetrics::default();
        connections.register(registry);
        let refused_imports = Counter::default();
        registry.register(
            "refused_imports",
            "Import rows that were rejected because the caller lacks a permission; the calls themselves succeed",
            refused_imports.clone(),
        );
        let reloads = ReloadMetrics::default();
        reloads.register(registry);
        if let Some(propagation) = propagation {
            registry.register_with_unit(
                "feed_propagation",
                "Delay between a change, by the clock of the replica that made it, and its arrival here, by this clock",
                Unit::Seconds,
                propagation,
            );
        }
        registry.register_collector(Box::new(ReadingCollector(readings)));
        all.register_collector(Box::new(ProcessCollector));
        (Self { calls, validations, connections, refused_imports, reloads }, Exposition(Arc::new(all)))
    }
}

fn call_metrics(methods: &[String], registry: &mut Registry) -> CallMetrics {
    let answered = Family::<CallLabels, Counter>::default();
    let durations = Family::<MethodLabel, Histogram>::new_with_constructor(seconds);
    let running = Gauge::default();
    registry.register(
        "grpc_calls_running",
        "Calls in flight (before the first response byte), excluding KeyStore and health checks",
        running.clone(),
    );
    let administering = Gauge::default();
    registry.register(
        "grpc_key_store_calls_running",
        "KeyStore calls in flight (before the first response byte)",
        administering.clone(),
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
            ok: answered
                .get_or_create_owned(&CallLabels { method: method.to_owned(), code: code_name(Code::Ok) }),
            duration: durations.get_or_create_owned(&MethodLabel { method: method.to_owned() }),
        })
    };
    let by_path = methods.iter().map(|path| (path.clone(), of(path.trim_start_matches('/')))).collect();
    CallMetrics { other: of(OTHER), running, administering, answered, by_path: Arc::new(by_path) }
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
