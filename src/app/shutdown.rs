//! The shutdown of a server: one sequence, whatever its reason.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::health::HealthMonitor;
use super::serving::Serving;
use super::supervisor::Supervisor;
use crate::cache::RedisCache;
use crate::repository::Backend;
use crate::telemetry::error_chain;

/// Maximum time for the last write of usage. It delays the end of the process.
const LAST_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The running parts of a server, in the order in which they stop.
pub(super) struct Shutdown {
    pub(super) health: HealthMonitor,
    pub(super) settle_delay: Duration,
    pub(super) server: Serving,
    pub(super) tasks: Supervisor,
    pub(super) redis_cache: Option<Arc<RedisCache>>,
    pub(super) backend: Backend,
}

impl Shutdown {
    /// Performs the steps one after the other. Each one completes before the next one begins, and none is
    /// skipped because an earlier one failed.
    ///
    /// # Errors
    /// Returns an error if the server failed meanwhile.
    pub(super) async fn run(mut self) -> Result<()> {
        begin("report NOT_SERVING");
        self.health.stop().await;

        // Load balancers detect it, while calls are still accepted.
        begin("settle");
        tokio::time::sleep(self.settle_delay).await;

        begin("drain");
        let drained = self.server.drain().await;

        // No call needs them any more. Usage is written later, because calls were recording it until now.
        begin("stop background tasks");
        self.tasks.abort().await;

        // A flush that takes too long has ended before the backend closes, too.
        begin("write usage");
        self.tasks.finish(LAST_FLUSH_TIMEOUT).await;

        begin("close the Redis cache");
        if let Some(redis) = self.redis_cache {
            redis.close().await;
        }

        begin("close the backend");
        if let Err(error) = self.backend.close().await {
            tracing::warn!(error = %error_chain(&error), "the backend could not be closed cleanly");
        }
        drained
    }
}

fn begin(step: &'static str) {
    tracing::debug!(step, "shutdown");
}
