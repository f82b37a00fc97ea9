//! The reference implementation. It meets the whole contract, but nothing survives the process.

mod state;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use self::state::State;
use super::{
    AuditTrail, BackendIdentity, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition,
    KeyRepository, KeyStream, ListedEvent, ListedKey, PageRequest, RecentChanges, Result, UsageStore,
    defaults, pages,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};

/// Stores keys in this process's memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    state: Arc<RwLock<State>>,
}

impl MemoryRepository {
    /// Creates an empty repository.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // A poisoned lock is usable, because changes of `State` can't panic halfway.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for MemoryRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for MemoryRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let state = self.read();
        Ok(state.ids_by_hash.get(hash).and_then(|id| state.keys.get(id)).cloned())
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        defaults::get_many_by_hash(self, hashes).await
    }

    fn supports_batching(&self) -> bool {
        false
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        Ok(self.read().keys.get(&id).cloned())
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.write().create(key, context)
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        let mut state = self.write();
        Ok(keys.into_iter().map(|key| state.create(key, context)).collect())
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.write().update(key, expected, ChangeKind::Updated, context)
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.write().delete(id, None, context)
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        self.write().delete(id, Some(expected), context)
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        pages::stream_by_owner(self.clone(), owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        let mut state = self.write();
        let key = state.keys.get(&id).ok_or(ErrorKind::NotFound)?;
        match key.revoked(reason, context.now) {
            None => Ok(key.clone()),
            Some(revoked) => {
                let expected = key.revision;
                state.update(revoked, expected, ChangeKind::Revoked, context)
            }
        }
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        self.write().rotate(rotation, context)
    }

    fn can_rotate(&self, _: &KeyHash, _: &KeyHash) -> bool {
        true
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        Ok(self.read().page(request))
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        Ok(self.read().requests.get(request).map(|(id, _)| *id))
    }

    fn can_create_for(&self, _: &RequestDigest, _: &KeyHash) -> bool {
        true
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        Ok(Some(self.read().identity))
    }

    async fn check_changes(&self) -> Result<()> {
        Ok(())
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeFeed for MemoryRepository {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.read().changes(after, limit)
    }

    fn partitions(&self) -> u8 {
        1
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        Ok(self.read().recent_changes(limit))
    }

    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        // The records are in this process, so no other process changes them.
        None
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditTrail for MemoryRepository {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        Ok(self.read().event_page(request))
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        Ok(self.write().prune(before))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl UsageStore for MemoryRepository {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let mut state = self.write();
        for &(id, used_at) in usage {
            if state.keys.contains_key(&id) {
                let last = state.last_used.entry(id).or_insert(used_at);
                *last = used_at.max(*last);
            }
        }
        Ok(())
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let state = self.read();
        Ok(ids.iter().map(|id| state.last_used.get(id).copied()).collect())
    }
}
