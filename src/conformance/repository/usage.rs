//! Tests of last uses.

use super::Subject;
use super::fixture::{NOW, at, context, create, id, key, list, owner, usage_store};
use crate::domain::{KeyId, Timestamp};

async fn last_use(subject: &Subject, id: KeyId) -> Option<Timestamp> {
    let usage = usage_store(subject).usage(&[id]).await.unwrap();
    assert_eq!(usage.len(), 1);
    usage[0]
}

/// A new key and an unknown one have no last use.
pub async fn a_key_that_was_never_used_has_no_last_use(subject: Subject) {
    create(&subject, key(1)).await;
    assert_eq!(usage_store(&subject).usage(&[id(1), id(2)]).await.unwrap(), [None, None]);
    assert_eq!(usage_store(&subject).usage(&[]).await.unwrap(), []);
}

/// The last use never moves backward.
pub async fn the_latest_use_is_kept_whatever_the_order(subject: Subject) {
    create(&subject, key(1)).await;
    create(&subject, key(2)).await;
    for micros in [NOW + 5, NOW + 9, NOW + 7] {
        usage_store(&subject).record_usage(&[(id(1), at(micros)), (id(2), at(micros - 1))]).await.unwrap();
    }
    assert_eq!(
        usage_store(&subject).usage(&[id(2), id(1)]).await.unwrap(),
        [Some(at(NOW + 8)), Some(at(NOW + 9))]
    );
}

/// The latest of several uses of a key is kept, also for times before 1970.
pub async fn a_batch_can_contain_a_key_twice(subject: Subject) {
    create(&subject, key(1)).await;
    usage_store(&subject).record_usage(&[(id(1), at(-9)), (id(1), at(-3)), (id(1), at(-5))]).await.unwrap();
    assert_eq!(last_use(&subject, id(1)).await, Some(at(-3)));
    usage_store(&subject).record_usage(&[]).await.unwrap();
}

/// All uses are kept, even if there are more than fit into one statement.
pub async fn large_batches_are_recorded_completely(subject: Subject) {
    for number in 0..3 {
        create(&subject, key(number * 700)).await;
    }
    let usage: Vec<_> = (0..2_000).map(|number| (id(number), at(NOW + i64::from(number)))).collect();
    usage_store(&subject).record_usage(&usage).await.unwrap();
    let ids: Vec<_> = (0..2_000).map(id).collect();
    let recorded = usage_store(&subject).usage(&ids).await.unwrap();
    for (number, last) in (0_u32..).zip(recorded) {
        let expected = (number % 700 == 0).then(|| at(NOW + i64::from(number)));
        assert_eq!(last, expected, "key {number}");
    }
}

/// Uses of unknown keys are not an error, and the others of the batch are recorded.
pub async fn unknown_keys_are_ignored(subject: Subject) {
    create(&subject, key(1)).await;
    usage_store(&subject)
        .record_usage(&[(id(2), at(NOW)), (id(1), at(NOW)), (id(3), at(NOW))])
        .await
        .unwrap();
    assert_eq!(
        usage_store(&subject).usage(&[id(1), id(2), id(3)]).await.unwrap(),
        [Some(at(NOW)), None, None]
    );
    assert_eq!(subject.get(id(2)).await.unwrap(), None);
}

/// A recorded use does not change the key.
pub async fn a_use_changes_neither_record_nor_revision(subject: Subject) {
    let created = create(&subject, key(1)).await;
    usage_store(&subject).record_usage(&[(id(1), at(NOW + 5))]).await.unwrap();
    assert_eq!(subject.get(id(1)).await.unwrap(), Some(created));
}

/// A use that is recorded after a deletion has no effect.
pub async fn a_use_does_not_restore_a_deleted_key(subject: Subject) {
    create(&subject, key(1)).await;
    usage_store(&subject).record_usage(&[(id(1), at(NOW))]).await.unwrap();
    subject.delete(id(1), &context()).await.unwrap();
    usage_store(&subject).record_usage(&[(id(1), at(NOW + 1))]).await.unwrap();
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
    assert_eq!(last_use(&subject, id(1)).await, None);
    assert_eq!(list(&subject, &owner("owner")).await, []);
}

/// The last use of a deleted key does not apply to a new key with the same id.
pub async fn a_re_created_key_was_never_used(subject: Subject) {
    create(&subject, key(1)).await;
    usage_store(&subject).record_usage(&[(id(1), at(NOW))]).await.unwrap();
    subject.delete(id(1), &context()).await.unwrap();
    create(&subject, key(1)).await;
    assert_eq!(last_use(&subject, id(1)).await, None);
}
