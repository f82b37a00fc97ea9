//! Deletes old events.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::Clock;
use crate::repository::AuditTrail;
use crate::telemetry::error_chain;

/// Interval between scans for old events.
const INTERVAL: Duration = Duration::from_hours(1);

/// Deletes events that are older than a retention time. Every replica runs one, and the backend lets only one
/// of them prune at a time.
#[derive(Debug)]
pub(crate) struct EventPruner {
    audit: Arc<dyn AuditTrail>,
    clock: Arc<dyn Clock>,
    retention: Duration,
}

impl EventPruner {
    /// Creates a pruner that keeps the events of `audit` for `retention`.
    pub(crate) fn new(audit: Arc<dyn AuditTrail>, clock: Arc<dyn Clock>, retention: Duration) -> Self {
        Self { audit, clock, retention }
    }

    /// Prunes now and then periodically, until the future is dropped. Errors are logged.
    pub(crate) async fn run(&self) {
        loop {
            match self.prune().await {
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "could not delete old events; retrying later");
                }
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "deleted old events"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Deletes the events that are too old now. Returns the number of deleted events, which can be 0 while
    /// another replica is pruning.
    ///
    /// # Errors
    /// Returns an error if the backend failed. Some events may have been deleted.
    pub(crate) async fn prune(&self) -> crate::repository::Result<u64> {
        match self.clock.now().checked_sub(self.retention) {
            Some(before) => self.audit.prune_events(before).await,
            None => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ApiKey, ChangeContext, KeyHash, KeyId, ManualClock, SystemEntropy, Timestamp, sample_key,
    };
    use crate::repository::{EventPageRequest, KeyRepository as _, MemoryRepository};

    fn key(secret: &str, now: Timestamp) -> ApiKey {
        let hash = KeyHash::of(secret);
        ApiKey { id: KeyId::generate(now, &hash, &SystemEntropy).unwrap(), hash, ..sample_key() }
    }

    #[tokio::test]
    async fn events_are_deleted_after_the_retention_time() {
        let now = Timestamp::from_micros(1_000_000_000).unwrap();
        let repository = Arc::new(MemoryRepository::new());
        for (seconds_ago, secret) in [(11, "a"), (9, "b"), (0, "c")] {
            let now = now.checked_sub(Duration::from_secs(seconds_ago)).unwrap();
            let context = ChangeContext::new("", "", now);
            repository.create(key(secret, now), &context).await.unwrap();
        }
        let clock = Arc::new(ManualClock::new(now));
        let pruner = EventPruner::new(
            Arc::<MemoryRepository>::clone(&repository) as Arc<dyn AuditTrail>,
            clock,
            Duration::from_secs(10),
        );
        assert_eq!(pruner.prune().await.unwrap(), 1);
        let request = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 10 };
        assert_eq!(repository.list_events(&request).await.unwrap().len(), 2);
    }
}
