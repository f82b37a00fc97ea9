//! The reference implementation: all of the contract, and nothing survives the process.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;

use super::{ErrorKind, KeyRepository, KeyStream, PagePosition, PageRequest, Result, pages};
use crate::domain::{
    ApiKey, ChangeContext, KeyFilter, KeyHash, KeyId, OwnerId, Revision, RevokeReason, Rotation, Timestamp,
};

/// Keeps keys in this process's memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    state: Arc<RwLock<State>>,
}

/// The order of a listing, oldest first.
type ListKey = (Timestamp, KeyId);

#[derive(Default)]
struct State {
    /// The one counter of all changes, so it outlives each key.
    last_revision: i64,
    keys: HashMap<KeyId, ApiKey>,
    ids_by_hash: HashMap<KeyHash, KeyId>,
    all: BTreeMap<ListKey, KeyId>,
    by_owner: HashMap<OwnerId, BTreeMap<ListKey, KeyId>>,
    last_used: HashMap<KeyId, Timestamp>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl State {
    fn next_revision(&mut self) -> Revision {
        self.last_revision += 1;
        Revision::new(self.last_revision)
    }

    fn create(&mut self, mut key: ApiKey) -> Result<ApiKey> {
        self.check_free(&key)?;
        key.revision = self.next_revision();
        self.ids_by_hash.insert(key.hash, key.id);
        self.all.insert((key.created_at, key.id), key.id);
        self.by_owner.entry(key.owner_id.clone()).or_default().insert((key.created_at, key.id), key.id);
        self.keys.insert(key.id, key.clone());
        Ok(key)
    }

    fn check_free(&self, key: &ApiKey) -> Result<()> {
        if self.keys.contains_key(&key.id) || self.ids_by_hash.contains_key(&key.hash) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn update(&mut self, mut key: ApiKey, expected: Revision) -> Result<ApiKey> {
        self.check_replaceable(&key, expected)?;
        key.revision = self.next_revision();
        self.keys.insert(key.id, key.clone());
        Ok(key)
    }

    fn check_replaceable(&self, key: &ApiKey, expected: Revision) -> Result<()> {
        let stored = self.keys.get(&key.id).ok_or(ErrorKind::NotFound)?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(key)?;
        Ok(())
    }

    fn rotate(&mut self, Rotation { replaced, successor }: Rotation) -> Result<Rotation> {
        let expected = replaced.revision;
        self.check_free(&successor)?;
        self.check_replaceable(&replaced, expected)?;
        Ok(Rotation { successor: self.create(successor)?, replaced: self.update(replaced, expected)? })
    }

    fn delete(&mut self, id: KeyId) -> Result<Revision> {
        let key = self.keys.remove(&id).ok_or(ErrorKind::NotFound)?;
        let place = (key.created_at, key.id);
        self.ids_by_hash.remove(&key.hash);
        self.all.remove(&place);
        if let Some(owned) = self.by_owner.get_mut(&key.owner_id) {
            owned.remove(&place);
            if owned.is_empty() {
                self.by_owner.remove(&key.owner_id);
            }
        }
        self.last_used.remove(&id);
        Ok(self.next_revision())
    }

    fn page(&self, request: &PageRequest) -> Vec<ApiKey> {
        let order = match &request.owner_id {
            None => Some(&self.all),
            Some(owner) => self.by_owner.get(owner),
        };
        let end = match request.after {
            None => Bound::Unbounded,
            Some(PagePosition { created_at, id }) => Bound::Excluded((created_at, id)),
        };
        order
            .into_iter()
            .flat_map(|order| order.range((Bound::Unbounded, end)).rev())
            .filter_map(|(_, id)| self.keys.get(id))
            .filter(|key| request.filter.matches(key))
            .take(request.limit)
            .cloned()
            .collect()
    }
}

impl MemoryRepository {
    /// An empty repository.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // A poisoned lock is taken over: no change of `State` can panic half-way.
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

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        Ok(self.read().keys.get(&id).cloned())
    }

    async fn create(&self, key: ApiKey, _: &ChangeContext) -> Result<ApiKey> {
        self.write().create(key)
    }

    async fn update(&self, key: ApiKey, expected: Revision, _: &ChangeContext) -> Result<ApiKey> {
        self.write().update(key, expected)
    }

    async fn delete(&self, id: KeyId, _: &ChangeContext) -> Result<Revision> {
        self.write().delete(id)
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
                state.update(revoked, expected)
            }
        }
    }

    async fn rotate(&self, rotation: Rotation, _: &ChangeContext) -> Result<Rotation> {
        self.write().rotate(rotation)
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ApiKey>> {
        Ok(self.read().page(request))
    }

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

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}
