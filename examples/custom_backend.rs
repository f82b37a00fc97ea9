//! A custom backend that stores each key as a JSON file in a folder, and a server that uses it:
//!
//! ```sh
//! KEYS_FOLDER=keys cargo run --example custom_backend
//! ```
//!
//! The backend is durable. Changes are synced before they are acknowledged, files are replaced atomically,
//! and a lock keeps a second process out. The documentation of `keyvouch::repository` explains it step by
//! step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use keyvouch::app::{App, Surroundings};
use keyvouch::config::Sources;
use keyvouch::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision, Timestamp,
};
use keyvouch::repository::{
    Backend, ErrorKind, KeyRepository, KeyStream, Listed, RepositoryError, Result, StoredKey,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

/// Keys as files `<id>.json` in a folder that only this process uses.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked while files change.
    index: Arc<Mutex<Index>>,
    /// File lock, held for as long as the folder is used.
    _lock: Arc<File>,
}

/// Index of the keys by attributes that never change.
#[derive(Debug, Default)]
struct Index {
    ids: HashMap<KeyHash, KeyId>,
    owned: BTreeMap<OwnerId, BTreeSet<(Timestamp, KeyId)>>,
}

impl Index {
    /// Adds `key`. Returns the id that had its hash before.
    fn insert(&mut self, key: &ApiKey) -> Option<KeyId> {
        self.owned.entry(key.owner_id.clone()).or_default().insert((key.created_at, key.id));
        self.ids.insert(key.hash, key.id)
    }

    fn remove(&mut self, key: &ApiKey) {
        self.ids.remove(&key.hash);
        if let Some(owned) = self.owned.get_mut(&key.owner_id) {
            owned.remove(&(key.created_at, key.id));
        }
    }
}

impl Folder {
    /// Opens the folder `path`, and creates it if it does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(unavailable)?;
        let lock = File::create(path.join("lock")).map_err(unavailable)?;
        lock.try_lock().map_err(|error| unavailable(error.into()))?;
        let folder = Self { path: path.to_owned(), index: Arc::default(), _lock: Arc::new(lock) };
        for entry in fs::read_dir(path).map_err(unavailable)? {
            let name = entry.map_err(unavailable)?.file_name();
            let id = name.to_str().and_then(|name| KeyId::parse("id", name.strip_suffix(".json")?).ok());
            if let Some(key) = id.map(|id| folder.read_key(id)).transpose()?.flatten()
                && folder.index().insert(&key).is_some()
            {
                return Err(RepositoryError::new(ErrorKind::Corrupt, "two files hold the same hash"));
            }
        }
        Ok(folder)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: KeyId) -> PathBuf {
        self.path.join(format!("{id}.json"))
    }

    /// Returns the file that marks a hash as one of a key that was revoked and deleted.
    fn revoked_file(&self, hash: &KeyHash) -> PathBuf {
        self.path.join(format!("{}.revoked", hash.to_hex()))
    }

    fn read_key(&self, id: KeyId) -> Result<Option<ApiKey>> {
        read(&self.file(id))?.map(StoredKey::into_key).transpose()
    }

    /// Stores `key` with the next revision.
    fn write_key(&self, key: ApiKey) -> Result<ApiKey> {
        let key = ApiKey { revision: self.next_revision()?, ..key };
        write(&self.file(key.id), &StoredKey::new(&key))?;
        Ok(key)
    }

    /// Returns the next revision. A file has one counter for all keys, which never decreases, whatever is
    /// deleted.
    fn next_revision(&self) -> Result<Revision> {
        let file = self.path.join("revision");
        let next = read::<i64>(&file)?.unwrap_or(0) + 1;
        write(&file, &next)?;
        Ok(Revision::new(next))
    }
}

