//! Conformance tests of [`KeyCache`]. Each clause gets an empty cache.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::knowledge::OwnChange;
use crate::cache::protocol::{Certainty, EntryKind, Novelty};
use crate::cache::{Entry, KeyCache, Knowledge};
use crate::conformance::repository::fixture::{hash, key};
use crate::domain::{ApiKey, ChangeContext, ChangeId, ChangeKind, KeyEvent, Moment, Revision};

/// A cache, and the state that it depends on.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The cache. It keeps entries for at least a minute.
    pub cache: Arc<dyn KeyCache>,
    /// State of the replica. It must already be able to serve: either the backend has no feed, or the feed
    /// has been read.
    pub knowledge: Arc<Knowledge>,
    /// Whether the cache keeps negative entries.
    pub keeps_negative_entries: bool,
}

/// A duration that is longer than any clause takes.
const LONG: Duration = Duration::from_secs(30);

/// Returns the entry of a load that begins now and finds `key`.
fn entry(subject: &Subject, number: u32, key: Option<ApiKey>) -> Entry {
    let start = subject.knowledge.begin_load(&hash(number)).unwrap();
    Entry {
        kept_until: subject.knowledge.moment().after(LONG),
        ..subject.knowledge.loaded(&hash(number), &start, key)
    }
}

/// Returns key `number`, which was stored before the feed begins.
fn stored(number: u32) -> ApiKey {
    key(number)
}

/// Returns the event with which the feed reports the creation of `key`.
fn created(key: &ApiKey) -> KeyEvent {
    KeyEvent::of(key, ChangeKind::Created, Vec::new(), &ChangeContext::new("", "", key.created_at))
}

/// An entry is found with every field of its record, and is not kept longer than allowed.
pub async fn what_was_put_is_found(subject: Subject) {
    let key = stored(1);
    let put = entry(&subject, 1, Some(key.clone()));
    subject.cache.put(&hash(1), &put).await;
    let found = subject.cache.get(&hash(1)).await.unwrap();
    assert_eq!(found.key.as_deref(), Some(&key));
    assert!(subject.knowledge.fits(&hash(1), &found));
    assert!(found.kept_until <= put.kept_until.after(Duration::from_millis(5)), "cut short, never prolonged");
    assert!(subject.cache.get(&hash(2)).await.is_none(), "hashes are told apart");
}

/// A negative entry is kept as such, or not at all.
pub async fn absence_is_never_taken_for_a_key(subject: Subject) {
    subject.cache.put(&hash(1), &entry(&subject, 1, None)).await;
    let found = subject.cache.get(&hash(1)).await;
    assert_eq!(found.is_some(), subject.keeps_negative_entries);
    assert!(found.is_none_or(|found| found.kind() == EntryKind::Negative));
    let put = entry(&subject, 1, Some(stored(1)));
    subject.cache.put(&hash(1), &put).await;
    assert_eq!(subject.cache.get(&hash(1)).await.unwrap().kind(), EntryKind::Record, "the last one counts");
}

/// An entry ends at `kept_until`, whatever the cache's own time to live is.
pub async fn nothing_is_kept_longer_than_it_may_be(subject: Subject) {
    let now = subject.knowledge.moment();
    for (number, kept_until) in [(1, now), (2, now.after(Duration::from_millis(40)))] {
        let put = Entry { kept_until, ..entry(&subject, number, Some(stored(number))) };
        subject.cache.put(&hash(number), &put).await;
    }
    assert!(subject.cache.get(&hash(1)).await.is_none());
    // The clause uses real time, because caches have clocks of their own.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(subject.cache.get(&hash(2)).await.is_none());
}

