//! Tests of rotations, which store both records or neither.

use super::Subject;
use super::fixture::{NOW, at, at_once, context, create, hash, id, key, kind, list, owner};
use crate::domain::{ApiKey, Rotation};
use crate::repository::ErrorKind;

/// Returns the rotation of `old` to key `number`.
fn rotation(old: &ApiKey, number: u32) -> Rotation {
    let successor = ApiKey { rotated_from: Some(old.id), ..key(number) };
    let replaced = ApiKey { replaced_by: Some(successor.id), expires_at: Some(at(NOW + 100)), ..old.clone() };
    Rotation { replaced, successor }
}

/// Returns the number of the first key after `after` that can succeed key 1 in this backend.
fn successor_after(subject: &Subject, after: u32) -> u32 {
    (after + 1..after + 10_000).find(|&number| subject.can_rotate(&hash(1), &hash(number))).unwrap()
}

/// The old key has an expiry and names its successor, which is stored.
pub async fn both_records_are_stored(subject: Subject) {
    let old = create(&subject, key(1)).await;
    let number = successor_after(&subject, 1);
    let planned = rotation(&old, number);
    let stored = subject.rotate(planned.clone(), &context()).await.unwrap();
    assert!(stored.replaced.revision > old.revision);
    assert!(stored.successor.revision > old.revision);
    let as_stored = |planned: ApiKey, stored: &ApiKey| ApiKey {
        revision: stored.revision,
        nonce: stored.nonce,
        ..planned
    };
    let replaced = as_stored(planned.replaced, &stored.replaced);
    let successor = as_stored(planned.successor, &stored.successor);
    assert_eq!(stored, Rotation { replaced: replaced.clone(), successor: successor.clone() });
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(replaced));
    assert_eq!(subject.get_by_hash(&hash(number)).await.unwrap(), Some(successor));
}

/// A key that has changed in the meantime is not replaced, and its successor is not stored.
pub async fn a_conflicting_rotation_stores_neither_record(subject: Subject) {
    let old = create(&subject, key(1)).await;
    let number = successor_after(&subject, 1);
    let next = ApiKey { updated_at: at(NOW + 9), ..old.clone() };
    let changed = subject.update(next, old.revision, &context()).await.unwrap();
    assert_eq!(kind(subject.rotate(rotation(&old, number), &context()).await), ErrorKind::Conflict);
    assert_eq!(list(&subject, &owner("owner")).await, [changed]);
    assert_eq!(subject.get_by_hash(&hash(number)).await.unwrap(), None);

    subject.delete(id(1), &context()).await.unwrap();
    assert_eq!(kind(subject.rotate(rotation(&old, number), &context()).await), ErrorKind::NotFound);
    assert_eq!(list(&subject, &owner("owner")).await, []);
}

/// A successor whose id or hash is in use leaves the old key unchanged.
pub async fn a_successor_in_use_stores_neither_record(subject: Subject) {
    let old = create(&subject, key(1)).await;
    let number = successor_after(&subject, 1);
    let other = create(&subject, key(number)).await;
    assert_eq!(kind(subject.rotate(rotation(&old, number), &context()).await), ErrorKind::AlreadyExists);
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(old));
    assert_eq!(subject.get(id(number)).await.unwrap(), Some(other));
}

/// Of concurrent rotations of one key, one succeeds.
pub async fn of_concurrent_rotations_one_succeeds(subject: Subject) {
    let old = create(&subject, key(1)).await;
    let mut successors = vec![1];
    for nth in 0..8 {
        successors.push(successor_after(&subject, successors[nth]));
    }
    let outcomes = at_once(&subject, 8, |subject, nth| {
        let rotation = rotation(&old, successors[nth as usize + 1]);
        async move { subject.rotate(rotation, &context()).await }
    })
    .await;
    let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(losers.into_iter().all(|loser| kind(loser) == ErrorKind::Conflict));
    assert_eq!(winners.len(), 1);
    let winner = winners.into_iter().next().unwrap().unwrap();
    assert_eq!(list(&subject, &owner("owner")).await, [winner.successor, winner.replaced]);
}
