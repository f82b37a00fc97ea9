//! Letting go of keys that expired long ago.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;

use crate::domain::{ChangeContext, Clock, KeyFilter, Timestamp};
use crate::repository::{ErrorKind, KeyRepository, Result, pages};
use crate::telemetry::error_chain;

/// Who deletes, in the audit trail.
const ACTOR: &str = "system:prune";

/// Deletes keys that expired longer ago than a grace time. Until then they are listed, and a validation says that they have
/// expired; afterwards it says that there is no such key. Every replica may have one: what another one deleted is gone.
#[derive(Debug)]
pub struct KeyPruner {
    repository: Arc<dyn KeyRepository>,
    clock: Arc<dyn Clock>,
    expired_for: Duration,
    interval: Duration,
}

impl KeyPruner {
    /// Looks every `interval` for keys of `repository` that have been expired for `expired_for`.
    pub fn new(
        repository: Arc<dyn KeyRepository>,
        clock: Arc<dyn Clock>,
        expired_for: Duration,
        interval: Duration,
    ) -> Self {
        Self { repository, clock, expired_for, interval }
    }

    /// Prunes now and from time to time, until it is dropped. Only waits if the backend can't list all keys.
    pub async fn run(&self) {
        loop {
            match self.prune().await {
                Err(error) if error.kind() == ErrorKind::NotOffered => {
                    tracing::warn!(error = %error_chain(&error), "expired keys are not deleted (prune.expired_for)");
                    std::future::pending::<()>().await;
                }
                Err(error) => {
                    tracing::warn!(error = %error_chain(&error), "expired keys could not be deleted; trying again later");
                }
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "keys that expired long ago were deleted"),
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    /// Deletes what has been expired for long enough now; returns how many keys that were. Reads all keys, page by page.
    pub async fn prune(&self) -> Result<u64> {
        let now = self.clock.now();
        let Some(before) = now.checked_sub(self.expired_for) else {
            return Ok(0);
        };
        let mut deleted = 0;
        let mut keys = pages::stream_pages(Arc::clone(&self.repository), None, KeyFilter::all(now));
        while let Some(listed) = keys.try_next().await? {
            // It isn't known when a record that can't be read expired, so it is kept.
            let Some(key) = listed.read() else { continue };
            if key.expires_at.is_none_or(|expires_at| expires_at > before) {
                continue;
            }
            match self.repository.delete_unchanged(key.id, key.revision, &context(now)).await {
                Ok(_) => deleted += 1,
                // It was prolonged, or another replica was faster.
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
