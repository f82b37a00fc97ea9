//! Administers keys. Creating and rotating, updating, listing and importing have files of their own.

mod expiry;
mod issue;
mod listing;
mod update;

use std::sync::Arc;
use std::time::Duration;

use super::{Caller, KeyRecord, ServiceError};
use crate::domain::{ApiKey, Clock, Entropy, KeyFormat, KeyId, Revision, RevokeReason, ScopeSet, Timestamp};
use crate::repository::{
    AuditTrail, Backend, ErrorKind, EventPageRequest, KeyRepository, ListedEvent, RepositoryError, UsageStore,
};
use crate::telemetry::error_chain;

pub(crate) use self::expiry::check_future;

/// Maximum number of attempts of a change that conflicts with concurrent ones, if the caller expects no
/// revision.
const MAX_ATTEMPTS: usize = 16;
/// Maximum time for which the response to a completed change waits for the key's last use.
const USAGE_TIMEOUT: Duration = Duration::from_millis(500);

type Result<T> = std::result::Result<T, ServiceError>;

/// Issues keys and administers them.
#[derive(Clone, Debug)]
pub struct KeyStoreService {
    pub(super) repository: Arc<dyn KeyRepository>,
    audit: Option<Arc<dyn AuditTrail>>,
    pub(super) usage: Option<Arc<dyn UsageStore>>,
    format: Arc<KeyFormat>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl KeyStoreService {
    /// Creates a service that administers the keys of `backend`.
    pub fn new(
        backend: &Backend,
        format: Arc<KeyFormat>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let (repository, audit) = (Arc::clone(&backend.keys), backend.audit.clone());
        Self { repository, audit, usage: backend.usage.clone(), format, clock, entropy }
    }

    /// Returns a key.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id.
    pub async fn get(&self, id: KeyId) -> Result<KeyRecord> {
        let key = self.find(id).await?;
        let usage = self.last_uses(&[id]).await?;
        Ok(self.record(key, usage))
    }

    /// Reads a page of the audit trail, newest first.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] if the backend has no audit trail, or another error if it failed.
    pub async fn events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let audit = self.audit.as_ref().ok_or_else(|| RepositoryError::not_offered("an audit trail"))?;
        Ok(audit.list_events(request).await?)
    }

    /// Revokes a key. The operation is idempotent. Revoking a revoked key changes nothing.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id. After another error, the key may have been
    /// revoked, unless the error is [unapplied](RepositoryError::is_unapplied).
    pub async fn revoke(&self, id: KeyId, reason: RevokeReason, caller: &Caller) -> Result<KeyRecord> {
        let key = self.repository.revoke(id, reason, &caller.context(self.clock.now())).await?;
        Ok(self.changed_record(key).await)
    }

    /// Deletes a key. If `expected` is set, deletes it only at this revision.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id, and [`ErrorKind::Conflict`] if the key has
    /// another revision than `expected`. After another error, the key may have been deleted, unless the error
    /// is [unapplied](RepositoryError::is_unapplied).
    pub async fn delete(&self, id: KeyId, expected: Option<Revision>, caller: &Caller) -> Result<()> {
        let context = caller.context(self.clock.now());
        match expected {
            None => self.repository.delete(id, &context).await?,
            Some(expected) => self.repository.delete_unchanged(id, expected, &context).await?,
        };
        Ok(())
    }

    /// Returns the current time, by which key states are determined.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn find(&self, id: KeyId) -> Result<ApiKey> {
        let key = self.repository.get(id).await?;
        key.ok_or_else(|| ServiceError::Repository(ErrorKind::NotFound.into()))
    }

    /// Returns the record of a key that was just changed. The change is committed, so an unreadable last use
    /// is left out. An error would suggest that nothing was changed, and lose the secret of a successor.
    async fn changed_record(&self, key: ApiKey) -> KeyRecord {
        let ids = [key.id];
        let usage = match tokio::time::timeout(USAGE_TIMEOUT, self.last_uses(&ids)).await {
            Ok(Ok(usage)) => usage,
            Ok(Err(error)) => {
                tracing::warn!(error = %error_chain(&error), key = %key.id, "could not read the last use of a changed key");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(key = %key.id, "could not read the last use of a changed key in time");
                Vec::new()
            }
        };
        self.record(key, usage)
    }

    /// Returns the last use of each of `ids`, in the same order.
    async fn last_uses(&self, ids: &[KeyId]) -> crate::repository::Result<Vec<Option<Timestamp>>> {
        match &self.usage {
            Some(usage) => usage.usage(ids).await,
            None => Ok(vec![None; ids.len()]),
        }
    }

    fn record(&self, key: ApiKey, usage: Vec<Option<Timestamp>>) -> KeyRecord {
        KeyRecord { last_used_at: usage.into_iter().next().flatten(), as_of: self.clock.now(), key }
    }
}

/// Checks that `caller` can grant `scopes`.
pub(super) fn check_grantable(caller: &Caller, scopes: &ScopeSet) -> Result<()> {
    match caller.first_not_grantable(scopes) {
        Some(scope) => Err(ServiceError::ScopeNotGrantable(scope.clone())),
        None => Ok(()),
    }
}

fn conflict() -> ServiceError {
    ServiceError::Repository(ErrorKind::Conflict.into())
}