/// A load that began before the fence was raised can't put the entry back.
pub async fn what_does_not_fit_is_taken_out_and_not_let_in(subject: Subject) {
    let old = entry(&subject, 1, Some(stored(1)));
    subject.cache.put(&hash(1), &old).await;
    let change = ChangeId::new(Revision::new(old.applied_revision.revision.get() + 1), 7);
    let start = subject.knowledge.begin_change();
    let OwnChange::Current(applied_revision, Certainty::Certain) =
        subject.knowledge.apply_own(&start, &hash(1), change, Novelty::New)
    else {
        panic!("the change belongs to another epoch");
    };
    subject.cache.remove(&hash(1)).await;
    assert!(subject.cache.get(&hash(1)).await.is_none());
    subject.cache.put(&hash(1), &old).await;
    assert!(subject.cache.get(&hash(1)).await.is_none());
    let key = ApiKey { revision: change.revision, nonce: change.nonce, ..stored(1) };
    if subject.knowledge.has_feed() {
        subject.knowledge.apply(&created(&key)).unwrap();
    }
    let new = Entry { applied_revision, ..entry(&subject, 1, Some(key.clone())) };
    subject.cache.put(&hash(1), &new).await;
    assert_eq!(subject.cache.get(&hash(1)).await.unwrap().key.as_deref(), Some(&key));
}

/// `forget` evicts an entry whatever its revision.
pub async fn what_is_forgotten_is_gone(subject: Subject) {
    for number in [1, 2] {
        let put = entry(&subject, number, Some(stored(number)));
        subject.cache.put(&hash(number), &put).await;
    }
    subject.cache.forget(&hash(1)).await;
    assert!(subject.cache.get(&hash(1)).await.is_none());
    assert!(subject.cache.get(&hash(2)).await.is_some());
    subject.cache.clear().await;
    assert!(subject.cache.get(&hash(2)).await.is_none());
}

/// An entry of another epoch is not accepted.
pub async fn another_epoch_is_not_let_in(subject: Subject) {
    let put = Entry { epoch: subject.knowledge.epoch() + 1, ..entry(&subject, 1, Some(stored(1))) };
    subject.cache.put(&hash(1), &put).await;
    assert!(subject.cache.get(&hash(1)).await.is_none());
}

/// A cache that finds records by their id finds the right one.
pub async fn a_record_is_found_by_its_id_or_not_at_all(subject: Subject) {
    let put = entry(&subject, 1, Some(stored(1)));
    subject.cache.put(&hash(1), &put).await;
    assert!(subject.cache.find_hash(stored(1).id).is_none_or(|found| found == hash(1)));
    assert_eq!(subject.cache.find_hash(stored(2).id), None);
    subject.cache.forget(&hash(1)).await;
    assert_eq!(subject.cache.find_hash(stored(1).id), None);
}

/// An entry never appears younger than it is: `began` is a time of this process, or unknown.
pub async fn its_times_are_of_this_process(subject: Subject) {
    let put = entry(&subject, 1, Some(stored(1)));
    subject.cache.put(&hash(1), &put).await;
    let found = subject.cache.get(&hash(1)).await.unwrap();
    assert!(found.began.is_none_or(|began| began <= put.began.unwrap()));
    assert!(found.kept_until > subject.knowledge.moment() && found.kept_until < Moment::NEVER);
}

/// Creates a test for each clause. The expression is a future that returns a [`Subject`] and a value to keep
/// for the duration of the test.
#[macro_export]
macro_rules! cache_conformance {
    ($subject:expr) => {
        $crate::cache_conformance!(@tests $subject;
            what_was_put_is_found,
            absence_is_never_taken_for_a_key,
            nothing_is_kept_longer_than_it_may_be,
            what_does_not_fit_is_taken_out_and_not_let_in,
            what_is_forgotten_is_gone,
            another_epoch_is_not_let_in,
            a_record_is_found_by_its_id_or_not_at_all,
            its_times_are_of_this_process,
        );
    };
    (@tests $subject:expr; $($clause:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $clause() {
                let (subject, _guard) = $subject.await;
                $crate::conformance::within_limit($crate::conformance::cache::$clause(subject)).await;
            }
        )*
    };
}
