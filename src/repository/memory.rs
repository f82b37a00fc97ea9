//! The reference implementation. It meets the whole contract, but nothing survives the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use uuid::Uuid;

use super::{
    AuditTrail, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition, KeyRepository, KeyStream,
    Listed, ListedEvent, ListedKey, Mark, PagePosition, PageRequest, RecentChanges, Result, StoreIdentity,
    UsageStore, pages, provided,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyFilter, KeyHash, KeyId, OwnerId,
    RequestDigest, Revision, RevokeReason, Rotation, Timestamp,
};

/// Stores keys in this process's memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryRepository {
    state: Arc<RwLock<State>>,
}

/// The order of a listing, oldest first.
type ListKey = (Timestamp, KeyId);

struct State {
    /// The counter of all changes of all keys. It therefore continues after a key was deleted.
    last_revision: i64,
    keys: HashMap<KeyId, ApiKey>,
    ids_by_hash: HashMap<KeyHash, KeyId>,
    all: BTreeMap<ListKey, KeyId>,
    by_owner: HashMap<OwnerId, BTreeMap<ListKey, KeyId>>,
    last_used: HashMap<KeyId, Timestamp>,
    /// Hashes of keys that were revoked and deleted.
    revoked_hashes: HashSet<KeyHash>,
    /// The key that each request created, and the time of its creation.
    requests: HashMap<RequestDigest, (KeyId, Timestamp)>,
    identity: StoreIdentity,
    /// All events, by revision. Only the caller prunes them.
    events: BTreeMap<Revision, KeyEvent>,
    /// Drawn once per process, so that feed positions of another process are rejected.
    nonce: u64,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            last_revision: 0,
            keys: HashMap::new(),
            ids_by_hash: HashMap::new(),
            all: BTreeMap::new(),
            by_owner: HashMap::new(),
            last_used: HashMap::new(),
            revoked_hashes: HashSet::new(),
            requests: HashMap::new(),
            identity: StoreIdentity(Uuid::from_u64_pair(
                RandomState::new().hash_one(()),
                RandomState::new().hash_one(()),
            )),
            events: BTreeMap::new(),
            nonce: RandomState::new().hash_one(()).max(1),
        }
    }
}

impl State {
    fn next_revision(&mut self) -> Revision {
        self.last_revision += 1;
        Revision::new(self.last_revision)
    }

    fn record(&mut self, key: &ApiKey, kind: ChangeKind, fields: Vec<ChangedField>, context: &ChangeContext) {
        let event = KeyEvent::of(key, kind, fields, context);
        self.events.insert(event.revision, event);
    }

    fn create(&mut self, mut key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.check_creatable(&key, context)?;
        let mut fields = Vec::new();
        if self.revives(&key) {
            self.revoked_hashes.remove(&key.hash);
            fields.push(ChangedField::Revocation);
        }
        if let Some(request) = context.request {
            self.requests.insert(request, (key.id, context.now));
        }
        (key.revision, key.nonce) = (self.next_revision(), self.nonce);
        self.ids_by_hash.insert(key.hash, key.id);
        self.all.insert((key.created_at, key.id), key.id);
        self.by_owner.entry(key.owner_id.clone()).or_default().insert((key.created_at, key.id), key.id);
        self.keys.insert(key.id, key.clone());
        self.record(&key, ChangeKind::Created, fields, context);
        Ok(key)
    }

    fn check_creatable(&self, key: &ApiKey, context: &ChangeContext) -> Result<()> {
        let is_retry = context.request.is_some_and(|request| self.requests.contains_key(&request));
        if is_retry || self.keys.contains_key(&key.id) || self.ids_by_hash.contains_key(&key.hash) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if self.revives(key) && !context.may_revive {
            return Err(ErrorKind::RevokedHash.into());
        }
        Ok(())
    }

    /// Returns whether `key` is active and has the hash of a key that was revoked and deleted.
    fn revives(&self, key: &ApiKey) -> bool {
        key.revocation.is_none() && self.revoked_hashes.contains(&key.hash)
    }

    fn update(
        &mut self,
        mut key: ApiKey,
        expected: Revision,
        kind: ChangeKind,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let fields = self.check_replaceable(&key, expected)?.changed_fields(&key);
        (key.revision, key.nonce) = (self.next_revision(), self.nonce);
        self.keys.insert(key.id, key.clone());
        self.record(&key, kind, fields, context);
        Ok(key)
    }

