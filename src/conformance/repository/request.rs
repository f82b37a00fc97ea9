//! Tests of retried requests that create keys.

use super::Subject;
use super::fixture::{at_once, context, create, hash, key, kind, list, owner};
use crate::domain::{ApiKey, ChangeContext, RequestDigest, Rotation};
use crate::repository::ErrorKind;

fn in_context(request: RequestDigest) -> ChangeContext {
    ChangeContext { request: Some(request), ..context() }
}

/// Returns the number of the first key after `after` that this backend can create for `request`.
fn creatable_after(subject: &Subject, request: &RequestDigest, after: u32) -> u32 {
    (after + 1..after + 10_000).find(|&number| subject.can_create_for(request, &hash(number))).unwrap()
}

/// A retry creates nothing, even after the key was deleted. Another request is independent.
pub async fn a_repeated_request_creates_one_key(subject: Subject) {
    let request = RequestDigest::of_creation("token:a", "request");
    assert_eq!(subject.key_of_request(&request).await.unwrap(), None);
    let first = creatable_after(&subject, &request, 0);
    let second = creatable_after(&subject, &request, first);
    let made = subject.create(key(first), &in_context(request)).await.unwrap();
    assert_eq!(subject.key_of_request(&request).await.unwrap(), Some(made.id));
    assert_eq!(kind(subject.create(key(second), &in_context(request)).await), ErrorKind::AlreadyExists);
    assert_eq!(list(&subject, &owner("owner")).await, std::slice::from_ref(&made));

    let other = RequestDigest::of_creation("token:b", "request");
    let number = creatable_after(&subject, &other, second);
    subject.create(key(number), &in_context(other)).await.unwrap();
    subject.delete(made.id, &context()).await.unwrap();
    assert_eq!(subject.key_of_request(&request).await.unwrap(), Some(made.id));
    assert_eq!(kind(subject.create(key(second), &in_context(request)).await), ErrorKind::AlreadyExists);
    assert_eq!(subject.get_by_hash(&hash(second)).await.unwrap(), None);
}

/// A rotation is identified by the replaced key. A request whose change failed is not recorded.
pub async fn a_repeated_rotation_is_recognised(subject: Subject) {
    let old = create(&subject, key(1)).await;
    let request = RequestDigest::of_rotation("token:a", old.id, "request");
    let number = (2..10_000).find(|&number| subject.can_rotate(&hash(1), &hash(number))).unwrap();
    let successor = ApiKey { rotated_from: Some(old.id), ..key(number) };
    let replaced = ApiKey { replaced_by: Some(successor.id), ..old.clone() };
    let stale = ApiKey { revision: crate::domain::Revision::new(old.revision.get() + 1), ..replaced.clone() };
    let conflicting = Rotation { replaced: stale, successor: successor.clone() };
    assert_eq!(kind(subject.rotate(conflicting, &in_context(request)).await), ErrorKind::Conflict);
    assert_eq!(subject.key_of_request(&request).await.unwrap(), None);
    let rotated = subject.rotate(Rotation { replaced, successor }, &in_context(request)).await.unwrap();
    assert_eq!(subject.key_of_request(&request).await.unwrap(), Some(rotated.successor.id));
    assert_eq!(
        subject.key_of_request(&RequestDigest::of_rotation("token:b", old.id, "request")).await.unwrap(),
        None
    );
}

/// Of concurrent retries, one creates a key.
pub async fn of_concurrent_retries_one_succeeds(subject: Subject) {
    let request = RequestDigest::of_creation("token:a", "request");
    let mut numbers = vec![0];
    for nth in 0..8 {
        numbers.push(creatable_after(&subject, &request, numbers[nth]));
    }
    let outcomes = at_once(&subject, 8, |subject, nth| {
        let created = key(numbers[nth as usize + 1]);
        async move { subject.create(created, &in_context(request)).await }
    })
    .await;
    let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(winners.len(), 1);
    assert!(losers.into_iter().all(|loser| kind(loser) == ErrorKind::AlreadyExists));
    assert_eq!(list(&subject, &owner("owner")).await.len(), 1);
}
