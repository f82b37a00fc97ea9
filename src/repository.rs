//! Where keys are kept: the contract of every storage backend.
//!
//! # Writing a backend
//!
//! `examples/custom_backend.rs` keeps keys as JSON files in a folder: a whole backend, with a server of its own. This is
//! the way through it, which is that of any backend.
//!
//! 1. **Implement [`KeyRepository`].** [`get_by_hash`](KeyRepository::get_by_hash), [`get`](KeyRepository::get),
//!    [`create`](KeyRepository::create), [`update`](KeyRepository::update), [`delete`](KeyRepository::delete) and
//!    [`list_by_owner`](KeyRepository::list_by_owner) are all that has to be written. The other methods have provided
//!    forms that are sound but not fast; what can't be derived from these six answers [`ErrorKind::NotOffered`].
//!    [`MemoryRepository`] is the reference to read beside the contract.
//! 2. **Store records, decide nothing.** Rules of the domain stay in the domain: a repository asks
//!    [`ApiKey::check_update`](crate::domain::ApiKey::check_update) whether one record may take the place of another, and
//!    knows nothing else about a key. [`StoredKey`] makes a document of it and checks what it reads.
//! 3. **Order the changes.** Every change draws a [`Revision`] larger than all that this hash had before, also after the
//!    key was deleted: the example keeps the last one in a file. A change that was answered is seen by every read from
//!    then on, so whatever makes it durable (there: a synced file and a rename) comes before the answer.
//! 4. **Be honest about failure.** `Ok(None)` says that there is no such key; when you could not look, it is an `Err`,
//!    whose kind callers act on and whose cause goes to the log, without key, hash or password in it.
//! 5. **Make changes recognisable.** A change is identified by its revision and a random nonce ([`ChangeId`]), which the
//!    record and its event carry. A restored copy of the storage uses revisions again, and the nonce tells them apart. A backend
//!    that remembers which request made which key offers [`key_of_request`](KeyRepository::key_of_request), so that creations can
//!    be retried.
//! 6. **Run the suite.** Each sentence of the contract is a clause of `conformance::repository` (feature `conformance`):
//!
//!    ```
//!    # #[cfg(feature = "conformance")]
//!    mod my_backend {
//!        # use keyvouch::repository::{Backend, MemoryRepository};
//!        // An empty backend, and a value that is kept as long as the test runs.
//!        keyvouch::repository_conformance!(required: async { (Backend::new(MemoryRepository::new()), ()) });
//!    }
//!    ```
//! 7. **Offer capabilities.** A backend that reports changes to other replicas, keeps events or keeps last uses implements
//!    [`ChangeFeed`], [`AuditTrail`] or [`UsageStore`], and adds them to its [`Backend`].
//! 8. **Serve it.** [`App::with_backend`](crate::app::App::with_backend) serves any [`Backend`]. All its calls run on the runtime that
//!    made the app, off the threads that answer clients.
//!
//! # Using the SQL backend in a program of your own
//!
//! [`SqlRepository`] needs no server around it: see `examples/list_by_owner.rs`.

mod capabilities;
mod deadline;
mod error;
mod feed;
mod memory;
pub(crate) mod pages;
mod provided;
mod redis;
mod sql;
mod stored_key;
mod unreadable;

use std::fmt::{Debug, Display};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use uuid::Uuid;

pub use capabilities::{AuditTrail, Backend, ChangeFeed, UsageStore};
pub(crate) use deadline::within;
pub use error::{ErrorKind, RepositoryError, Result};
pub(crate) use feed::part_of;
pub use feed::{
    Changes, EventPageRequest, EventPosition, FeedPosition, Listed, ListedEvent, ListedKey, RecentChanges,
    UnreadableEvent,
};
use feed::{FeedItem, Mark, split};
pub use memory::MemoryRepository;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use redis::parse_record as parse_redis_record;
pub use redis::{RedisOptions, RedisRepository};
pub use sql::{PoolOptions, SqlOptions, SqlRepository};
pub use stored_key::StoredKey;

pub use unreadable::unreadable_counts;

use crate::domain::{
    ApiKey, ChangeContext, ChangeId, Entropy, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};
