//! Monitors the health of the server, and reports it to `grpc.health.v1` and to probes.
//!
//! There are three levels. *Alive*: the process runs. An outage of the backend is not a reason to restart it.
//! *Started*: the backend was reached once, its schema was valid, and its change feed was read. *Ready*:
//! calls are answered. `Validator` is ready as long as it can answer from its caches, so that an outage of
//! the backend, which all replicas see at once, does not make all of them unready. `KeyStore` is ready while
//! the backend accepts changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cache::Knowledge;
use crate::grpc::pb::key_store_server::SERVICE_NAME as KEY_STORE;
use crate::grpc::pb::validator_server::SERVICE_NAME as VALIDATOR;
use crate::repository::{ErrorKind, KeyRepository, RepositoryError, within};
use crate::server::Fitness;
use crate::telemetry::error_chain;

/// Name of the health service for the whole server.
const SERVER: &str = "";
/// Interval between pings of the backend.
const INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a ping. It is shorter than that of a call, so that a hanging backend is detected soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// Number of consecutive failures that count as an outage. One lost packet does not.
const FAILURES: u32 = 2;

/// Updates the health of the services according to the backend.
#[derive(Clone, Debug)]
pub(super) struct HealthMonitor {
    reporter: HealthReporter,
    /// The backend itself, without caches: a ping that times out is dropped, and dropping it has to cancel it.
    /// Otherwise the pings of a backend that hangs would take up its connections, one more per second.
    repository: Arc<dyn KeyRepository>,
    /// The state that `Validator` can answer from during an outage, and its maximum staleness. `None` without
    /// a cache.
    knowledge: Arc<Knowledge>,
    /// Maximum staleness of answers from caches. `None` without a cache.
    max_staleness: Option<Duration>,
    fitness: watch::Sender<Fitness>,
    is_up: watch::Sender<bool>,
    /// Locked while statuses change, so that no update follows the final one.
    is_stopped: Arc<Mutex<bool>>,
}

/// Whether the backend accepts changes.
#[derive(Debug, Default)]
struct Changes {
    /// `None` before it is known.
    are_accepted: Option<bool>,
    /// Number of consecutive failed checks.
    failures: u32,
}

impl HealthMonitor {
    pub(super) fn new(
        repository: Arc<dyn KeyRepository>,
        knowledge: Arc<Knowledge>,
        max_staleness: Option<Duration>,
    ) -> Self {
        Self {
            reporter: HealthReporter::new(),
            repository,
            knowledge,
            max_staleness,
            fitness: watch::Sender::default(),
            is_up: watch::Sender::default(),
            is_stopped: Arc::default(),
        }
    }

    pub(super) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    /// Returns the level that probes report.
    pub(super) fn fitness(&self) -> watch::Receiver<Fitness> {
        self.fitness.subscribe()
    }

    /// Returns whether the backend answers.
    pub(super) fn is_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    /// Reports all services as not serving. It has to run before the first call is accepted, because the
    /// reporter begins with the opposite.
    pub(super) async fn begin(&self) {
        self.set(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
    }

    /// Pings the backend forever.
    pub(super) async fn watch(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut was_up, mut was_ready, mut has_started) = (None, None, false);
        let mut failures = 0;
        let mut changes = Changes::default();
        loop {
            ticks.tick().await;
            let ping = within(PATIENCE, self.repository.ping()).await;
            failures = if ping.is_ok() { 0 } else { failures + 1 };
            // Failures are tolerated only after a success.
            let is_up = ping.is_ok() || (was_up == Some(true) && failures < FAILURES);
            if ping.is_ok() || !is_up {
                // A single failed ping says nothing about changes.
                self.check_changes(is_up, &mut changes).await;
            }
            if was_up != Some(is_up) {
                self.is_up.send_replace(is_up);
                match &ping {
                    Ok(()) => tracing::info!("the backend responds"),
                    Err(error) => {
                        tracing::error!(error = %error_chain(error), "the backend does not respond");
                    }
                }
                was_up = Some(is_up);
            }
            if !has_started && is_up && self.has_read_feed() {
                has_started = true;
                self.set(&[SERVER], ServingStatus::Serving).await;
            }
            let is_ready = has_started && (is_up || self.answers_from_cache());
            if was_ready != Some(is_ready) {
                self.set(&[VALIDATOR], status(is_ready)).await;
                self.set_fitness(match (has_started, is_ready) {
                    (false, _) => Fitness::Alive,
                    (true, false) => Fitness::Started,
                    (true, true) => Fitness::Ready,
                })
                .await;
                tracing::info!(is_ready, "readiness changed");
                was_ready = Some(is_ready);
            }
        }
    }

