//! Tests of creating keys.

use super::Subject;
use super::fixture::{at_once, context, create, hash, id, key, kind, list, owner, with_hash_of, with_id_of};
use crate::domain::{ApiKey, Revision};
use crate::repository::{ErrorKind, RepositoryError};

/// The key is returned as it was passed, with a revision.
pub async fn the_created_key_is_returned_with_a_revision(subject: Subject) {
    let created = create(&subject, key(1)).await;
    assert!(created.revision > Revision::NONE);
    assert_eq!(created, ApiKey { revision: created.revision, nonce: created.nonce, ..key(1) });
}

/// The second key with an id is rejected. The first one is unchanged, and the second one can't be found.
pub async fn an_id_in_use_is_rejected(subject: Subject) {
    let first = create(&subject, key(1)).await;
    let second = ApiKey { owner_id: owner("other"), ..with_id_of(1, 2) };
    assert_eq!(kind(subject.create(second.clone(), &context()).await), ErrorKind::AlreadyExists);
    assert_eq!(subject.get(first.id).await.unwrap(), Some(first));
    assert_eq!(subject.get_by_hash(&second.hash).await.unwrap(), None);
    assert_eq!(list(&subject, &owner("other")).await, []);
}

/// The second key with a hash is rejected. The first one is unchanged, and the second one can't be found.
pub async fn a_hash_in_use_is_rejected(subject: Subject) {
    let first = create(&subject, key(1)).await;
    let second = ApiKey { owner_id: owner("other"), ..with_hash_of(1, 2) };
    assert_eq!(kind(subject.create(second.clone(), &context()).await), ErrorKind::AlreadyExists);
    assert_eq!(subject.get_by_hash(&first.hash).await.unwrap(), Some(first));
    assert_eq!(subject.get(second.id).await.unwrap(), None);
    assert_eq!(list(&subject, &owner("other")).await, []);
}

/// Of concurrent creations with one id, one succeeds, and its key is stored.
pub async fn of_concurrent_creations_with_one_id_one_succeeds(subject: Subject) {
    let outcomes = at_once(&subject, 8, |subject, number| async move {
        subject.create(with_id_of(0, number), &context()).await
    })
    .await;
    let winner = the_one_winner(outcomes);
    assert_eq!(subject.get(id(0)).await.unwrap(), Some(winner.clone()));
    for number in 0..8 {
        let tried = with_id_of(0, number).hash;
        let found = subject.get_by_hash(&tried).await.unwrap();
        assert_eq!(found.is_some(), tried == winner.hash, "key {number}");
    }
    assert_eq!(list(&subject, &owner("owner")).await, [winner]);
}

/// Of concurrent creations with one hash, one succeeds, and its key is stored.
pub async fn of_concurrent_creations_with_one_hash_one_succeeds(subject: Subject) {
    let outcomes = at_once(&subject, 8, |subject, number| async move {
        subject.create(with_hash_of(0, number), &context()).await
    })
    .await;
    let winner = the_one_winner(outcomes);
    assert_eq!(subject.get_by_hash(&hash(0)).await.unwrap(), Some(winner.clone()));
    for number in 0..8 {
        let tried = with_hash_of(0, number).id;
        assert_eq!(subject.get(tried).await.unwrap().is_some(), tried == winner.id, "key {number}");
    }
    assert_eq!(list(&subject, &owner("owner")).await, [winner]);
}

fn the_one_winner(outcomes: Vec<crate::repository::Result<ApiKey>>) -> ApiKey {
    let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(losers.into_iter().all(|loser| kind(loser) == ErrorKind::AlreadyExists));
    assert_eq!(winners.len(), 1);
    winners.into_iter().next().unwrap().unwrap()
}

/// Each key has the outcome that it would have alone, even if two of them have the same id or hash.
pub async fn many_keys_are_created_independently(subject: Subject) {
    let taken = create(&subject, key(1)).await;
    let same_id = with_id_of(3, 4);
    let keys = vec![key(0), key(1), key(3), same_id, key(5)];
    let outcomes = subject.create_many(keys, &context()).await.unwrap();
    let ids: Vec<_> =
        outcomes.iter().map(|it| it.as_ref().map(|key| key.id).map_err(RepositoryError::kind)).collect();
    let exists = || Err(ErrorKind::AlreadyExists);
    assert_eq!(ids, [Ok(id(0)), exists(), Ok(id(3)), exists(), Ok(id(5))]);
    for created in outcomes.into_iter().flatten() {
        assert!(created.revision > taken.revision);
        assert_eq!(subject.get_by_hash(&created.hash).await.unwrap(), Some(created));
    }
    assert_eq!(subject.create_many(Vec::new(), &context()).await.unwrap().len(), 0);
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(taken));
}
