//! The storage contract that every backend implements, and the built-in backends.
//!
//! # Writing a backend
//!
//! `examples/custom_backend.rs` stores keys as JSON files in a folder. It is a complete backend with a server
//! of its own. The following steps apply to any backend.
//!
//! 1. **Implement [`KeyRepository`].** Only [`get_by_hash`](KeyRepository::get_by_hash),
//!    [`get`](KeyRepository::get), [`create`](KeyRepository::create), [`update`](KeyRepository::update),
//!    [`delete`](KeyRepository::delete) and [`list_by_owner`](KeyRepository::list_by_owner) are required. The
//!    other methods have default implementations, which are correct but not fast. Methods that can't be
//!    derived from these six fail with [`ErrorKind::NotOffered`] by default. [`MemoryRepository`] is the
//!    reference implementation to read beside the contract.
//! 2. **Store records, and leave decisions to the domain.** A repository calls
//!    [`ApiKey::check_update`](crate::domain::ApiKey::check_update) to check whether one record may replace
//!    another, and has no other rules about keys. [`StoredKey`] converts a key into a document, and checks
//!    documents that are read.
//! 3. **Order the changes.** Every change is assigned a [`Revision`] larger than all earlier ones of its
//!    hash, even after the key was deleted. The example stores the last one in a file. Every read that begins
//!    after a change was acknowledged has to see the change. So make the change durable before it is
//!    acknowledged. The example syncs a file and renames it.
//! 4. **Report failures as failures.** `Ok(None)` means that the key does not exist. If the lookup was not
//!    possible, return an `Err`. Callers act on its kind. Its cause is logged, so it must not contain a key,
//!    a hash or a password.
//! 5. **Make changes identifiable.** A change is identified by its revision and a random nonce
//!    ([`ChangeId`]), which the record and its event contain. A restored copy of the storage assigns the same
//!    revisions again, and the nonce distinguishes them. A backend that records which request created which
//!    key offers [`key_of_request`](KeyRepository::key_of_request), so that creations can be retried.
//! 6. **Run the suite.** Each rule of the contract has a test in `conformance::repository` (feature
//!    `conformance`):
//!
//!    ```
//!    # #[cfg(feature = "conformance")]
//!    mod my_backend {
//!        # use keyvouch::repository::{Backend, MemoryRepository};
//!        // An empty backend, and a value that is kept as long as the test runs.
//!        keyvouch::repository_conformance!(required: async { (Backend::new(MemoryRepository::new()), ()) });
//!    }
//!    ```
//! 7. **Offer capabilities.** A backend that reports changes to other replicas, stores events or records last
//!    uses implements [`ChangeFeed`], [`AuditTrail`] or [`UsageStore`], and adds them to its [`Backend`].
//! 8. **Serve it.** [`App::with_backend`](crate::app::App::with_backend) serves any [`Backend`]. All its
//!    calls run on the runtime that created the app, not on the threads that serve clients.
//!
//! # Using the SQL backend in another program
//!
//! [`SqlRepository`] can be used without a server: see `examples/list_by_owner.rs`.

mod capabilities;
mod deadline;
mod error;
mod feed;
mod memory;
pub(crate) mod pages;
mod provided;
mod redis;
mod sql;
mod stored;
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
pub use stored::{StoredEvent, StoredKey};

pub use unreadable::unreadable_counts;

use crate::domain::{
    ApiKey, ChangeContext, ChangeId, Entropy, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};
pub use crate::redis::{ClientCertificate, RedisFiles};

/// A stream of keys. It reads only while it is polled, buffers a bounded number of keys, and stops reading
/// when it is dropped. A record that can't be read is an item of the stream and does not end it.
pub type KeyStream = BoxStream<'static, Result<ListedKey>>;

/// Minimum time for which the key that a request created can be found by that request.
const REQUEST_RETENTION: Duration = Duration::from_hours(24);

/// Identifies one installation among those that share a cache.
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

