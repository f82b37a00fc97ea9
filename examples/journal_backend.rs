//! A custom backend with a change feed: a journal of JSON lines that several replicas on one machine share,
//! and a server that uses it. Start it twice, on two ports. A key that one replica revokes is denied by the
//! other one.
//!
//! ```sh
//! JOURNAL=keys.jsonl KEYVOUCH__SERVER__LISTEN=127.0.0.1:50051 cargo run --example journal_backend
//! JOURNAL=keys.jsonl KEYVOUCH__SERVER__LISTEN=127.0.0.1:50052 cargo run --example journal_backend
//! ```
//!
//! Every change is a line, which is synced before the change is acknowledged. A lock on the file orders the
//! changes of all replicas, and the order of the lines is the change feed. Each replica keeps all keys in
//! memory, and reads new lines before each answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use keyvouch::app::{App, Surroundings};
use keyvouch::config::Sources;
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyFilter, KeyHash, KeyId, OwnerId,
    RequestDigest, Revision, RevokeReason, Rotation, SystemEntropy, Timestamp,
};
use keyvouch::repository::{
    AuditTrail, Backend, BackendIdentity, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition,
    KeyRepository, KeyStream, Listed, ListedEvent, ListedKey, PageRequest, RecentChanges, RepositoryError,
    Result, StoredKey, UsageStore,
};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

/// A replica's access to a journal. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// Number of bytes of the file that are reflected in `state`.
    offset: u64,
    state: State,
}

/// State that results from the lines.
#[derive(Debug, Default)]
struct State {
    identity: Option<Uuid>,
    revision: i64,
    keys: HashMap<KeyId, ApiKey>,
    ids: HashMap<KeyHash, KeyId>,
    /// Hashes of keys that were revoked and deleted.
    revoked: HashSet<KeyHash>,
    requests: HashMap<Vec<u8>, (KeyId, Timestamp)>,
    used: HashMap<KeyId, Timestamp>,
    events: BTreeMap<i64, KeyEvent>,
}

#[derive(Serialize, Deserialize)]
enum Line {
    /// Identity of the journal.
    Identity(Uuid),
    /// Changes that are made atomically.
    Changes(Vec<Change>),
    /// Last uses of keys, in microseconds since the Unix epoch.
    Used(Vec<(Uuid, i64)>),
    /// Time before which all events were pruned, in microseconds since the Unix epoch.
    Pruned(i64),
}

/// A change, and the record that it stored or deleted.
#[derive(Serialize, Deserialize)]
struct Change {
    revision: i64,
    key: StoredKey,
    kind: String,
    fields: Vec<String>,
    actor: String,
    request_id: String,
    at: i64,
    /// Digest of the request that created the key, by which a retry is detected.
    request: Option<Vec<u8>>,
}

impl Journal {
    /// Opens the journal at `path`, which is created if it does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(unavailable)?;
        let shared = Shared { file, offset: 0, state: State::default() };
        let journal = Self { path: path.to_owned(), shared: Arc::new(Mutex::new(shared)) };
        journal.write(|state| {
            let line = Line::Identity(Uuid::from_u128(u128::from(nonce()?) << 64 | u128::from(nonce()?)));
            Ok((state.identity.is_none().then_some(line), ()))
        })?;
        Ok(journal)
    }

    /// Applies the new lines of all replicas, and then calls `read` with the state.
    fn read<T>(&self, read: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.file.lock_shared().map_err(unavailable)?;
        let outcome = shared.catch_up().and_then(|()| read(&shared.state));
        shared.file.unlock().map_err(unavailable)?;
        outcome
    }

    /// Appends the line that `decide` returns. No other replica can append one in the meantime.
    fn write<T>(&self, decide: impl FnOnce(&State) -> Result<(Option<Line>, T)>) -> Result<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.file.lock().map_err(unavailable)?;
        let outcome = shared.catch_up().and_then(|()| {
            let (line, outcome) = decide(&shared.state)?;
            if let Some(line) = line {
                shared.append(line)?;
            }
            Ok(outcome)
        });
        shared.file.unlock().map_err(unavailable)?;
        outcome
    }

    /// Makes changes atomically, and returns the records with their revisions.
    fn change(
        &self,
        context: &ChangeContext,
        decide: impl FnOnce(&State) -> Result<Vec<(ApiKey, ChangeKind, Vec<ChangedField>)>>,
    ) -> Result<Vec<ApiKey>> {
        self.write(|state| {
            let (mut changes, mut records) = (Vec::new(), Vec::new());
            for (revision, (mut key, kind, fields)) in (state.revision + 1..).zip(decide(state)?) {
                (key.revision, key.nonce) = (Revision::new(revision), nonce()?);
                changes.push(Change {
                    revision,
                    key: StoredKey::new(&key),
                    kind: kind.as_str().to_owned(),
                    fields: fields.iter().map(|field| field.as_str().to_owned()).collect(),
                    actor: context.actor.clone(),
                    request_id: context.request_id.clone(),
                    at: context.now.as_micros(),
                    request: context
                        .request
                        .filter(|_| kind == ChangeKind::Created)
                        .map(|it| it.as_bytes().to_vec()),
                });
                records.push(key);
            }
            Ok(((!changes.is_empty()).then_some(Line::Changes(changes)), records))
        })
    }

    fn change_one(
        &self,
        context: &ChangeContext,
        decide: impl FnOnce(&State) -> Result<(ApiKey, ChangeKind, Vec<ChangedField>)>,
    ) -> Result<ApiKey> {
        let changed = self.change(context, |state| Ok(vec![decide(state)?]))?;
        changed.into_iter().next().ok_or_else(|| ErrorKind::Internal.into())
    }
}

