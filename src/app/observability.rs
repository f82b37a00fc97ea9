//! Health and metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::health::HealthMonitor;
use super::readings;
use super::storage::Storage;
use crate::cache::FeedHandle;
use crate::grpc::pb;
use crate::server::Tls;
use crate::service::UsageRecorder;
use crate::telemetry::{Exposition, Metrics};

/// The health of the server, its metrics, and their exposition.
pub(super) struct Observability {
    pub(super) health: HealthMonitor,
    pub(super) metrics: Metrics,
    pub(super) exposition: Exposition,
}

impl Observability {
    /// Creates the health monitor and the metrics of a server with these parts. Takes the reader of
    /// connections from `storage`. `max_staleness` applies to answers from caches.
    pub(super) fn new(
        storage: &mut Storage,
        usage: &Arc<UsageRecorder>,
        tls: Option<watch::Receiver<Arc<Tls>>>,
        max_staleness: Duration,
    ) -> Self {
        let stack = &storage.stack;
        let health = HealthMonitor::new(
            Arc::clone(&storage.uncached.keys),
            Arc::clone(&stack.knowledge),
            stack.has_caches.then_some(max_staleness),
        );
        let sources = readings::Sources {
            knowledge: Arc::clone(&stack.knowledge),
            breaker: Arc::clone(&stack.breaker),
            local: stack.local.clone(),
            usage: Arc::clone(usage),
            is_up: health.is_up(),
            pools: storage.pools.take(),
            tls,
        };
        let (metrics, exposition) = Metrics::new(
            &methods(),
            stack.feed.as_ref().map(FeedHandle::propagation),
            Box::new(move || sources.read()),
        );
        Self { health, metrics, exposition }
    }
}

/// Returns the paths of all served methods.
fn methods() -> Vec<String> {
    let descriptors = [
        pb::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    descriptors.into_iter().flat_map(pb::paths).collect()
}
