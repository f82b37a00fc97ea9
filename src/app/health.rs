//! What is said of the server's health: to `grpc.health.v1`, and to probes.
//!
//! Three things are told apart. *Alive*: the process runs; an outage of the store is no reason to restart it. *Started*: the
//! store was reached, its schema is right, and its change feed was read, once. *Ready*: calls are answered. `Validator` is
//! ready as long as it can answer from what it knows, so an outage of the store, which all replicas see at once, does not take
//! all of them out; `KeyStore` is ready while its store takes changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::cache::Knowledge;
use crate::grpc::pb::key_store_server::SERVICE_NAME as KEY_STORE;
use crate::grpc::pb::validator_server::SERVICE_NAME as VALIDATOR;
use crate::repository::{KeyRepository, within};
use crate::server::Fitness;
use crate::telemetry::error_chain;

/// The name that stands for the whole server.
const SERVER: &str = "";
/// How often the store is asked whether it answers.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to: less than a call, so that a store that hangs is noticed soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often in a row it has to fail before that counts: one lost packet is no outage.
const FAILURES: u32 = 2;

/// Keeps the health of the services in step with the store.
#[derive(Clone, Debug)]
pub(super) struct HealthMonitor {
    reporter: HealthReporter,
    repository: Arc<dyn KeyRepository>,
    /// What `Validator` can answer from while the store is away, and how old that may be; `None` without a cache.
    cached: Option<(Arc<Knowledge>, Duration)>,
    fitness: watch::Sender<Fitness>,
    is_up: watch::Sender<bool>,
    /// Held while statuses change, so that nothing follows the last change.
    is_stopped: Arc<Mutex<bool>>,
}

impl HealthMonitor {
    pub(super) fn new(
        repository: Arc<dyn KeyRepository>,
        cached: Option<(Arc<Knowledge>, Duration)>,
    ) -> Self {
        Self {
            reporter: HealthReporter::new(),
            repository,
            cached,
            fitness: watch::Sender::default(),
            is_up: watch::Sender::default(),
            is_stopped: Arc::default(),
        }
    }

    pub(super) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    /// What probes are told.
    pub(super) fn fitness(&self) -> watch::Receiver<Fitness> {
        self.fitness.subscribe()
    }

    /// Whether the store answers.
    pub(super) fn is_up(&self) -> watch::Receiver<bool> {
        self.is_up.subscribe()
    }

    /// Says that nothing is served yet. Before the first call is taken: the reporter begins with the opposite.
    pub(super) async fn begin(&self) {
        self.set(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
    }

    /// Asks the store again and again, for ever.
    pub(super) async fn watch(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut was_up, mut was_ready, mut has_started) = (None, None, false);
        let mut failures = 0;
        let mut takes_changes = None;
        loop {
            ticks.tick().await;
            let ping = within(PATIENCE, self.repository.ping()).await;
            failures = if ping.is_ok() { 0 } else { failures + 1 };
            // Before it ever answered there is nothing to be patient about.
            let is_up = ping.is_ok() || (was_up == Some(true) && failures < FAILURES);
            self.watch_changes(is_up, &mut takes_changes).await;
            if was_up != Some(is_up) {
                self.is_up.send_replace(is_up);
                match &ping {
                    Ok(()) => tracing::info!("the store answers"),
                    Err(error) => {
                        tracing::error!(error = %error_chain(error), "the store does not answer");
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
                self.say(match (has_started, is_ready) {
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

    /// Reports `KeyStore` as serving while the backend answers and accepts changes.
    async fn watch_changes(&self, is_up: bool, took_changes: &mut Option<bool>) {
        let refusal =
            if is_up { within(PATIENCE, self.repository.check_changes()).await.err() } else { None };
        let takes_changes = is_up && refusal.is_none();
        if *took_changes == Some(takes_changes) {
            return;
        }
        if let Some(error) = &refusal {
            tracing::error!(error = %error_chain(error), "the backend accepts no changes");
        } else if is_up && took_changes.is_some() {
            tracing::info!("the backend accepts changes again");
        }
        self.set(&[KEY_STORE], status(takes_changes)).await;
        *took_changes = Some(takes_changes);
    }

    /// Whether what was read of the feed counts, or there is none.
    fn has_read_feed(&self) -> bool {
        let Some((knowledge, _)) = &self.cached else { return true };
        !knowledge.has_feed() || knowledge.history() > 0
    }

    fn answers_from_cache(&self) -> bool {
        let Some((knowledge, max_staleness)) = &self.cached else { return false };
        knowledge.feed_age().is_some_and(|age| age <= *max_staleness)
    }

    /// Says that the server is ending. Nothing changes it afterwards.
    pub(super) async fn stop(&self) {
        let mut is_stopped = self.is_stopped.lock().await;
        *is_stopped = true;
        self.fitness.send_modify(|fitness| *fitness = (*fitness).min(Fitness::Started));
        self.report(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
    }

    async fn say(&self, fitness: Fitness) {
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