/// Stores keys. `Display` shows where they are stored, without any credential.
///
/// Every method may fail with [`ErrorKind::Unavailable`], [`ErrorKind::Timeout`], [`ErrorKind::Corrupt`] or
/// [`ErrorKind::Internal`], in addition to the kinds that its documentation lists. After a write that failed,
/// nothing was stored, except that the outcome is unknown after `Timeout`, `Unavailable` and `Internal`, unless
/// the error is declared [`unapplied`](RepositoryError::unapplied).
///
/// An acknowledged write is seen by every read that begins afterwards, through any handle of the same
/// backend. It survives all failures that the backend is designed to survive.
#[async_trait]
pub trait KeyRepository: Send + Sync + Debug + Display {
    /// Returns the key with this hash, even if it is revoked or expired. `None` means that it does not exist.
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>>;

    /// Returns the key with this id, even if it is revoked or expired. `None` means that it does not exist.
    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>>;

    /// Looks up each of `hashes` and returns the outcomes of [`get_by_hash`](Self::get_by_hash) in the same
    /// order. A record that can't be read does not affect the other outcomes.
    ///
    /// The default implementation looks up one hash after the other.
    ///
    /// # Errors
    /// Any error that is not specific to one record.
    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        provided::get_many_by_hash(self, hashes).await
    }

    /// Returns whether [`get_many_by_hash`](Self::get_many_by_hash) costs less than the same number of
    /// concurrent lookups. If so, concurrent lookups share one call.
    ///
    /// The default implementation returns false.
    fn supports_batching(&self) -> bool {
        false
    }

    /// Stores a new key and returns it with its first revision. The revision is larger than any that a key
    /// with this hash had before, even one that was deleted. The id has to [belong
    /// to](crate::domain::KeyId::belongs_to) the hash.
    ///
    /// # Errors
    /// - [`ErrorKind::AlreadyExists`] if a key with the same id or hash exists, which is not changed, or if
    ///   `context.request` created a key before and the repository offers
    ///   [`key_of_request`](Self::key_of_request).
    /// - [`ErrorKind::RevokedHash`] if the hash belonged to a key that was revoked and then deleted, unless
    ///   the new key is itself revoked or `context.may_revive` is set.
    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey>;

    /// Replaces the record with the id of `key` by `key`, and returns it with its new, larger revision.
    ///
    /// # Errors
    /// - [`ErrorKind::NotFound`] if the key does not exist. It is not created.
    /// - [`ErrorKind::Conflict`] if the stored revision is not `expected`.
    /// - [`ErrorKind::Refused`] if [`ApiKey::check_update`](crate::domain::ApiKey::check_update) rejects the
    ///   update.
    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey>;

    /// Deletes the key and its usage, and returns the identity of that change. The hash of a revoked key is
    /// remembered: see [`create`](Self::create). A record that can't be read is deleted like any other.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the key does not exist.
    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId>;

    /// Deletes the key like [`delete`](Self::delete), but only if the stored revision is `expected`.
    ///
    /// The default implementation reads the key and then deletes it. It is not atomic: a change between the
    /// two steps is lost with the key.
    ///
    /// # Errors
    /// The errors of [`delete`](Self::delete), and [`ErrorKind::Conflict`] if the stored revision is not
    /// `expected`.
    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        provided::delete_unchanged(self, id, expected, context).await
    }

    /// Streams the owner's keys that `filter` selects, newest first. Keys created at the same time are in
    /// descending order of their ids. The stream is empty for an unknown owner. Owners are compared byte by
    /// byte. Keys that are created or deleted while the stream is read may be missed, but no others.
    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream;

    /// Revokes the key, whatever its revision, and returns it. This is idempotent: a key that was revoked
    /// before is returned with its first revocation and an unchanged revision.
    ///
    /// Built-in backends also revoke a record that can't be read. They then return it with the domain's
    /// defaults in place of invalid values.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the key does not exist.
    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        provided::revoke(self, id, reason, context).await
    }

    /// Stores both records of `rotation`: it creates the successor and updates the replaced key, whose stored
    /// revision has to equal the one in `rotation.replaced`. Returns both with their new revisions.
    ///
    /// The default implementation creates the successor first, and deletes it if the update fails. Built-in
    /// backends make one atomic change.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create) and [`update`](Self::update). Neither record is stored then.
    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        provided::rotate(self, rotation, context).await
    }

    /// Returns whether [`rotate`](Self::rotate) can store a key with the hash `successor` as the successor of
    /// a key with the hash `old`. A backend that distributes keys over shards can only change keys of one
    /// shard atomically. At least about one of 64 random hashes has to be possible; the caller draws hashes
    /// until one is.
    ///
    /// The default implementation returns true.
    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        let _ = (old, successor);
        true
    }

    /// Returns at most `request.limit` of the keys that `request` selects, in the order of
    /// [`list_by_owner`](Self::list_by_owner), beginning after the position `request.after`. Records that
    /// can't be read are included. Continuing after the last key of each page neither skips nor repeats a
    /// key, even if keys are created or deleted meanwhile. A page with fewer items than the limit is the
    /// last.
    ///
    /// The default implementation is limited to one owner.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] from the default implementation if `request` has no owner.
    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        provided::list_page(self, request).await
    }

    /// Stores new keys and returns the outcome of [`create`](Self::create) for each, in the same order. A key
    /// that can't be stored does not affect the other keys.
    ///
    /// The default implementation creates one key after the other.
    ///
    /// # Errors
    /// Any error that is not specific to one key. It is then unknown which keys were stored.
    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        provided::create_many(self, keys, context).await
    }

    /// Returns the id of the key that `request` created, if [`create`](Self::create) or
    /// [`rotate`](Self::rotate) had it in its context within the last 24 hours. Older requests may be found,
    /// too. `None` means that the request created no key. The key may have been deleted meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::NotOffered`] from the default implementation: retries can't be recognised.
    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let _ = request;
        Err(RepositoryError::not_offered("request ids"))
    }

    /// Returns whether a key with the hash `hash` can be created for `request`. A backend that distributes
    /// keys over shards stores a request only in the shard of its key. At least about one of 64 random hashes
    /// has to be possible; the caller draws hashes until one is.
    ///
    /// The default implementation returns true.
    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        let _ = (request, hash);
        true
    }

    /// Returns the identity of this installation's data, which distinguishes it from other installations. It
    /// is the same for all replicas, and after restarts. The first call creates and stores it.
    ///
    /// The default implementation returns `None`. Only the prefix then separates the entries of installations
    /// that share a Redis cache.
    async fn identity(&self) -> Result<Option<StoreIdentity>> {
        Ok(None)
    }

    /// Checks, without making a change, whether the backend accepts changes. [`ping`](Self::ping) checks
    /// reads.
    ///
    /// The default implementation succeeds.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] if the backend rejects changes, for example because it is read-only or out
    /// of memory.
    async fn check_changes(&self) -> Result<()> {
        Ok(())
    }

    /// Checks whether the backend answers reads.
    ///
    /// The default implementation looks up a key that can't exist.
    async fn ping(&self) -> Result<()> {
        self.get_by_hash(&KeyHash::from_bytes([0; KeyHash::BYTES])).await.map(drop)
    }

    /// Closes the connections, at the end of the process. Subsequent calls may fail with
    /// [`ErrorKind::Unavailable`].
    ///
    /// The default implementation does nothing.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Selects a page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Selects keys of this owner. `None` selects keys of all owners.
    pub owner_id: Option<OwnerId>,
    /// The position after which the page begins. `None` begins with the newest key.
    pub after: Option<PagePosition>,
    /// Maximum number of keys.
    pub limit: usize,
}

/// A position in a listing, directly after the key with this creation time and id. The key need not exist any
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePosition {
    /// The key's creation time.
    pub created_at: Timestamp,
    /// The key's id.
    pub id: KeyId,
}

impl PagePosition {
    /// Returns the position directly after `key`.
    #[must_use]
    pub fn of(key: &ApiKey) -> Self {
        Self { created_at: key.created_at, id: key.id }
    }

    /// Returns whether `other` comes after this position in a listing, newest first.
    #[must_use]
    pub fn precedes(&self, other: Self) -> bool {
        (other.created_at, other.id) < (self.created_at, self.id)
    }
}
