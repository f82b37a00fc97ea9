//! Tests of revoking keys.

use super::Subject;
use super::fixture::{NOW, at, at_once, context, create, id, key, kind, list, owner, reason};
use crate::domain::{ApiKey, ChangeContext, Revocation};
use crate::repository::ErrorKind;

/// A revoked key is kept, with the time and the reason of the revocation.
pub async fn a_revoked_key_is_kept_and_stays_revoked(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let revoked = subject.revoke(created.id, reason("leaked"), &context()).await.unwrap();
    assert_eq!(revoked.revocation, Some(Revocation { at: at(NOW), reason: reason("leaked") }));
    assert!(revoked.revision > created.revision);
    assert_eq!(subject.get_by_hash(&created.hash).await.unwrap(), Some(revoked.clone()));
    assert_eq!(list(&subject, &owner("owner")).await, [revoked]);
}

/// A repeated revocation changes nothing, not even the revision.
pub async fn the_first_revocation_is_kept(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let first = subject.revoke(created.id, reason("first"), &context()).await.unwrap();
    let later = ChangeContext { now: at(NOW + 1_000), ..context() };
    let second = subject.revoke(created.id, reason("second"), &later).await.unwrap();
    assert_eq!(second, first);
    assert_eq!(subject.get(created.id).await.unwrap(), Some(first));
}

/// Revoking an unknown key is an error.
pub async fn a_missing_key_is_not_found(subject: Subject) {
    assert_eq!(kind(subject.revoke(id(1), reason(""), &context()).await), ErrorKind::NotFound);
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
}

/// Fifty concurrent uses and fifty concurrent updates neither prevent nor undo a revocation.
pub async fn a_revocation_survives_concurrent_changes(subject: Subject) {
    let created = create(&subject, key(1)).await;
    at_once(&subject, 101, |subject, number| {
        let key = created.clone();
        async move {
            match number {
                50 => drop(subject.revoke(key.id, reason("leaked"), &context()).await.unwrap()),
                number if number % 2 == 0 => {
                    // An update reads first, so it may conflict with the concurrent revocation.
                    let read = subject.get(key.id).await.unwrap().unwrap();
                    let next = ApiKey { updated_at: at(NOW + i64::from(number)), ..read.clone() };
                    if let Err(error) = subject.update(next, read.revision, &context()).await {
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
                    }
                }
                number => {
                    if let Some(usage) = &subject.usage {
                        usage.record_usage(&[(key.id, at(NOW + i64::from(number)))]).await.unwrap();
                    }
                }
            }
        }
    })
    .await;
    let stored = subject.get(created.id).await.unwrap().unwrap();
    assert_eq!(stored.revocation, Some(Revocation { at: at(NOW), reason: reason("leaked") }));
}
