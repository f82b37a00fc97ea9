//! Deletes keys that expired long ago.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;

use crate::domain::{ChangeContext, Clock, KeyFilter, KeyId, Revision, Timestamp};
use crate::repository::deletions::delete_each;
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
                (_, Err(error)) if error.kind() == ErrorKind::NotOffered => {
                    tracing::warn!(error = %error_chain(&error), "expired keys are never deleted (prune.expired_for), because the backend can't list all keys");
                    std::future::pending::<()>().await;
                }
                (deleted, Err(error)) => {
                    tracing::warn!(error = %error_chain(&error), deleted, "could not delete all expired keys; retrying later");
                }
                (0, Ok(())) => {}
                (deleted, Ok(())) => tracing::info!(deleted, "deleted keys that expired long ago"),
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    /// Deletes the keys that have been expired for long enough now, several at a time. Reads all keys, page by
    /// page. Returns the number of deleted keys, and the first error: [`ErrorKind::NotOffered`] if the backend
    /// can't list all keys, or another error if it failed. The number is exact also after an error.
    pub(crate) async fn prune(&self) -> (u64, Result<()>) {
        let now = self.clock.now();
        let Some(before) = now.checked_sub(self.expired_for) else {
            return (0, Ok(()));
        };
        // The expiry of an unreadable record is unknown, so the record is kept.
        let keys = pages::stream_pages(Arc::clone(&self.repository), None, KeyFilter::all(now));
        let expired = keys.try_filter_map(move |listed| {
            let key = listed.read().filter(|key| key.expires_at.is_some_and(|end| end <= before));
            ready(Ok(key.map(|key| (key.id, key.revision))))
        });
        let context = context(now);
        delete_each(expired, |(id, revision)| self.delete(id, revision, &context)).await
    }

    /// Deletes a key. Returns false if the key was extended, or another replica has deleted it.
    async fn delete(&self, id: KeyId, revision: Revision, context: &ChangeContext) -> Result<bool> {
        match self.repository.delete_unchanged(id, revision, context).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn context(now: Timestamp) -> ChangeContext {
    ChangeContext::new(ACTOR, "", now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ApiKey, KeyHash, ManualClock, SystemEntropy, sample_key};
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
        for expected in [2, 0] {
            let (deleted, outcome) = pruner.prune().await;
            outcome.unwrap();
            assert_eq!(deleted, expected);
        }
        for (number, expires_at) in (0_u32..).zip(ends) {
            let found = repository.get_by_hash(&KeyHash::of(&number.to_string())).await.unwrap();
            let is_old = expires_at.is_some_and(|end| end <= at(90).unwrap());
            assert_eq!(found.is_none(), is_old, "{expires_at:?}");
        }
    }
}
