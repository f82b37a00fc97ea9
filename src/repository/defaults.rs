//! Default implementations of [`KeyRepository`]. They are correct on any backend, because they only use its
//! required methods.

use futures_util::TryStreamExt as _;

use super::{ErrorKind, KeyRepository, ListedKey, PageRequest, RepositoryError, Result};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, Revision, RevokeReason, Rotation, Timestamp,
};
use crate::telemetry::error_chain;

/// Maximum number of attempts of a change that conflicts with others.
const MAX_ATTEMPTS: usize = 64;

pub(super) async fn get_many_by_hash<R: KeyRepository + ?Sized>(
    repository: &R,
    hashes: &[KeyHash],
) -> Result<Vec<Result<Option<ApiKey>>>> {
    let mut found = Vec::new();
    for hash in hashes {
        match repository.get_by_hash(hash).await {
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            outcome => found.push(outcome),
        }
    }
    Ok(found)
}

pub(super) async fn delete_unchanged<R: KeyRepository + ?Sized>(
    repository: &R,
    id: KeyId,
    expected: Revision,
    context: &ChangeContext,
) -> Result<ChangeId> {
    let key = repository.get(id).await?.ok_or(ErrorKind::NotFound)?;
    if key.revision != expected {
        return Err(ErrorKind::Conflict.into());
    }
    repository.delete(id, context).await
}

pub(super) async fn revoke<R: KeyRepository + ?Sized>(
    repository: &R,
    id: KeyId,
    reason: RevokeReason,
    context: &ChangeContext,
) -> Result<ApiKey> {
    for _ in 0..MAX_ATTEMPTS {
        let key = repository.get(id).await?.ok_or(ErrorKind::NotFound)?;
        let Some(revoked) = key.revoked(reason.clone(), context.now) else {
            return Ok(key);
        };
        match repository.update(revoked, key.revision, context).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            outcome => return outcome,
        }
    }
    Err(ErrorKind::Conflict.into())
}

pub(super) async fn rotate<R: KeyRepository + ?Sized>(
    repository: &R,
    rotation: Rotation,
    context: &ChangeContext,
) -> Result<Rotation> {
    let expected = rotation.replaced.revision;
    let successor = repository.create(rotation.successor, context).await?;
    match repository.update(rotation.replaced, expected, context).await {
        Ok(replaced) => Ok(Rotation { replaced, successor }),
        // The update may have been made. Deleting the successor could leave the caller without any valid key.
        Err(error) if error.leaves_outcome_unknown() => Err(error),
        Err(error) => {
            if let Err(left) = repository.delete(successor.id, context).await {
                // The successor's secret was not returned to anyone, so the key is harmless. The caller gets
                // the error that made the rotation fail.
                tracing::warn!(error = %error_chain(&left), key = %successor.id, "the successor of a failed rotation could not be deleted");
            }
            Err(error)
        }
    }
}

pub(super) async fn create_many<R: KeyRepository + ?Sized>(
    repository: &R,
    keys: Vec<ApiKey>,
    context: &ChangeContext,
) -> Result<Vec<Result<ApiKey>>> {
    let mut outcomes = Vec::new();
    for key in keys {
        match repository.create(key, context).await {
            Err(error) if !is_of_one_key(error.kind()) => return Err(error),
            outcome => outcomes.push(outcome),
        }
    }
    Ok(outcomes)
}

/// Returns whether an error of this kind concerns only one of the keys that were to be created.
pub(super) fn is_of_one_key(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::AlreadyExists | ErrorKind::RevokedHash)
}

pub(super) async fn list_page<R: KeyRepository + ?Sized>(
    repository: &R,
    request: &PageRequest,
) -> Result<Vec<ListedKey>> {
    let Some(owner) = &request.owner_id else {
        return Err(RepositoryError::not_offered("listing the keys of all owners"));
    };
    let mut keys = repository.list_by_owner(owner, &KeyFilter::all(Timestamp::MIN));
    let mut page = Vec::new();
    while page.len() < request.limit
        && let Some(key) = keys.try_next().await?
    {
        if request.after.is_none_or(|after| after.precedes(key.position())) {
            page.push(key);
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::domain::{OwnerId, SystemEntropy, sample_key};
    use crate::repository::{KeyStream, MemoryRepository};

    /// A backend whose updates fail with `error`, after they were made if `is_made`.
    #[derive(Debug)]
    struct FailingUpdates {
        inner: MemoryRepository,
        error: RepositoryError,
        is_made: bool,
    }

    impl std::fmt::Display for FailingUpdates {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("FailingUpdates")
        }
    }

    #[async_trait]
    impl KeyRepository for FailingUpdates {
        async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
            self.inner.get_by_hash(hash).await
        }

        async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
            self.inner.get(id).await
        }

        async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
            self.inner.create(key, context).await
        }

        async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
            if self.is_made {
                self.inner.update(key, expected, context).await?;
            }
            Err(self.error.clone())
        }

        async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
            self.inner.delete(id, context).await
        }

        fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
            self.inner.list_by_owner(owner, filter)
        }
    }

    /// Returns whether the successor exists after a rotation whose update failed.
    async fn keeps_successor(error: RepositoryError, is_made: bool) -> bool {
        let context = ChangeContext::new("token:tests", "r", Timestamp::MIN);
        let repository = FailingUpdates { inner: MemoryRepository::new(), error, is_made };
        let old = repository.create(sample_key(), &context).await.unwrap();
        let hash = KeyHash::of("the successor's secret");
        let id = KeyId::generate(old.created_at, &hash, &SystemEntropy).unwrap();
        let successor = ApiKey { id, hash, rotated_from: Some(old.id), ..old.clone() };
        let replaced = ApiKey { replaced_by: Some(id), ..old };
        rotate(&repository, Rotation { replaced, successor }, &context).await.unwrap_err();
        repository.get(id).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_rotation_with_an_unknown_outcome_keeps_the_successor() {
        for kind in [ErrorKind::Timeout, ErrorKind::Unavailable, ErrorKind::Internal] {
            assert!(keeps_successor(kind.into(), true).await, "{kind:?}");
            let unapplied = RepositoryError::from(kind).unapplied();
            assert!(!keeps_successor(unapplied, false).await, "{kind:?}");
        }
        assert!(!keeps_successor(ErrorKind::Conflict.into(), false).await);
    }
}