    /// Returns the record that `key` may replace.
    fn check_replaceable(&self, key: &ApiKey, expected: Revision) -> Result<&ApiKey> {
        let stored = self.keys.get(&key.id).ok_or(ErrorKind::NotFound)?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(key)?;
        Ok(stored)
    }

    fn rotate(
        &mut self,
        Rotation { replaced, successor }: Rotation,
        context: &ChangeContext,
    ) -> Result<Rotation> {
        let expected = replaced.revision;
        self.check_creatable(&successor, context)?;
        self.check_replaceable(&replaced, expected)?;
        let replaced = self.update(replaced, expected, ChangeKind::Rotated, context)?;
        Ok(Rotation { replaced, successor: self.create(successor, context)? })
    }

    fn delete(&mut self, id: KeyId, expected: Option<Revision>, context: &ChangeContext) -> Result<ChangeId> {
        let stored = self.keys.get(&id).ok_or(ErrorKind::NotFound)?;
        if expected.is_some_and(|expected| expected != stored.revision) {
            return Err(ErrorKind::Conflict.into());
        }
        let mut key = self.keys.remove(&id).ok_or(ErrorKind::NotFound)?;
        let place = (key.created_at, key.id);
        self.ids_by_hash.remove(&key.hash);
        if key.revocation.is_some() {
            self.revoked_hashes.insert(key.hash);
        }
        self.all.remove(&place);
        if let Some(owned) = self.by_owner.get_mut(&key.owner_id) {
            owned.remove(&place);
            if owned.is_empty() {
                self.by_owner.remove(&key.owner_id);
            }
        }
        self.last_used.remove(&id);
        (key.revision, key.nonce) = (self.next_revision(), self.nonce);
        self.record(&key, ChangeKind::Deleted, Vec::new(), context);
        Ok(key.last_change())
    }

    fn event_page(&self, request: &EventPageRequest) -> Vec<ListedEvent> {
        let end = request.after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.revision));
        let events = self.events.range((Bound::Unbounded, end)).rev().map(|(_, event)| event);
        events
            .filter(|event| request.key_id.is_none_or(|id| id == event.key_id))
            .filter(|event| request.owner_id.as_ref().is_none_or(|owner| *owner == event.owner_id))
            .take(request.limit)
            .cloned()
            .map(Listed::Read)
            .collect()
    }

    fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let begin = match after {
            None => Bound::Unbounded,
            Some(position) if self.knows(position) => match position.mark(0) {
                Mark::Start { .. } => Bound::Unbounded,
                Mark::Event { revision, .. } => Bound::Excluded(revision),
            },
            Some(_) => return Err(ErrorKind::PositionLost.into()),
        };
        let events: Vec<_> = self
            .events
            .range((begin, Bound::Unbounded))
            .take(limit)
            .map(|(_, event)| event.clone())
            .collect();
        let start = || after.cloned().unwrap_or_else(FeedPosition::beginning);
        let position = events.last().map_or_else(start, |last| FeedPosition::of(last.change()));
        Ok(Changes { events, unreadable: Vec::new(), position, unanswered: Vec::new() })
    }

    fn recent_changes(&self, limit: usize) -> RecentChanges {
        let mut events: Vec<_> = self.events.values().rev().take(limit).cloned().map(Listed::Read).collect();
        events.reverse();
        RecentChanges::of(events, Revision::new(self.last_revision))
    }

    /// Returns whether all events after `position` are stored.
    fn knows(&self, position: &FeedPosition) -> bool {
        match position.mark(0) {
            Mark::Start { missing } => {
                let first = self.events.keys().next().copied();
                Mark::is_whole_after(missing, first, Revision::new(self.last_revision))
            }
            Mark::Event { revision, .. } => {
                self.events.get(&revision).is_some_and(|event| position.mark(0).is(event.change()))
            }
        }
    }

    fn prune(&mut self, before: Timestamp) -> u64 {
        let mut pruned = 0;
        while self.events.len() > 1
            && let Some(oldest) = self.events.first_entry()
            && oldest.get().at < before
        {
            oldest.remove();
            pruned += 1;
        }
        self.requests.retain(|_, (_, at)| *at >= before);
        pruned
    }

    fn page(&self, request: &PageRequest) -> Vec<ListedKey> {
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
            .take(request.limit)
            .cloned()
            .map(Listed::Read)
            .collect()
    }
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
        provided::get_many_by_hash(self, hashes).await
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

    async fn identity(&self) -> Result<Option<StoreIdentity>> {
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
