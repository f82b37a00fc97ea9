//! Tests of deleting keys.

use super::Subject;
use super::fixture::{NOW, at, context, create, hash, id, key, kind, list, owner, reason, with_hash_of};
use crate::domain::{ApiKey, ChangeContext};
use crate::repository::ErrorKind;

/// The key can't be found by id, hash or owner. Other keys are kept.
pub async fn a_deleted_key_is_not_found(subject: Subject) {
    let kept = create(&subject, key(1)).await;
    let deleted = create(&subject, key(2)).await;
    subject.delete(deleted.id, &context()).await.unwrap();
    assert_eq!(subject.get(deleted.id).await.unwrap(), None);
    assert_eq!(subject.get_by_hash(&deleted.hash).await.unwrap(), None);
    assert_eq!(list(&subject, &owner("owner")).await, [kept]);
}

/// A deleted key, or one that never existed, can't be deleted.
pub async fn a_second_deletion_is_not_found(subject: Subject) {
    create(&subject, key(1)).await;
    subject.delete(id(1), &context()).await.unwrap();
    assert_eq!(kind(subject.delete(id(1), &context()).await), ErrorKind::NotFound);
    assert_eq!(kind(subject.delete(id(2), &context()).await), ErrorKind::NotFound);
}

/// A key that has changed since the expected revision is not deleted.
pub async fn a_conditional_deletion_requires_the_revision(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey { updated_at: at(NOW + 9), ..created.clone() };
    let updated = subject.update(next, created.revision, &context()).await.unwrap();
    let refused = subject.delete_unchanged(id(1), created.revision, &context()).await;
    assert_eq!(kind(refused), ErrorKind::Conflict);
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(updated.clone()));
    let deleted = subject.delete_unchanged(id(1), updated.revision, &context()).await.unwrap();
    assert!(deleted.revision > updated.revision);
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), None);
    let again = subject.delete_unchanged(id(1), updated.revision, &context()).await;
    assert_eq!(kind(again), ErrorKind::NotFound);
}

/// A key string that was revoked does not become valid again because its key was deleted. Reviving it takes
/// an explicit option, which the audit trail records.
pub async fn a_revoked_hash_is_not_revived(subject: Subject) {
    create(&subject, key(1)).await;
    subject.revoke(id(1), reason(""), &context()).await.unwrap();
    subject.delete(id(1), &context()).await.unwrap();
    for other in [key(1), with_hash_of(1, 2)] {
        assert_eq!(kind(subject.create(other.clone(), &context()).await), ErrorKind::RevokedHash);
        let [outcome] =
            <[_; 1]>::try_from(subject.create_many(vec![other], &context()).await.unwrap()).unwrap();
        assert_eq!(kind(outcome), ErrorKind::RevokedHash);
    }
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), None);

    // A key that is created as revoked revives nothing, and deleting it keeps the hash revoked.
    let revoked = key(1).revoked(reason(""), at(NOW)).unwrap();
    create(&subject, revoked).await;
    subject.delete(id(1), &context()).await.unwrap();
    assert_eq!(kind(subject.create(key(1), &context()).await), ErrorKind::RevokedHash);

    let explicit = ChangeContext { may_revive: true, ..context() };
    let revived = subject.create(key(1), &explicit).await.unwrap();
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), Some(revived));
    // The revived key is an ordinary key now.
    subject.delete(id(1), &context()).await.unwrap();
    create(&subject, key(1)).await;
}

/// A deleted key can be created again, and so can another key with its hash.
pub async fn the_id_and_the_hash_can_be_used_again(subject: Subject) {
    create(&subject, key(1)).await;
    subject.delete(id(1), &context()).await.unwrap();
    let again = create(&subject, key(1)).await;
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(again));
    subject.delete(id(1), &context()).await.unwrap();
    let other = create(&subject, with_hash_of(1, 2)).await;
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), Some(other));
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
}
