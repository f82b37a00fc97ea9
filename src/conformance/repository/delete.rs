//! Deleting keys.

use super::Subject;
use super::fixture::{NOW, at, context, create, hash, id, key, kind, list, owner, with_hash_of};
use crate::domain::ApiKey;
use crate::repository::{ErrorKind, KeyRepository as _};

/// Neither id nor hash nor owner leads to it any more; other keys stay.
pub async fn a_deleted_key_is_gone_everywhere(subject: Subject) {
    let kept = create(&subject, key(1)).await;
    let deleted = create(&subject, key(2)).await;
    subject.delete(deleted.id, &context()).await.unwrap();
    assert_eq!(subject.get(deleted.id).await.unwrap(), None);
    assert_eq!(subject.get_by_hash(&deleted.hash).await.unwrap(), None);
    assert_eq!(list(&subject, &owner("owner")).await, [kept]);
}

/// What is gone can't be deleted, and what never was neither.
pub async fn a_second_delete_finds_nothing(subject: Subject) {
    create(&subject, key(1)).await;
    subject.delete(id(1), &context()).await.unwrap();
    assert_eq!(kind(subject.delete(id(1), &context()).await), ErrorKind::NotFound);
    assert_eq!(kind(subject.delete(id(2), &context()).await), ErrorKind::NotFound);
}

/// Not if it changed since the expected revision.
pub async fn a_changed_key_is_not_deleted_as_unchanged(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey { updated_at: at(NOW + 9), ..created.clone() };
    let updated = subject.update(next, created.revision, &context()).await.unwrap();
    let refused = subject.delete_unchanged(id(1), created.revision, &context()).await;
    assert_eq!(kind(refused), ErrorKind::Conflict);
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(updated.clone()));
    let deleted = subject.delete_unchanged(id(1), updated.revision, &context()).await.unwrap();
    assert!(deleted > updated.revision);
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), None);
    let again = subject.delete_unchanged(id(1), updated.revision, &context()).await;
    assert_eq!(kind(again), ErrorKind::NotFound);
}

/// The same key can be made again, and another one with the old hash.
pub async fn id_and_hash_are_free_again(subject: Subject) {
    create(&subject, key(1)).await;
    subject.delete(id(1), &context()).await.unwrap();
    let again = create(&subject, key(1)).await;
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(again));
    subject.delete(id(1), &context()).await.unwrap();
    let other = create(&subject, with_hash_of(1, 2)).await;
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), Some(other));
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
}
