//! Metrics in the format of Prometheus.
//!
//! Names follow [its conventions](https://prometheus.io/docs/practices/naming/). No label has a value that
//! callers choose, such as a key, an owner or an unknown method.

mod calls;
mod connections;
mod exposition;
mod process;
mod readings;
mod reloads;
mod validations;

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::calls::{CallMetrics, MethodMetrics};
pub(crate) use self::connections::{ConnectionClosure, ConnectionMetrics, ConnectionRejection};
pub(crate) use self::exposition::Exposition;
use self::process::ProcessCollector;
pub(crate) use self::readings::Reading;
use self::readings::{ReadingCollector, Readings};
pub(crate) use self::reloads::ReloadMetrics;
pub(crate) use self::validations::ValidationMetrics;

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
    pub rejected_imports: Counter,
    /// Metrics of reloaded files.
    pub reloads: ReloadMetrics,
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
        let calls = CallMetrics::register(methods, registry);
        let validations = ValidationMetrics::default();
        validations.register(registry);
        let connections = ConnectionMetrics::default();
        connections.register(registry);
        let rejected_imports = Counter::default();
        registry.register(
            "refused_imports",
            "Import rows that were rejected because the caller lacks a permission; the calls themselves succeed",
            rejected_imports.clone(),
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
        (Self { calls, validations, connections, rejected_imports, reloads }, Exposition(Arc::new(all)))
    }
}
