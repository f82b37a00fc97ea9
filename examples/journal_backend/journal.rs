//! The file of a journal: locking it, reading new lines and appending lines.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use keyvouch::domain::{ApiKey, ChangeContext, ChangeId, ChangeKind, KeyEvent, Revision, SystemEntropy};
use keyvouch::repository::{ErrorKind, RepositoryError, Result, StoredEvent, StoredKey};
use uuid::Uuid;

use super::state::{Change, Line, PlannedChange, State};

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
    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.file.lock_shared().map_err(unavailable)?;
        let outcome = shared.catch_up().and_then(|()| read(&shared.state));
        shared.file.unlock().map_err(unavailable)?;
        outcome
    }

    /// Appends the line that `decide` returns. No other replica can append one in the meantime.
    pub(super) fn write<T>(&self, decide: impl FnOnce(&State) -> Result<(Option<Line>, T)>) -> Result<T> {
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
    pub(super) fn change(
        &self,
        context: &ChangeContext,
        decide: impl FnOnce(&State) -> Result<Vec<PlannedChange>>,
    ) -> Result<Vec<ApiKey>> {
        self.write(|state| {
            let (mut changes, mut records) = (Vec::new(), Vec::new());
            for (revision, (mut key, kind, fields)) in (state.revision + 1..).zip(decide(state)?) {
                (key.revision, key.nonce) = (Revision::new(revision), nonce()?);
                let event = KeyEvent::of(&key, kind, fields, context);
                let request = context.request.filter(|_| kind == ChangeKind::Created);
                changes.push(Change {
                    key: StoredKey::new(&key),
                    event: StoredEvent::new(&event),
                    request: request.map(|request| request.as_bytes().to_vec()),
                });
                records.push(key);
            }
            Ok(((!changes.is_empty()).then_some(Line::Changes(changes)), records))
        })
    }

    /// Makes one change, and returns the record with its revision.
    pub(super) fn change_one(
        &self,
        context: &ChangeContext,
        decide: impl FnOnce(&State) -> Result<PlannedChange>,
    ) -> Result<ApiKey> {
        let changed = self.change(context, |state| Ok(vec![decide(state)?]))?;
        changed.into_iter().next().ok_or_else(|| ErrorKind::Internal.into())
    }
}

impl Shared {
    /// Applies the lines that were appended since the last call.
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

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({})", self.path.display())
    }
}

fn nonce() -> Result<u64> {
    Ok(ChangeId::draw_nonce(&SystemEntropy)?)
}

fn unavailable(error: io::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Unavailable, error)
}

fn corrupt(error: serde_json::Error) -> RepositoryError {
    // The error's text is dropped, because it could quote a record.
    RepositoryError::new(ErrorKind::Corrupt, format!("a line is not valid, in column {}", error.column()))
}
