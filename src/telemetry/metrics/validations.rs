//! Metrics of validations.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::seconds;

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
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "validations",
            "Validations by verdict: allowed, or the reason for the denial",
            self.verdicts.clone(),
        );
        registry.register(
            "lookups",
            "Validations by the tier that returned the record",
            self.lookups.clone(),
        );
        registry.register_with_unit(
            "lookup_duration",
            "Duration of lookups that missed the cache in the process",
            Unit::Seconds,
            self.duration.clone(),
        );
    }

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