pub use crate::redis::{ClientCertificate, RedisFiles};

/// A stream of keys that reads as it is polled, holds a bounded number of keys and stops when dropped. A record that
/// can't be read is an item of it and doesn't end it.
pub type KeyStream = BoxStream<'static, Result<ListedKey>>;

/// Minimum time for which the key that a request created can be found by the request.
const REQUEST_RETENTION: Duration = Duration::from_hours(24);

/// Tells one installation from another one that shares a cache with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreIdentity(pub Uuid);

impl StoreIdentity {
    /// Draws the identity of a new installation.
    fn draw(entropy: &dyn Entropy) -> Result<Self> {
        let mut random = [0; 16];
        entropy.fill(&mut random)?;
        Ok(Self(uuid::Builder::from_random_bytes(random).into_uuid()))
    }
}

/// Stores keys. `Display` says where, without any credential.
///
/// Every method may fail with [`ErrorKind::Unavailable`], [`ErrorKind::Timeout`], [`ErrorKind::Corrupt`] or
/// [`ErrorKind::Internal`]; the kinds named below come on top. After an error of a write nothing was stored,
/// except after `Timeout` and `Unavailable`, when it is not known.
///
/// A write that was answered is seen by every read that begins afterwards, through any handle of this store, and
/// survives whatever the store is built to survive.
#[async_trait]
pub trait KeyRepository: Send + Sync + Debug + Display {
    /// The key with this hash, revoked and expired ones too. `None` means that there is none.
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>>;

    /// The key with this id, revoked and expired ones too. `None` means that there is none.
    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>>;

