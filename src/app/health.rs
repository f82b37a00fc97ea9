//! What `grpc.health.v1` says.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::grpc::pb::key_store_server::SERVICE_NAME as KEY_STORE;
use crate::grpc::pb::validator_server::SERVICE_NAME as VALIDATOR;
use crate::repository::KeyRepository;
use crate::telemetry::error_chain;

/// The name that stands for the whole server.
const SERVER: &str = "";
/// How often the store is asked whether it answers.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the health of the services in step with the store: NOT_SERVING until it answers for the first time, and
/// whenever it does not. The server as a whole serves from that first time until it stops: an outage of the store is
/// no reason to restart it.
#[derive(Clone, Debug)]
pub(super) struct HealthMonitor {
    reporter: HealthReporter,
    repository: Arc<dyn KeyRepository>,
    /// Held while statuses change, so that nothing follows the last change.
    is_stopped: Arc<Mutex<bool>>,
}

impl HealthMonitor {
    pub(super) fn new(repository: Arc<dyn KeyRepository>) -> Self {
        Self { reporter: HealthReporter::new(), repository, is_stopped: Arc::default() }
    }

    pub(super) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    /// Says that nothing is served yet. Before the first call is taken: the reporter begins with the opposite.
    pub(super) async fn begin(&self) {
        self.set(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
    }

    /// Asks the store again and again, for ever.
    pub(super) async fn watch(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_up = None;
        loop {
            ticks.tick().await;
            let ping = self.repository.ping().await;
            match &ping {
                Ok(()) if was_up != Some(true) => {
                    self.set(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::Serving).await;
                    tracing::info!("the store answers: serving");
                }
                Err(error) if was_up != Some(false) => {
                    self.set(&[VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
                    tracing::error!(error = %error_chain(error), "the store does not answer: not serving");
                }
                Ok(()) | Err(_) => {}
            }
            was_up = Some(ping.is_ok());
        }
    }

    /// Says that the server is ending. Nothing changes it afterwards.
    pub(super) async fn stop(&self) {
        let mut is_stopped = self.is_stopped.lock().await;
        *is_stopped = true;
        self.report(&[SERVER, VALIDATOR, KEY_STORE], ServingStatus::NotServing).await;
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
