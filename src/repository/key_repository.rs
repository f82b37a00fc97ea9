//! The contract that every backend implements.

use std::fmt::{Debug, Display};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

#[cfg(doc)]
use super::ErrorKind;
use super::{BackendIdentity, ListedKey, PageRequest, RepositoryError, Result, defaults};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation,
};

/// A stream of keys. It reads only while it is polled, buffers a bounded number of keys, and stops reading
/// when it is dropped. A record that can't be read is an item of the stream and does not end it.
pub type KeyStream = BoxStream<'static, Result<ListedKey>>;

/// Minimum time for which the key that a request created can be found by that request.
pub(super) const REQUEST_RETENTION: Duration = Duration::from_hours(24);

/// Stores keys. `Display` shows where they are stored, without any credential.
///
/// Every method may fail with [`ErrorKind::Unavailable`], [`ErrorKind::Timeout`], [`ErrorKind::Corrupt`] or
/// [`ErrorKind::Internal`], in addition to the kinds that its documentation lists. After a write that failed,
/// nothing was stored, except that the outcome is unknown after `Timeout`, `Unavailable` and `Internal`, unless
/// the error is declared [`unapplied`](RepositoryError::unapplied).
///
/// # Cancellation
///
/// Dropping the future of a read has no effect. After the future of a write was dropped, it is unknown whether
/// the write was made, as after `Timeout`. The server therefore runs each write in a task that it never aborts.
/// No method leaves a write partially made, except where the documentation of a default implementation says so.
///
/// # Consistency
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
        defaults::get_many_by_hash(self, hashes).await
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
        defaults::delete_unchanged(self, id, expected, context).await
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
        defaults::revoke(self, id, reason, context).await
    }

    /// Stores both records of `rotation`: it creates the successor and updates the replaced key, whose stored
    /// revision has to equal the one in `rotation.replaced`. Returns both with their new revisions.
    ///
    /// The default implementation creates the successor first, and deletes it if the update fails. If the
    /// outcome of the update is unknown, or the future is dropped, the successor remains. Nobody has its secret.
    /// Built-in backends make one atomic change.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create) and [`update`](Self::update). Neither record is stored then.
    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        defaults::rotate(self, rotation, context).await
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
        defaults::list_page(self, request).await
    }

    /// Stores new keys and returns the outcome of [`create`](Self::create) for each, in the same order. A key
    /// that can't be stored does not affect the other keys.
    ///
    /// The default implementation creates one key after the other.
    ///
    /// # Errors
    /// Any error that is not specific to one key. It is then unknown which keys were stored.
    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        defaults::create_many(self, keys, context).await
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
    ///
    /// # Errors
    /// The errors of a read, and on the first call those of a write.
    async fn identity(&self) -> Result<Option<BackendIdentity>> {
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
    ///
    /// # Errors
    /// The error of a read.
    async fn ping(&self) -> Result<()> {
        self.get_by_hash(&KeyHash::from_bytes([0; KeyHash::BYTES])).await.map(drop)
    }

    /// Closes the connections, at the end of the process. Subsequent calls may fail with
    /// [`ErrorKind::Unavailable`].
    ///
    /// The default implementation does nothing.
    ///
    /// # Errors
    /// A connection could not be closed in order. It is closed with the process nevertheless.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