    /// What [`get_by_hash`](Self::get_by_hash) says of each of `hashes`, in their order. A record that can't be read does
    /// not hide the others.
    ///
    /// The provided form asks one after the other.
    ///
    /// # Errors
    /// Any but those of a single record.
    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        provided::get_many_by_hash(self, hashes).await
    }

    /// Returns whether [`get_many_by_hash`](Self::get_many_by_hash) costs less than as many concurrent lookups would. Then concurrent
    /// lookups share one call.
    ///
    /// The default implementation returns false.
    fn supports_batching(&self) -> bool {
        false
    }

    /// Stores a new key and returns it with its first revision, which is larger than any that a key with this hash had
    /// before, also one that was deleted. The id [belongs to](crate::domain::KeyId::belongs_to) the hash.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if the id or the hash is taken; the key that has it is not touched. The same if
    /// `context.request` made a key before, and the repository offers [`key_of_request`](Self::key_of_request).
    /// [`ErrorKind::RevokedHash`] if the hash belonged to a key that was revoked and then deleted, unless the new key is
    /// revoked itself or `context.may_revive` is set.
    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey>;

    /// Stores `key` in place of the record with its id and returns it with its new, larger revision.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such key; it is not created. [`ErrorKind::Conflict`] if the stored
    /// revision is not `expected`. [`ErrorKind::Refused`] if
    /// [`ApiKey::check_update`](crate::domain::ApiKey::check_update) refuses it.
    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey>;

    /// Removes the key and its usage, and returns that change. The hash of a revoked key is remembered: see
    /// [`create`](Self::create). A record that can't be read is removed like any other.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such key.
    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId>;

    /// The same, if the stored revision is `expected`.
    ///
    /// The provided form looks first and deletes then: a change in between goes with the key.
    ///
    /// # Errors
    /// Those of [`delete`](Self::delete); [`ErrorKind::Conflict`] if the revision is another one.
    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        provided::delete_unchanged(self, id, expected, context).await
    }

    /// The owner's keys that `filter` shows, newest first, ties in the order of descending ids. None for an unknown
    /// owner. Owners are the same only if their bytes are. Keys that come or go meanwhile may be missed, others not.
    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream;

    /// Revokes the key, whatever its revision, and returns it. A key that was revoked before is returned as it is: its
    /// first revocation stands, and its revision does not change.
    ///
    /// Built-in backends also revoke a record that can't be read. They then return it with the rules' defaults in place of
    /// what breaks a rule.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such key.
    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        provided::revoke(self, id, reason, context).await
    }

    /// Stores both records of `rotation`: creates the successor and updates the replaced key, whose stored revision
    /// has to be the one in `rotation.replaced`. Returns both with their new revisions.
    ///
    /// The provided form creates first and takes the successor back if the update fails; built-in backends make it
    /// one atomic change.
    ///
    /// # Errors
    /// Those of [`create`](Self::create) and [`update`](Self::update); neither record is stored then.
    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        provided::rotate(self, rotation, context).await
    }

    /// Whether [`rotate`](Self::rotate) can store a key with the hash `successor` as the successor of one with the hash `old`:
    /// a store that spreads its keys changes only those at one place at once. About one hash of 64 or more can be
    /// stored; others are drawn until then.
    ///
    /// The provided form says yes.
    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        let _ = (old, successor);
        true
    }

    /// At most `request.limit` of the keys that `request` asks for, and of the records that can't be read, in the order of
    /// [`list_by_owner`](Self::list_by_owner), beginning after the position `request.after`. Reading on after the last
    /// key of each page neither skips nor repeats a key, while others come and go. A page with fewer keys than the limit is the last.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] by the provided form when no owner is named.
    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        provided::list_page(self, request).await
    }

    /// Stores new keys and says of each, in their order, what [`create`](Self::create) would have said. A key that can't
    /// be stored does not hinder the others.
    ///
    /// The provided form creates one after the other.
    ///
    /// # Errors
    /// Any but those of a single key; then it is not known which of them were stored.
    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        provided::create_many(self, keys, context).await
    }

    /// Returns the key that `request` made, if [`create`](Self::create) or [`rotate`](Self::rotate) had it in its context
    /// within the last 24 hours; it may know of older ones. `None`: it made none.
    /// The key may have been deleted meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] by the provided form: then retries can't be recognised.
    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let _ = request;
        Err(RepositoryError::not_offered("recognising the retry of a request"))
    }

    /// Returns whether a key with the hash `hash` can be created for `request`: a store that spreads its keys remembers a
    /// request only where the key is. About one hash of 64 or more can; others are drawn until then.
    ///
    /// The provided form says yes.
    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        let _ = (request, hash);
        true
    }

    /// Returns what tells this installation's data from that of another one; the same for all replicas and restarts. Writes
    /// it when it is asked for the first time.
    ///
    /// The provided form has none. Then replicas share a Redis cache by its prefix alone.
    async fn identity(&self) -> Result<Option<StoreIdentity>> {
        Ok(None)
    }

    /// Checks, without making a change, whether the backend accepts changes. [`ping`](Self::ping) checks reads.
    ///
    /// The default implementation succeeds.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if the backend rejects changes, for example because it is read-only or out of memory.
    async fn check_changes(&self) -> Result<()> {
        Ok(())
    }

    /// Succeeds if the store can answer.
    ///
    /// The provided form looks up a key that can't exist.
    async fn ping(&self) -> Result<()> {
        self.get_by_hash(&KeyHash::from_bytes([0; KeyHash::BYTES])).await.map(drop)
    }

    /// Closes the connections, at the end of the process. Calls that follow may fail with [`ErrorKind::Unavailable`].
    ///
    /// The default implementation does nothing.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Which page of a listing to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Only keys of this owner. `None`: keys of all owners.
    pub owner_id: Option<OwnerId>,
    /// Read on after this position. `None`: begin with the newest key.
    pub after: Option<PagePosition>,
    /// Maximum number of keys.
    pub limit: usize,
}

/// A place in a listing: right behind the key that was made then and has this id. That key need not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePosition {
    /// The key's time of creation.
    pub created_at: Timestamp,
    /// The key's id.
    pub id: KeyId,
}

impl PagePosition {
    /// The place right behind `key`.
    #[must_use]
    pub fn of(key: &ApiKey) -> Self {
        Self { created_at: key.created_at, id: key.id }
    }

    /// Returns whether `other` comes after this place, newest first.
    #[must_use]
    pub fn precedes(&self, other: Self) -> bool {
        (other.created_at, other.id) < (self.created_at, self.id)
    }
}
