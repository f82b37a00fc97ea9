//! Metrics of reloaded files.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Number of reloads of changed files, by kind and outcome.
#[derive(Clone, Debug)]
pub(crate) struct ReloadMetrics(Family<ReloadLabels, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    files: &'static str,
    outcome: &'static str,
}

impl Default for ReloadMetrics {
    /// Creates all counters with the value zero. Otherwise a counter would first appear with one, and a query
    /// for increases would miss the first step.
    fn default() -> Self {
        let reloads = Family::default();
        for files in [Self::CERTIFICATES, Self::ADMIN_TOKENS] {
            for outcome in [Self::USED, Self::REJECTED] {
                drop(reloads.get_or_create(&ReloadLabels { files, outcome }));
            }
        }
        Self(reloads)
    }
}

impl ReloadMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("reloads", "Reloads of changed files, by kind and outcome", self.0.clone());
    }

    /// Label of certificates and their keys.
    pub(crate) const CERTIFICATES: &str = "certificates";
    /// Label of administrators' tokens.
    pub(crate) const ADMIN_TOKENS: &str = "admin_tokens";
    const USED: &str = "used";
    const REJECTED: &str = "refused";

    /// Counts a reload of `files`, and whether they were usable.
    pub(crate) fn reloaded(&self, files: &'static str, is_usable: bool) {
        let outcome = if is_usable { Self::USED } else { Self::REJECTED };
        self.0.get_or_create(&ReloadLabels { files, outcome }).inc();
    }
}
