//! Files that are read again when they change.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Files that changed while the server ran.
#[derive(Clone, Debug)]
pub struct ReloadMetrics(Family<ReloadLabels, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    files: &'static str,
    outcome: &'static str,
}

impl Default for ReloadMetrics {
    /// All begin with zero: of a counter that begins with one, the first step would be seen by nobody.
    fn default() -> Self {
        let reloads = Family::default();
        for files in [Self::CERTIFICATES, Self::ADMIN_TOKENS] {
            for outcome in [Self::USED, Self::REFUSED] {
                drop(reloads.get_or_create(&ReloadLabels { files, outcome }));
            }
        }
        Self(reloads)
    }
}

impl ReloadMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "reloads",
            "Files that changed and were read again, by kind and outcome",
            self.0.clone(),
        );
    }

    /// Certificates and their keys.
    pub(crate) const CERTIFICATES: &str = "certificates";
    /// Tokens of administrators.
    pub(crate) const ADMIN_TOKENS: &str = "admin_tokens";
    const USED: &str = "used";
    const REFUSED: &str = "refused";

    /// Counts `files` that changed, and whether they can be used.
    pub(crate) fn reloaded(&self, files: &'static str, is_usable: bool) {
        let outcome = if is_usable { Self::USED } else { Self::REFUSED };
        self.0.get_or_create(&ReloadLabels { files, outcome }).inc();
    }
}
