//! Tests of changing keys.

use std::collections::BTreeMap;

use super::Subject;
use super::fixture::{NOW, at, at_once, context, create, hash, id, key, kind, list, owner, reason};
use crate::domain::{ApiKey, Description, KeyName, KeyPrefix, Metadata, Revision, ScopeSet};
use crate::repository::ErrorKind;

/// Every mutable attribute changes, in the result and in all later reads.
pub async fn an_update_is_stored_and_returned(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey {
        name: KeyName::parse("name", "renamed").unwrap(),
        description: Description::parse("description", "described").unwrap(),
        scopes: ScopeSet::parse("scopes", ["read"]).unwrap(),
        metadata: Metadata::parse(BTreeMap::from([("k".into(), "v".into())])).unwrap(),
        updated_at: at(NOW + 10),
        expires_at: Some(at(NOW + 20)),
        ..created.clone()
    };
    let updated = subject.update(next.clone(), created.revision, &context()).await.unwrap();
    assert!(updated.revision > created.revision);
    assert_eq!(updated, ApiKey { revision: updated.revision, nonce: updated.nonce, ..next });
    assert_eq!(subject.get(created.id).await.unwrap(), Some(updated.clone()));
    assert_eq!(subject.get_by_hash(&created.hash).await.unwrap(), Some(updated.clone()));
    assert_eq!(list(&subject, &owner("owner")).await, std::slice::from_ref(&updated));

    let emptied = ApiKey { expires_at: None, metadata: Metadata::default(), ..updated.clone() };
    let emptied = subject.update(emptied, updated.revision, &context()).await.unwrap();
    assert_eq!(subject.get(created.id).await.unwrap(), Some(emptied));
}

/// Updating one key does not change another one.
pub async fn an_update_does_not_affect_other_keys(subject: Subject) {
    let other = create(&subject, key(1)).await;
    let changed = create(&subject, key(2)).await;
    let revision = changed.revision;
    subject.update(ApiKey { updated_at: at(NOW + 9), ..changed }, revision, &context()).await.unwrap();
    assert_eq!(subject.get(other.id).await.unwrap(), Some(other));
}

/// An update with an outdated revision changes nothing.
pub async fn an_old_revision_conflicts_and_changes_nothing(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey { updated_at: at(NOW + 9), ..created.clone() };
    let updated = subject.update(next, created.revision, &context()).await.unwrap();
    for expected in [created.revision, Revision::NONE, Revision::new(updated.revision.get() + 1)] {
        let late = ApiKey { updated_at: at(NOW + 99), ..created.clone() };
        assert_eq!(kind(subject.update(late, expected, &context()).await), ErrorKind::Conflict);
    }
    assert_eq!(subject.get(created.id).await.unwrap(), Some(updated));
}

/// An update does not create a missing key.
pub async fn a_missing_key_is_not_created(subject: Subject) {
    assert_eq!(kind(subject.update(key(1), Revision::new(1), &context()).await), ErrorKind::NotFound);
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), None);
}

/// The hash, prefix, owner, creation time, predecessor, revocation and successor can't be changed.
pub async fn immutable_fields_can_not_be_changed(subject: Subject) {
    let created =
        create(&subject, ApiKey { rotated_from: Some(id(7)), replaced_by: Some(id(8)), ..key(1) }).await;
    let key = subject.revoke(created.id, reason("leaked"), &context()).await.unwrap();
    let attempts = [
        ApiKey { hash: hash(2), ..key.clone() },
        ApiKey { prefix: KeyPrefix::parse("prefix", "other_").unwrap(), ..key.clone() },
        ApiKey { owner_id: owner("Owner"), ..key.clone() },
        ApiKey { created_at: at(1), ..key.clone() },
        ApiKey { rotated_from: None, ..key.clone() },
        ApiKey { revocation: None, ..key.clone() },
        ApiKey { replaced_by: None, ..key.clone() },
    ];
    for attempt in attempts {
        assert_eq!(kind(subject.update(attempt, key.revision, &context()).await), ErrorKind::Refused);
    }
    assert_eq!(subject.get(key.id).await.unwrap(), Some(key));
}

/// Of concurrent updates of the same revision, one succeeds, and the others return a conflict.
pub async fn of_concurrent_updates_of_one_revision_one_succeeds(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let expected = created.revision;
    let outcomes = at_once(&subject, 8, |subject, number| {
        let next = ApiKey { updated_at: at(NOW + i64::from(number)), ..created.clone() };
        async move { subject.update(next, expected, &context()).await }
    })
    .await;
    let (winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert!(losers.into_iter().all(|loser| kind(loser) == ErrorKind::Conflict));
    assert_eq!(winners.len(), 1);
    assert_eq!(subject.get(id(1)).await.unwrap(), winners.into_iter().next().unwrap().ok());
}