    /// Checks whether the backend accepts changes.
    async fn check_changes(&self, is_up: bool, changes: &mut Changes) {
        let error = if is_up { within(PATIENCE, self.repository.check_changes()).await.err() } else { None };
        self.changes_checked(is_up, error, changes).await;
    }

    /// Reports `KeyStore` as serving while the backend answers and accepts changes. `error` is the outcome of a
    /// check of changes.
    async fn changes_checked(&self, is_up: bool, error: Option<RepositoryError>, changes: &mut Changes) {
        changes.failures = if error.is_some() { changes.failures + 1 } else { 0 };
        // Failures are tolerated only after a success.
        let is_tolerated = changes.are_accepted == Some(true) && changes.failures < FAILURES;
        let are_accepted = is_up && (error.is_none() || is_tolerated);
        if changes.are_accepted == Some(are_accepted) {
            return;
        }
        match &error {
            Some(error) if error.kind() == ErrorKind::Timeout => {
                tracing::error!("the backend does not respond in time when changes are checked");
            }
            Some(error) => tracing::error!(error = %error_chain(error), "the backend accepts no changes"),
            None if is_up && changes.are_accepted.is_some() => {
                tracing::info!("the backend accepts changes again");
            }
            None => {}
        }
        self.set(&[KEY_STORE], status(are_accepted)).await;
        changes.are_accepted = Some(are_accepted);
    }

    /// Returns whether the feed was read, or the backend has none.
    fn has_read_feed(&self) -> bool {
        !self.knowledge.has_feed() || self.knowledge.epoch() > 0
    }

    fn answers_from_cache(&self) -> bool {
        let Some(max_staleness) = self.max_staleness else { return false };
        self.knowledge.feed_age().is_some_and(|age| age <= max_staleness)
    }

    /// Reports that the server is shutting down. No later update changes this.
    pub(super) async fn stop(&self) {
        let mut is_stopped = self.is_stopped.lock().await;
        *is_stopped = true;
        self.fitness.send_modify(|fitness| *fitness = (*fitness).min(Fitness::Started));
        self.report(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
    }

    async fn set_fitness(&self, fitness: Fitness) {
        let is_stopped = self.is_stopped.lock().await;
        if !*is_stopped {
            self.fitness.send_replace(fitness);
        }
    }

    async fn set(&self, services: &[&str], status: ServingStatus) {
        let is_stopped = self.is_stopped.lock().await;
        if !*is_stopped {
            self.report(services, status).await;
        }
    }

    async fn report(&self, services: &[&str], status: ServingStatus) {
        for service in services {
            self.reporter.set_service_status(*service, status).await;
        }
    }
}

fn status(is_serving: bool) -> ServingStatus {
    if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_server::Health as _;
    use tonic_health::server::HealthService;

    use super::*;
    use crate::domain::{BootClock, Stopwatch};
    use crate::repository::MemoryRepository;

    #[tokio::test]
    async fn one_failed_check_of_changes_is_tolerated_after_a_success() {
        let stopwatch: Arc<dyn Stopwatch> = Arc::new(BootClock);
        let knowledge = Arc::new(Knowledge::without_feed(stopwatch));
        let monitor = HealthMonitor::new(Arc::new(MemoryRepository::new()), knowledge, None);
        let service = HealthService::from_health_reporter(monitor.reporter());
        monitor.begin().await;
        let mut changes = Changes::default();
        for (outcome, expected) in [
            (Some(ErrorKind::Unavailable), false),
            (None, true),
            (Some(ErrorKind::Timeout), true),
            (None, true),
            (Some(ErrorKind::Timeout), true),
            (Some(ErrorKind::Timeout), false),
            (None, true),
        ] {
            monitor.changes_checked(true, outcome.map(Into::into), &mut changes).await;
            let request = Request::new(HealthCheckRequest { service: KEY_STORE.to_owned() });
            let reported = service.check(request).await.unwrap().into_inner().status;
            assert_eq!(reported == ServingStatus::Serving as i32, expected, "{outcome:?}");
        }
    }
}