#[async_trait]
impl KeyRepository for Folder {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let id = self.index().ids.get(hash).copied();
        id.map_or(Ok(None), |id| self.read_key(id))
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.read_key(id)
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let mut index = self.index();
        if index.ids.contains_key(&key.hash) || self.read_key(key.id)?.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let revoked = self.revoked_file(&key.hash);
        if key.revocation.is_none() && revoked.exists() {
            if !context.may_revive {
                return Err(ErrorKind::RevokedHash.into());
            }
            fs::remove_file(revoked).and_then(|()| sync(&self.path)).map_err(unavailable)?;
        }
        let id = key.id;
        let created = self.write_key(key);
        // Also indexed if the write failed, because the file may exist and then has to be found.
        if let Some(stored) = self.read_key(id)? {
            index.insert(&stored);
        }
        created
    }

    async fn update(&self, key: ApiKey, expected: Revision, _: &ChangeContext) -> Result<ApiKey> {
        let _changing = self.index();
        let stored = self.read_key(key.id)?.ok_or(ErrorKind::NotFound)?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(&key)?;
        self.write_key(key)
    }

    async fn delete(&self, id: KeyId, _: &ChangeContext) -> Result<ChangeId> {
        let mut index = self.index();
        let key = self.read_key(id)?.ok_or(ErrorKind::NotFound)?;
        let revision = self.next_revision()?;
        if key.revocation.is_some() {
            // Written before the key is deleted, so that a revoked key string stays revoked even after a
            // crash in between.
            write(&self.revoked_file(&key.hash), &revision.get())?;
        }
        fs::remove_file(self.file(id)).and_then(|()| sync(&self.path)).map_err(unavailable)?;
        index.remove(&key);
        Ok(ChangeId::of_revision(revision))
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        let ids = self.index().owned.get(owner).cloned().unwrap_or_default();
        let (folder, filter) = (self.clone(), filter.clone());
        // Files are read while the stream is, so a key that was deleted in the meantime is skipped.
        let keys = ids.into_iter().rev().filter_map(move |(_, id)| folder.read_key(id).transpose());
        let listed = keys.filter(move |key| key.as_ref().map_or(true, |key| filter.matches(key)));
        stream::iter(listed.map(|key| key.map(Listed::Read))).boxed()
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({})", self.path.display())
    }
}

/// Returns the content of `file`, or `None` if it does not exist.
fn read<T: DeserializeOwned>(file: &Path) -> Result<Option<T>> {
    match fs::read(file) {
        // The parser's message is dropped, because it could quote the file.
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| {
            RepositoryError::new(ErrorKind::Corrupt, "a file is not the JSON that it should be")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable(error)),
    }
}

/// Replaces `file` atomically. The content is durable when the function returns.
fn write(file: &Path, content: &impl Serialize) -> Result<()> {
    let bytes =
        serde_json::to_vec(content).map_err(|error| RepositoryError::new(ErrorKind::Internal, error))?;
    let draft = file.with_extension("draft");
    let written = File::create(&draft).and_then(|mut draft| {
        draft.write_all(&bytes)?;
        draft.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&draft, file));
    renamed.and_then(|()| sync(file.parent().unwrap_or(file))).map_err(unavailable)
}

/// Makes changes of names in `folder` durable.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn unavailable(error: io::Error) -> RepositoryError {
    RepositoryError::new(ErrorKind::Unavailable, error)
}

/// Runs a server like `keyvouch serve`, with settings from variables `KEYVOUCH__SECTION__FIELD`.
#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example talks to its reader")]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let path = std::env::var_os("KEYS_FOLDER").map_or_else(|| "keys".into(), PathBuf::from);
    let environment = std::env::vars().collect();
    let settings = Sources { environment, ..Sources::default() }.load()?.settings;
    let backend = Backend::new(Folder::open(&path)?);
    let app = App::with_backend(&settings, Surroundings::default(), backend).await?;
    for address in app.addresses() {
        println!("{} listens on {address}", app.backend());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    app.run(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await?;
    Ok(())
}
