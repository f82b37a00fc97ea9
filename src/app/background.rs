//! The background tasks of a server.

use std::sync::Arc;
use std::time::Duration;

use super::Surroundings;
use super::health::HealthMonitor;
use super::reload::Reloader;
use super::storage::Storage;
use super::supervisor::Supervisor;
use crate::cache::FeedFollower;
use crate::config::Settings;
use crate::domain::Stopwatch;
use crate::grpc::AdminToken;
use crate::server::{OpsListener, Tls};
use crate::service::{EventPruner, KeyPruner, UsageRecorder};
use crate::telemetry::{Exposition, ReloadMetrics};

/// The background tasks before they start.
///
/// Those that read or write keys of which the caches may have entries use the backend through the caches, and
/// the others use it directly ([`Storage::uncached`]).
#[derive(Debug)]
pub(super) struct Background {
    pub(super) health: HealthMonitor,
    /// Updates the caches itself, so it reads the backend directly. `None` if the backend has no feed.
    pub(super) follower: Option<FeedFollower>,
    pub(super) pruners: Pruners,
    pub(super) certificates: Option<Reloader<Arc<Tls>>>,
    pub(super) tokens: Option<Reloader<Arc<[AdminToken]>>>,
    pub(super) reload_interval: Duration,
    pub(super) reloads: ReloadMetrics,
    /// Metrics and probes. `None` if they are disabled.
    pub(super) probes: Option<(OpsListener, Exposition)>,
    pub(super) usage: Arc<UsageRecorder>,
    pub(super) flush_interval: Duration,
    pub(super) stopwatch: Arc<dyn Stopwatch>,
}

/// The tasks that delete what is old.
#[derive(Debug)]
pub(super) struct Pruners {
    /// Deletes events, which no cache has, so it uses the backend directly.
    events: Option<EventPruner>,
    /// Deletes keys through the caches of this replica, so that they never serve a key that it has deleted.
    keys: Option<KeyPruner>,
}

impl Pruners {
    /// Creates the pruners that `settings` enables and the backend supports.
    pub(super) fn new(settings: &Settings, storage: &Storage, surroundings: &Surroundings) -> Self {
        let events = storage.uncached.audit.clone().zip(settings.event_retention);
        let clock = || Arc::clone(&surroundings.clock);
        let keys = || Arc::clone(&storage.stack.backend.keys);
        Self {
            events: events.map(|(audit, retention)| EventPruner::new(audit, clock(), retention)),
            keys: settings
                .prune
                .map(|prune| KeyPruner::new(keys(), clock(), prune.expired_for, prune.interval)),
        }
    }
}

impl Background {
    /// Starts the tasks.
    pub(super) fn start(self) -> Supervisor {
        let mut tasks = Supervisor::default();
        let health = self.health.clone();
        tasks.spawn("health monitor", async move { health.watch().await });
        if let Some(follower) = self.follower {
            tasks.spawn("feed follower", follower.run());
        }
        if let Some(pruner) = self.pruners.events {
            tasks.spawn("event pruner", async move { pruner.run().await });
        }
        if let Some(pruner) = self.pruners.keys {
            tasks.spawn("key pruner", async move { pruner.run().await });
        }
        if let Some(reloader) = self.certificates {
            tasks.spawn("certificate reloader", reloader.run(self.reload_interval, self.reloads.clone()));
        }
        if let Some(reloader) = self.tokens {
            tasks.spawn("token reloader", reloader.run(self.reload_interval, self.reloads));
        }
        if let Some((listener, exposition)) = self.probes {
            let (fitness, stopwatch) = (self.health.fitness(), self.stopwatch);
            tasks.spawn("probe server", async move {
                match listener.serve(fitness, exposition, stopwatch).await {}
            });
        }
        let (usage, interval) = (self.usage, self.flush_interval);
        tasks.spawn_graceful("usage recorder", move |stop| async move {
            usage.flush_until(interval, stop.requested()).await;
        });
        tasks
    }
}
