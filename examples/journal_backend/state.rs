//! The lines of a journal, and the state that results from them.

use std::collections::{BTreeMap, HashMap, HashSet};

use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyHash, KeyId, Revision, Timestamp,
};
use keyvouch::repository::{ErrorKind, RepositoryError, Result, StoredEvent, StoredKey};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A line of the journal.
#[derive(Serialize, Deserialize)]
pub(super) enum Line {
    /// Identity of the journal.
    Identity(Uuid),
    /// Changes that are made atomically.
    Changes(Vec<Change>),
    /// Last uses of keys, in microseconds since the Unix epoch.
    Used(Vec<(Uuid, i64)>),
    /// Time before which all events were pruned, in microseconds since the Unix epoch.
    Pruned(i64),
}

/// A change: the record that it stored or deleted, and its event.
#[derive(Serialize, Deserialize)]
pub(super) struct Change {
    pub key: StoredKey,
    pub event: StoredEvent,
    /// Digest of the request that created the key, by which a retry is detected.
    pub request: Option<Vec<u8>>,
}

/// A change that was checked and is not made yet: the new record, the kind of change, and the fields that the
/// event lists.
pub(super) type PlannedChange = (ApiKey, ChangeKind, Vec<ChangedField>);

/// State that results from the lines.
#[derive(Debug, Default)]
pub(super) struct State {
    pub identity: Option<Uuid>,
    pub revision: i64,
    pub keys: HashMap<KeyId, ApiKey>,
    pub ids: HashMap<KeyHash, KeyId>,
    /// Hashes of keys that were revoked and deleted.
    revoked: HashSet<KeyHash>,
    pub requests: HashMap<Vec<u8>, (KeyId, Timestamp)>,
    pub used: HashMap<KeyId, Timestamp>,
    pub events: BTreeMap<i64, KeyEvent>,
}

impl State {
    /// Applies a line of the journal.
    pub(super) fn apply(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Identity(identity) => self.identity = Some(identity),
            Line::Changes(changes) => changes.into_iter().try_for_each(|change| self.apply_change(change))?,
            Line::Used(used) => {
                for (id, at) in used {
                    let (id, at) = (KeyId::from_uuid(id), timestamp(at)?);
                    if self.keys.contains_key(&id) {
                        let last = self.used.entry(id).or_insert(at);
                        *last = at.max(*last);
                    }
                }
            }
            Line::Pruned(before) => {
                let before = timestamp(before)?;
                self.requests.retain(|_, (_, at)| *at >= before);
                while self.events.len() > 1
                    && let Some(oldest) = self.events.first_entry()
                    && oldest.get().at < before
                {
                    oldest.remove();
                }
            }
        }
        Ok(())
    }

    fn apply_change(&mut self, change: Change) -> Result<()> {
        let key = change.key.into_key()?;
        let event = change.event.into_event(key.revision)?;
        let (kind, at) = (event.kind, event.at);
        self.revision = key.revision.get();
        self.events.insert(self.revision, event);
        if let Some(request) = change.request {
            self.requests.insert(request, (key.id, at));
        }
        if kind == ChangeKind::Deleted {
            self.keys.remove(&key.id);
            self.ids.remove(&key.hash);
            self.used.remove(&key.id);
            if key.revocation.is_some() {
                self.revoked.insert(key.hash);
            }
        } else {
            self.revoked.remove(&key.hash);
            self.ids.insert(key.hash, key.id);
            self.keys.insert(key.id, key);
        }
        Ok(())
    }

    pub(super) fn find(&self, id: KeyId) -> Result<&ApiKey> {
        self.keys.get(&id).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Checks whether `key` can be created.
    pub(super) fn creation(&self, key: ApiKey, context: &ChangeContext) -> Result<PlannedChange> {
        let is_retry = context.request.is_some_and(|it| self.requests.contains_key(it.as_bytes().as_slice()));
        if is_retry || self.keys.contains_key(&key.id) || self.ids.contains_key(&key.hash) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let revives = key.revocation.is_none() && self.revoked.contains(&key.hash);
        if revives && !context.may_revive {
            return Err(ErrorKind::RevokedHash.into());
        }
        let fields = if revives { vec![ChangedField::Revocation] } else { Vec::new() };
        Ok((key, ChangeKind::Created, fields))
    }

    /// Checks whether `next` can replace the record with the revision `expected`.
    pub(super) fn update(&self, next: ApiKey, expected: Revision, kind: ChangeKind) -> Result<PlannedChange> {
        let stored = self.find(next.id)?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(&next)?;
        let fields = stored.changed_fields(&next);
        Ok((next, kind, fields))
    }

    /// Returns all keys, newest first.
    pub(super) fn newest_keys(&self) -> Vec<&ApiKey> {
        let mut keys: Vec<_> = self.keys.values().collect();
        keys.sort_by_key(|key| std::cmp::Reverse((key.created_at, key.id)));
        keys
    }

    /// Returns whether all events after the change `last` are stored. `None` means the beginning.
    pub(super) fn has_all_events_after(&self, last: Option<ChangeId>) -> bool {
        let Some(last) = last else { return true };
        match self.events.get(&last.revision.get()) {
            // Another event with the same revision belongs to another journal.
            Some(event) => event.change() == last,
            None => last == ChangeId::NONE && self.events.keys().next().is_none_or(|first| *first == 1),
        }
    }
}

fn timestamp(micros: i64) -> Result<Timestamp> {
    let problem = "a time whose year is not within 1 to 9999";
    Timestamp::from_micros(micros).ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, problem))
}
