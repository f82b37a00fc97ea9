//! Deletes keys that expired long ago.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;

use crate::domain::{ChangeContext, Clock, KeyFilter, Timestamp};
use crate::repository::{ErrorKind, KeyRepository, Result, pages};
use crate::telemetry::error_chain;

/// Actor of these deletions in the audit trail.
const ACTOR: &str = "system:prune";

/// Deletes keys that have been expired for a grace period. Until then they are listed, and validations report
/// them as expired. Afterwards validations report them as not found. Several replicas may prune concurrently,
/// because a key that another replica has deleted is skipped.
#[derive(Debug)]
pub(crate) struct KeyPruner {
    repository: Arc<dyn KeyRepository>,
    clock: Arc<dyn Clock>,
    expired_for: Duration,
    interval: Duration,
}

impl KeyPruner {
    /// Creates a pruner that scans `repository` every `interval` for keys that have been expired for
    /// `expired_for`.
    pub(crate) fn new(
        repository: Arc<dyn KeyRepository>,
        clock: Arc<dyn Clock>,
        expired_for: Duration,
        interval: Duration,
    ) -> Self {
        Self { repository, clock, expired_for, interval }
    }

    /// Prunes now and then periodically, until the future is dropped. Errors are logged. If the backend can't
    /// list all keys, it logs that once and never prunes.
    pub(crate) async fn run(&self) {
        loop {
            match self.prune().await {
                Err(error) if error.kind() == ErrorKind::NotOffered => {
                    tracing::warn!(error = %error_chain(&error), "expired keys are never deleted (prune.expired_for), because the backend can't list all keys");
                    std::future::pending::<()>().await;
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "could not delete expired keys; retrying later");
                }
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "deleted keys that expired long ago"),
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    /// Deletes the keys that have been expired for long enough now. Returns the number of deleted keys. Reads
    /// all keys, page by page.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] if the backend can't list all keys, or another error if it failed.
    /// Some keys may have been deleted.
    pub(crate) async fn prune(&self) -> Result<u64> {
        let now = self.clock.now();
        let Some(before) = now.checked_sub(self.expired_for) else {
            return Ok(0);
        };
        let mut deleted = 0;
        let mut keys = pages::stream_pages(Arc::clone(&self.repository), None, KeyFilter::all(now));
        while let Some(listed) = keys.try_next().await? {
            // The expiry of an unreadable record is unknown, so the record is kept.
            let Some(key) = listed.read() else { continue };
            if key.expires_at.is_none_or(|expires_at| expires_at > before) {
                continue;
            }
            match self.repository.delete_unchanged(key.id, key.revision, &context(now)).await {
                Ok(_) => deleted += 1,
                // The key was extended, or another replica has deleted it.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

fn context(now: Timestamp) -> ChangeContext {
    ChangeContext::new(ACTOR, "", now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ApiKey, KeyHash, KeyId, ManualClock, SystemEntropy, sample_key};
    use crate::repository::MemoryRepository;

    fn key(number: u32, expires_at: Option<Timestamp>) -> ApiKey {
        let hash = KeyHash::of(&number.to_string());
        let id = KeyId::generate(Timestamp::MIN, &hash, &SystemEntropy).unwrap();
        ApiKey { id, hash, expires_at, ..sample_key() }
    }

    #[tokio::test]
    async fn only_keys_that_expired_long_ago_are_deleted() {
        let at = |seconds: i64| Some(Timestamp::from_micros(seconds * 1_000_000).unwrap());
        let repository = Arc::new(MemoryRepository::new());
        let ends = [None, at(100), at(89), at(90), at(91), at(1_000)];
        for (number, expires_at) in (0..).zip(ends) {
            repository.create(key(number, expires_at), &context(Timestamp::MIN)).await.unwrap();
        }
        let shared: Arc<dyn KeyRepository> = repository.clone();
        let clock = Arc::new(ManualClock::new(at(100).unwrap()));
        let pruner = KeyPruner::new(shared, clock, Duration::from_secs(10), Duration::MAX);
        assert_eq!(pruner.prune().await.unwrap(), 2);
        assert_eq!(pruner.prune().await.unwrap(), 0);
        for (number, expires_at) in (0_u32..).zip(ends) {
            let found = repository.get_by_hash(&KeyHash::of(&number.to_string())).await.unwrap();
            let is_old = expires_at.is_some_and(|end| end <= at(90).unwrap());
            assert_eq!(found.is_none(), is_old, "{expires_at:?}");
        }
    }
}