impl Shared {
    fn catch_up(&mut self) -> Result<()> {
        let mut lines = String::new();
        self.file.seek(SeekFrom::Start(self.offset)).map_err(unavailable)?;
        self.file.read_to_string(&mut lines).map_err(unavailable)?;
        // A line without an end was never acknowledged, because its writer was killed.
        for line in lines.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            self.offset += line.len() as u64;
            self.state.apply(serde_json::from_str(line).map_err(corrupt)?)?;
        }
        Ok(())
    }

    /// Appends a line. The caller holds the lock, so no other replica appends one in the meantime.
    fn append(&mut self, line: Line) -> Result<()> {
        let mut text = serde_json::to_string(&line).map_err(corrupt)?;
        text.push('\n');
        // Removes an incomplete line that a killed writer may have left.
        self.file.set_len(self.offset).map_err(unavailable)?;
        self.file.write_all(text.as_bytes()).map_err(unavailable)?;
        self.file.sync_data().map_err(unavailable)?;
        self.offset += text.len() as u64;
        self.state.apply(line)
    }
}

impl State {
    fn apply(&mut self, line: Line) -> Result<()> {
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
        let (kind, at) = (ChangeKind::parse(&change.kind), timestamp(change.at)?);
        let key = ApiKey { revision: Revision::new(change.revision), ..change.key.into_key()? };
        let fields = change.fields.iter().filter_map(|field| ChangedField::parse(field)).collect();
        let context = ChangeContext::new(change.actor, change.request_id, at);
        let event = KeyEvent::of(&key, kind, fields, &context);
        self.revision = change.revision;
        self.events.insert(change.revision, event);
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

    fn find(&self, id: KeyId) -> Result<&ApiKey> {
        self.keys.get(&id).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn creation(
        &self,
        key: ApiKey,
        context: &ChangeContext,
    ) -> Result<(ApiKey, ChangeKind, Vec<ChangedField>)> {
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

    fn update(
        &self,
        next: ApiKey,
        expected: Revision,
        kind: ChangeKind,
    ) -> Result<(ApiKey, ChangeKind, Vec<ChangedField>)> {
        let stored = self.find(next.id)?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(&next)?;
        let fields = stored.changed_fields(&next);
        Ok((next, kind, fields))
    }

    /// Returns the keys of `owner`, or of all owners, newest first.
    fn listed(&self, owner: Option<&OwnerId>) -> Vec<ApiKey> {
        let mut keys: Vec<_> = self
            .keys
            .values()
            .filter(|key| owner.is_none_or(|owner| *owner == key.owner_id))
            .cloned()
            .collect();
        keys.sort_by_key(|key| std::cmp::Reverse((key.created_at, key.id)));
        keys
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({})", self.path.display())
    }
}

#[async_trait]
impl KeyRepository for Journal {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.read(|state| Ok(state.ids.get(hash).and_then(|id| state.keys.get(id)).cloned()))
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.read(|state| Ok(state.keys.get(&id).cloned()))
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.change_one(context, |state| state.creation(key, context))
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.change_one(context, |state| state.update(key, expected, ChangeKind::Updated))
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        let deleted =
            self.change_one(context, |state| Ok((state.find(id)?.clone(), ChangeKind::Deleted, Vec::new())))?;
        Ok(deleted.last_change())
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        let filter = filter.clone();
        match self.read(|state| Ok(state.listed(Some(owner)))) {
            Ok(keys) => {
                let shown = keys.into_iter().filter(move |key| filter.matches(key));
                stream::iter(shown.map(|key| Ok(Listed::Read(key)))).boxed()
            }
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        // A revoked key stays as it is.
        let mut current = None;
        let revoked = self.change(context, |state| {
            let key = state.find(id)?;
            let Some(next) = key.revoked(reason, context.now) else {
                current = Some(key.clone());
                return Ok(Vec::new());
            };
            Ok(vec![state.update(next, key.revision, ChangeKind::Revoked)?])
        })?;
        revoked.into_iter().next().or(current).ok_or_else(|| ErrorKind::NotFound.into())
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let Rotation { replaced, successor } = rotation;
        let changed = self.change(context, |state| {
            let created = state.creation(successor, context)?;
            let expected = replaced.revision;
            Ok(vec![state.update(replaced, expected, ChangeKind::Rotated)?, created])
        })?;
        let [replaced, successor] = changed.try_into().map_err(|_| ErrorKind::Internal)?;
        Ok(Rotation { replaced, successor })
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let keys = self.read(|state| Ok(state.listed(request.owner_id.as_ref())))?;
        let listed = keys.into_iter().map(Listed::Read);
        let is_after = |key: &ListedKey| request.after.is_none_or(|after| after.precedes(key.position()));
        Ok(listed.filter(is_after).take(request.limit).collect())
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        self.read(|state| Ok(state.requests.get(request.as_bytes().as_slice()).map(|(id, _)| *id)))
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        self.read(|state| Ok(state.identity.map(BackendIdentity)))
    }
}

#[async_trait]
impl ChangeFeed for Journal {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.read(|state| {
            let last = after.map_or(ChangeId::NONE, |position| position.last_change(0));
            let first = state.events.keys().next().copied();
            let is_known = match state.events.get(&last.revision.get()) {
                // Another event with the same revision belongs to another journal.
                Some(event) => event.change() == last,
                None => after.is_none() || (last == ChangeId::NONE && first.is_none_or(|first| first == 1)),
            };
            if !is_known {
                return Err(ErrorKind::PositionLost.into());
            }
            let newer = state.events.range((Bound::Excluded(last.revision.get()), Bound::Unbounded));
            let events: Vec<_> = newer.take(limit).map(|(_, event)| event.clone()).collect();
            let unmoved = || after.cloned().unwrap_or_else(FeedPosition::beginning);
            let position = events.last().map_or_else(unmoved, |last| FeedPosition::of(last.change()));
            Ok(Changes { events, unreadable: Vec::new(), position, unanswered: Vec::new() })
        })
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.read(|state| {
            let mut events: Vec<_> = state.events.values().rev().take(limit).cloned().collect();
            events.reverse();
            let newest = state.events.values().next_back();
            let position =
                newest.map_or_else(FeedPosition::beginning, |last| FeedPosition::of(last.change()));
            Ok(RecentChanges { events, unreadable: Vec::new(), position })
        })
    }
}

#[async_trait]
impl AuditTrail for Journal {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.read(|state| {
            let end = request.after.map_or(i64::MAX, |after| after.revision.get());
            let events = state.events.range(..end).rev().map(|(_, event)| event);
            let asked = events
                .filter(|event| request.key_id.is_none_or(|id| id == event.key_id))
                .filter(|event| request.owner_id.as_ref().is_none_or(|owner| *owner == event.owner_id));
            Ok(asked.take(request.limit).cloned().map(Listed::Read).collect())
        })
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        self.write(|state| {
            let newest = state.events.keys().next_back().copied().unwrap_or_default();
            let pruned =
                state.events.iter().take_while(|(revision, event)| event.at < before && **revision < newest);
            let pruned = pruned.count() as u64;
            Ok(((pruned > 0).then_some(Line::Pruned(before.as_micros())), pruned))
        })
    }
}

#[async_trait]
impl UsageStore for Journal {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let used: Vec<_> = usage.iter().map(|(id, at)| (id.as_uuid(), at.as_micros())).collect();
        self.write(|_| Ok(((!used.is_empty()).then_some(Line::Used(used)), ())))
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        self.read(|state| Ok(ids.iter().map(|id| state.used.get(id).copied()).collect()))
    }
}

fn nonce() -> Result<u64> {
    Ok(ChangeId::draw_nonce(&SystemEntropy)?)
}

fn timestamp(micros: i64) -> Result<Timestamp> {
    Timestamp::from_micros(micros).ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "not a time"))
}

fn unavailable(error: std::io::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Unavailable, error)
}

fn corrupt(error: serde_json::Error) -> RepositoryError {
    // The error's text is dropped, because it could quote a record.
    RepositoryError::new(ErrorKind::Corrupt, format!("a line is not valid, in column {}", error.column()))
}

/// Runs a server like `keyvouch serve`, with settings from variables `KEYVOUCH__SECTION__FIELD`.
#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var_os("JOURNAL").map_or_else(|| "keys.jsonl".into(), PathBuf::from);
    let config = Sources { environment: std::env::vars().collect(), ..Sources::default() }.load()?.config;
    let backend = Backend::complete(Journal::open(&path)?);
    let app = App::with_backend(&config, Surroundings::default(), backend).await?;
    for address in app.addresses() {
        println!("{} listens on {address}", app.backend());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    app.run(async move {
        terminate.recv().await;
    })
    .await?;
    Ok(())
}
