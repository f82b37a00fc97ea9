//! The records, indexes and events of a [`MemoryRepository`](super::MemoryRepository).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Bound;

use uuid::Uuid;

use crate::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyHash, KeyId, OwnerId,
    RequestDigest, Revision, Rotation, Timestamp,
};
use crate::repository::{
    BackendIdentity, Changes, Cursor, ErrorKind, EventPageRequest, FeedPosition, Listed, ListedEvent,
    ListedKey, PagePosition, PageRequest, RecentChanges, Result,
};

/// The order of a listing, oldest first.
type ListKey = (Timestamp, KeyId);

pub(super) struct State {
    /// The counter of all changes of all keys. It therefore continues after a key was deleted.
    last_revision: i64,
    pub(super) keys: HashMap<KeyId, ApiKey>,
    pub(super) ids_by_hash: HashMap<KeyHash, KeyId>,
    all: BTreeMap<ListKey, KeyId>,
    by_owner: HashMap<OwnerId, BTreeMap<ListKey, KeyId>>,
    pub(super) last_used: HashMap<KeyId, Timestamp>,
    /// Hashes of keys that were revoked and deleted.
    revoked_hashes: HashSet<KeyHash>,
    /// The key that each request created, and the time of its creation.
    pub(super) requests: HashMap<RequestDigest, (KeyId, Timestamp)>,
    pub(super) identity: BackendIdentity,
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
            identity: BackendIdentity(Uuid::from_u64_pair(
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

    pub(super) fn create(&mut self, mut key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
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

    pub(super) fn update(
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

    pub(super) fn rotate(
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

    pub(super) fn delete(
        &mut self,
        id: KeyId,
        expected: Option<Revision>,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        let stored = self.keys.get(&id).ok_or(ErrorKind::NotFound)?;
        if expected.is_some_and(|expected| expected != stored.revision) {
            return Err(ErrorKind::Conflict.into());
        }
        let mut key = self.keys.remove(&id).ok_or(ErrorKind::NotFound)?;
        let list_key = (key.created_at, key.id);
        self.ids_by_hash.remove(&key.hash);
        if key.revocation.is_some() {
            self.revoked_hashes.insert(key.hash);
        }
        self.all.remove(&list_key);
        if let Some(owned) = self.by_owner.get_mut(&key.owner_id) {
            owned.remove(&list_key);
            if owned.is_empty() {
                self.by_owner.remove(&key.owner_id);
            }
        }
        self.last_used.remove(&id);
        (key.revision, key.nonce) = (self.next_revision(), self.nonce);
        self.record(&key, ChangeKind::Deleted, Vec::new(), context);
        Ok(key.last_change())
    }

    pub(super) fn event_page(&self, request: &EventPageRequest) -> Vec<ListedEvent> {
        let end = request.after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.revision));
        let events = self.events.range((Bound::Unbounded, end)).rev().map(|(_, event)| event);
        events.filter(|event| request.selects(event)).take(request.limit).cloned().map(Listed::Read).collect()
    }

    pub(super) fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        let begin = match after {
            None => Bound::Unbounded,
            Some(position) if self.knows(position) => match position.cursor(0) {
                Cursor::Start { .. } => Bound::Unbounded,
                Cursor::Event { revision, .. } => Bound::Excluded(revision),
            },
            Some(_) => return Err(ErrorKind::PositionLost.into()),
        };
        let events = self.events.range((begin, Bound::Unbounded)).take(limit);
        Ok(Changes::of(after, events.map(|(_, event)| Listed::Read(event.clone())).collect()))
    }

    pub(super) fn recent_changes(&self, limit: usize) -> RecentChanges {
        let mut events: Vec<_> = self.events.values().rev().take(limit).cloned().map(Listed::Read).collect();
        events.reverse();
        RecentChanges::of(events, Revision::new(self.last_revision))
    }

    /// Returns whether all events after `position` are stored.
    fn knows(&self, position: &FeedPosition) -> bool {
        match position.cursor(0) {
            Cursor::Start { missing } => {
                let first = self.events.keys().next().copied();
                Cursor::is_whole_after(missing, first, Revision::new(self.last_revision))
            }
            Cursor::Event { revision, .. } => {
                self.events.get(&revision).is_some_and(|event| position.cursor(0).is(event.change()))
            }
        }
    }

    pub(super) fn prune(&mut self, before: Timestamp) -> u64 {
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

    pub(super) fn page(&self, request: &PageRequest) -> Vec<ListedKey> {
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
