//! The operations that change keys, as values that can be retried.

use async_trait::async_trait;

use super::transaction::ChangeTransaction;
use crate::domain::{ApiKey, ChangeContext, ChangeId, ChangeKind, KeyId, Revision, RevokeReason, Rotation};
use crate::repository::{ErrorKind, Result};

/// An operation that changes keys. It commits its transaction, or returns without a commit, which rolls the
/// transaction back and uses no revision.
#[async_trait]
pub(super) trait Operation: Sync {
    type Output: Send;

    async fn run(&self, change: ChangeTransaction, context: &ChangeContext) -> Result<Self::Output>;
}

pub(super) struct Create(pub ApiKey);

#[async_trait]
impl Operation for Create {
    type Output = ApiKey;

    async fn run(&self, mut change: ChangeTransaction, context: &ChangeContext) -> Result<ApiKey> {
        let created = change.insert(self.0.clone(), context).await?;
        change.commit().await?;
        Ok(created)
    }
}

pub(super) struct CreateMany(pub Vec<ApiKey>);

#[async_trait]
impl Operation for CreateMany {
    type Output = Vec<Result<ApiKey>>;

    async fn run(&self, mut change: ChangeTransaction, context: &ChangeContext) -> Result<Self::Output> {
        let outcomes = change.insert_many(self.0.clone(), context).await?;
        if outcomes.iter().any(Result::is_ok) {
            change.commit().await?;
        }
        Ok(outcomes)
    }
}

pub(super) struct Update {
    pub key: ApiKey,
    pub expected: Revision,
}

#[async_trait]
impl Operation for Update {
    type Output = ApiKey;

    async fn run(&self, change: ChangeTransaction, context: &ChangeContext) -> Result<ApiKey> {
        let updated = change.replace(self.key.clone(), self.expected, ChangeKind::Updated, context).await?;
        change.commit().await?;
        Ok(updated)
    }
}

pub(super) struct Delete {
    pub id: KeyId,
    pub expected: Option<Revision>,
}

#[async_trait]
impl Operation for Delete {
    type Output = ChangeId;

    async fn run(&self, change: ChangeTransaction, context: &ChangeContext) -> Result<ChangeId> {
        let deletion = change.remove(self.id, self.expected, context).await?;
        change.commit().await?;
        Ok(deletion)
    }
}

pub(super) struct Revoke {
    pub id: KeyId,
    pub reason: RevokeReason,
}

#[async_trait]
impl Operation for Revoke {
    type Output = ApiKey;

    async fn run(&self, change: ChangeTransaction, context: &ChangeContext) -> Result<ApiKey> {
        let key = match change.find(self.id).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let (revoked, is_changed) = change.revoke_unreadable(self.id, &self.reason, context).await?;
                if is_changed {
                    change.commit().await?;
                }
                return Ok(revoked);
            }
            found => found?,
        };
        let Some(revoked) = key.revoked(self.reason.clone(), context.now) else {
            return Ok(key);
        };
        let revoked = change.replace(revoked, key.revision, ChangeKind::Revoked, context).await?;
        change.commit().await?;
        Ok(revoked)
    }
}

pub(super) struct Rotate(pub Rotation);

#[async_trait]
impl Operation for Rotate {
    type Output = Rotation;

    async fn run(&self, mut change: ChangeTransaction, context: &ChangeContext) -> Result<Rotation> {
        let Rotation { replaced, successor } = self.0.clone();
        let expected = replaced.revision;
        let replaced = change.replace(replaced, expected, ChangeKind::Rotated, context).await?;
        change.next_revision().await?;
        let successor = change.insert(successor, context).await?;
        change.commit().await?;
        Ok(Rotation { replaced, successor })
    }
}
