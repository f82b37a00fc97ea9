//! Tests of single rules.

use super::*;
use crate::domain::Revision;

/// Returns the change `number` of the first epoch.
fn change(number: i64) -> ChangeId {
    ChangeId::new(Revision::new(number), 1)
}

/// Returns the change `number` of an epoch that lost changes of the first one.
fn other(number: i64) -> ChangeId {
    ChangeId::new(Revision::new(number), 2)
}

fn partition(capacity: usize) -> Partition<char> {
    let mut partition = Partition::new(capacity, 8);
    partition.start(ChangeId::NONE);
    partition
}

/// Returns a partition that has applied the changes 1 to `last` of the first epoch.
fn following(last: i64) -> Partition<char> {
    let mut partition = partition(8);
    for number in 1..=last {
        partition.apply('a', Cause::Change, change(number)).unwrap();
    }
    partition.advance(change(last));
    partition
}

#[test]
fn a_partition_that_was_not_started_serves_nothing() {
    let partition = Partition::<char>::new(8, 8);
    assert!(!partition.fits(&'a', EntryKind::Record, change(1_000_000)));
    assert!(!partition.fits(&'a', EntryKind::Negative, change(1_000_000)));
}

#[test]
fn a_fence_applies_to_its_key_alone() {
    let mut partition = partition(8);
    partition.raise('a', Cause::Change, change(5));
    assert!(!partition.fits(&'a', EntryKind::Record, change(4)));
    assert!(partition.fits(&'a', EntryKind::Record, change(5)));
    assert!(partition.fits(&'b', EntryKind::Record, change(1)));
    partition.raise('a', Cause::Change, change(3));
    assert_eq!(partition.minimum(&'a', EntryKind::Record), change(5), "it never goes down");
}

#[test]
fn a_creation_makes_only_negative_entries_stale() {
    let mut partition = partition(1);
    partition.raise('a', Cause::Creation, change(5));
    partition.raise('b', Cause::Creation, change(6));
    assert!(partition.fits(&'a', EntryKind::Record, change(1)));
    assert!(!partition.fits(&'a', EntryKind::Negative, change(4)));
    assert_eq!(partition.watermark(EntryKind::Record), ChangeId::NONE);
    assert_eq!(partition.watermark(EntryKind::Negative), change(5));
}

#[test]
fn an_evicted_fence_becomes_the_minimum_of_all_keys() {
    let mut partition = partition(2);
    for (key, number) in [('a', 1), ('b', 2), ('a', 3), ('c', 4)] {
        partition.raise(key, Cause::Change, change(number));
    }
    assert_eq!(partition.fences(), 2);
    assert_eq!(partition.watermark(EntryKind::Record), change(2), "that of b; a's was raised meanwhile");
    assert!(!partition.fits(&'x', EntryKind::Record, change(1)));
    assert_eq!(partition.minimum(&'a', EntryKind::Record), change(3));
}

#[test]
fn a_negative_entry_reflects_the_noted_cursor_and_a_record_its_own_change_too() {
    assert_eq!(applied_revision(change(3), None), change(3));
    assert_eq!(applied_revision(change(3), Some(change(2))), change(3));
    assert_eq!(applied_revision(change(3), Some(change(7))), change(7));
}

#[test]
fn an_entry_of_another_epoch_does_not_fit_at_the_fence() {
    let mut partition = partition(8);
    partition.raise('a', Cause::Change, change(5));
    assert!(!partition.fits(&'a', EntryKind::Record, other(5)));
    assert!(
        partition.fits(&'a', EntryKind::Record, ChangeId::of_revision(Revision::new(5))),
        "it can't be told"
    );
}

#[test]
fn a_poll_that_does_not_bring_what_was_seen_is_of_another_epoch() {
    // A load saw the change, but the feed ends before it.
    let mut partition = following(3);
    partition.check_loaded(change(3), change(5)).unwrap();
    assert_eq!(partition.check_end(partition.largest_seen()), Err(Rewound));
    // Another change has its revision.
    assert_eq!(partition.apply('b', Cause::Change, other(4)), Ok(()));
    assert_eq!(partition.apply('b', Cause::Change, other(5)), Err(Rewound));
    // The events pass its revision without containing it.
    let mut partition = following(3);
    partition.check_loaded(change(3), change(5)).unwrap();
    assert_eq!(partition.apply('b', Cause::Change, other(6)), Err(Rewound));
}

#[test]
fn a_poll_that_brings_what_was_seen_goes_on() {
    let mut partition = following(3);
    partition.check_loaded(change(3), change(5)).unwrap();
    let largest_seen = partition.largest_seen();
    for number in [4, 5, 6] {
        partition.apply('b', Cause::Change, change(number)).unwrap();
    }
    partition.advance(change(6));
    assert_eq!(partition.check_end(largest_seen), Ok(()));
    assert_eq!(partition.largest_seen(), change(6));
}

#[test]
fn a_record_that_contradicts_what_was_applied_is_of_another_epoch() {
    let mut partition = following(3);
    assert_eq!(partition.check_loaded(change(1), other(2)), Err(Rewound));
    assert_eq!(partition.check_loaded(change(1), change(2)), Ok(()));
    // The load noted the fence of this replica's own change, which the feed has not delivered yet.
    assert_eq!(partition.check_loaded(other(4), change(4)), Err(Rewound));
}

#[test]
fn a_change_with_a_revision_that_was_used_before_is_of_another_epoch() {
    let mut partition = following(3);
    partition.check_loaded(change(3), change(5)).unwrap();
    assert_eq!(partition.check_own(change(5), other(4), Novelty::New), Err(Rewound));
    // It can't be distinguished from a change that was made before the call.
    assert_eq!(partition.check_own(change(5), other(4), Novelty::Unknown), Ok(Certainty::NeedsPoll));
    assert_eq!(partition.check_own(change(5), change(4), Novelty::Unknown), Ok(Certainty::NeedsPoll));
    // The change began before the other one was seen.
    for novelty in [Novelty::New, Novelty::Unknown] {
        assert_eq!(partition.check_own(change(3), change(4), novelty), Ok(Certainty::Certain));
    }
}

#[test]
fn what_others_wrote_has_to_be_of_the_epoch_that_is_followed() {
    let partition = following(3);
    assert!(partition.has_applied(change(2)));
    assert!(!partition.has_applied(other(2)), "of a lost epoch");
    assert!(!partition.has_applied(change(4)), "not read yet");
    let mut forgetful = Partition::<char>::new(8, 2);
    forgetful.start(ChangeId::NONE);
    for number in 1..=3 {
        forgetful.apply('a', Cause::Creation, change(number)).unwrap();
    }
    assert!(!forgetful.has_applied(change(1)), "not remembered any more");
    assert!(self::partition(8).has_applied(ChangeId::NONE), "there are no events yet");
}

#[test]
fn an_unreadable_event_applies_to_all_keys() {
    let mut partition = following(3);
    partition.apply_unreadable(Revision::new(4)).unwrap();
    assert!(!partition.fits(&'x', EntryKind::Record, change(3)));
    assert!(partition.fits(&'x', EntryKind::Record, change(4)));
}
