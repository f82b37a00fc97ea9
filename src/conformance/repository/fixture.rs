//! Keys for the tests.

use std::sync::Arc;

use futures_util::TryStreamExt as _;

use super::Subject;
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, Description, KeyFilter, KeyHash, KeyId, KeyName, KeyPrefix, Metadata,
    OwnerId, Revision, RevokeReason, ScopeSet, Timestamp,
};
use crate::repository::{AuditTrail, ChangeFeed, ErrorKind, Listed, ListedKey, RepositoryError, UsageStore};

/// Time of most changes: 2026-01-01 and some microseconds.
pub(super) const NOW: i64 = 1_767_225_600_123_456;

pub(super) fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).unwrap()
}

pub(in crate::conformance) fn context() -> ChangeContext {
    ChangeContext::new("token:conformance", "request-1", at(NOW))
}

pub(super) fn owner(text: &str) -> OwnerId {
    OwnerId::parse("owner_id", text).unwrap()
}

pub(super) fn reason(text: &str) -> RevokeReason {
    RevokeReason::parse("reason", text).unwrap()
}

pub(super) fn all() -> KeyFilter {
    KeyFilter::all(at(NOW))
}

/// Returns the hash of key `number`.
pub(in crate::conformance) fn hash(number: u32) -> KeyHash {
    KeyHash::of(&format!("secret of key {number}"))
}

/// Returns the id of key `number`. A larger number has a larger id.
pub(super) fn id(number: u32) -> KeyId {
    let mut id = uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + (u128::from(number) << 8))
        .into_bytes();
    id[15] = hash(number).as_bytes()[0];
    KeyId::from_uuid(uuid::Uuid::from_bytes(id))
}

/// Returns key `number`: an active key of the owner `owner`, created `number` microseconds after [`NOW`].
pub(in crate::conformance) fn key(number: u32) -> ApiKey {
    let created_at = at(NOW + i64::from(number));
    ApiKey {
        id: id(number),
        hash: hash(number),
        prefix: KeyPrefix::parse("prefix", "kv_").unwrap(),
        name: KeyName::parse("name", format!("key {number}")).unwrap(),
        description: Description::default(),
        owner_id: owner("owner"),
        scopes: ScopeSet::default(),
        metadata: Metadata::default(),
        created_at,
        updated_at: created_at,
        expires_at: None,
        revocation: None,
        rotated_from: None,
        replaced_by: None,
        revision: Revision::NONE,
        nonce: ChangeId::UNKNOWN_NONCE,
    }
}

/// Returns key `number` with the id of key `other`, and a hash that this id belongs to.
pub(super) fn with_id_of(other: u32, number: u32) -> ApiKey {
    let mut bytes = *hash(number).as_bytes();
    bytes[0] = hash(other).as_bytes()[0];
    ApiKey { id: id(other), hash: KeyHash::from_bytes(bytes), ..key(number) }
}

/// Returns key `number` with the hash of key `other`, and an id that belongs to that hash.
pub(super) fn with_hash_of(other: u32, number: u32) -> ApiKey {
    let mut bytes = id(number).as_uuid().into_bytes();
    bytes[15] = hash(other).as_bytes()[0];
    ApiKey { id: KeyId::from_uuid(uuid::Uuid::from_bytes(bytes)), hash: hash(other), ..key(number) }
}

/// Returns the change feed.
pub(super) fn feed(subject: &Subject) -> Arc<dyn ChangeFeed> {
    subject.feed.clone().unwrap()
}

/// Returns the audit trail.
pub(super) fn audit(subject: &Subject) -> Arc<dyn AuditTrail> {
    subject.audit.clone().unwrap()
}

/// Returns the usage store.
pub(super) fn usage_store(subject: &Subject) -> Arc<dyn UsageStore> {
    subject.usage.clone().unwrap()
}

/// Creates `key`, and returns it as stored.
pub(super) async fn create(subject: &Subject, key: ApiKey) -> ApiKey {
    subject.create(key, &context()).await.unwrap()
}

/// Returns all keys of `owner`, in the order of the stream.
pub(super) async fn list(subject: &Subject, owner: &OwnerId) -> Vec<ApiKey> {
    let listed: Vec<ListedKey> = subject.list_by_owner(owner, &all()).try_collect().await.unwrap();
    readable(listed)
}

/// Returns the keys of a listing. Panics if one is unreadable.
pub(super) fn readable<T: std::fmt::Debug, P: std::fmt::Debug>(listed: Vec<Listed<T, P>>) -> Vec<T> {
    let read = |listed| match listed {
        Listed::Read(item) => item,
        Listed::Unreadable(place) => panic!("unreadable: {place:?}"),
    };
    listed.into_iter().map(read).collect()
}

/// Returns the kind of the error. Panics if `outcome` is not an error.
pub(super) fn kind<T: std::fmt::Debug>(outcome: Result<T, RepositoryError>) -> ErrorKind {
    outcome.unwrap_err().kind()
}

/// Runs `count` concurrent calls, and returns their outcomes.
pub(super) async fn at_once<T, F>(subject: &Subject, count: u32, call: impl Fn(Subject, u32) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut tasks = Vec::new();
    for number in 0..count {
        tasks.push(tokio::spawn(call(subject.clone(), number)));
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}
