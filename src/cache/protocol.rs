//! The rules by which a cached record may be served: a pure state machine.
//!
//! It is generic over what keys are called and knows neither time nor I/O, so the checker in its tests explores the very
//! code that the server runs. [`Knowledge`](super::Knowledge) holds one [`Part`] for each part of the change feed.
//!
//! - The **cursor** is the change up to which this replica has applied all events.
//! - An entry of a cache carries `through`: it reflects every change up to that one.
//! - The **floor** of a key is the smallest `through` that may be served for it: its **fence**, if it has one, or `dropped`,
//!   which holds for all keys.
//! - The **largest change seen** is the latest change of which this replica knows in any way: by its own changes, by loaded
//!   records or by events.
//!
//! An entry is a key or says that there is none. An event that tells of a *creation* can only make the latter stale: if the
//! key was there before, then another event has told that it was deleted. So such events have fences of their own, and an
//! import of a million keys costs nobody the records that are cached. It takes the feed for that: a replica that creates a
//! key may not have read yet that it was deleted, so its own creations are changes like any other.
//!
//! # Rewound histories
//!
//! A failover can lose changes, and a restored backup always does. The revisions of the lost changes are then used again, so
//! two changes are the same only if their nonces are, too ([`ChangeId`]). Two histories that diverge have different nonces
//! at every revision from there on. Therefore:
//!
//! - Rule 10: a poll compares the feed with the largest change seen. A feed that ends below it, or has another change at its
//!   revision, is a [rewound](Rewound) history.
//! - Rule 11: a load, and a change that this replica makes, is compared in the same way. What contradicts the history that
//!   is followed ends it at once, for nothing may be served until it is known which one is true.
//! - Rule 12: an entry that another replica wrote is used only if its `through` is a change that this replica has applied
//!   ([`Part::has_applied`]). It may be one of a lost history otherwise, whatever its revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::{ChangeId, Revision};

/// What an entry is about, as far as the rules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A key.
    Present,
    /// That there is no key.
    Absent,
}

/// What a change was, as far as the rules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The feed tells that the key was made, after everything that happened to it before.
    Creation,
    /// Anything else.
    Change,
}

/// The backend's history is not the one that this replica follows: it lost changes that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewound;

/// The `through` of what a load found (rule 1). `noted` is the cursor from before the load read anything; a record also
/// reflects its last change. That there is none reflects no more than was noted.
#[must_use]
pub fn through(noted: ChangeId, last_change: Option<ChangeId>) -> ChangeId {
    last_change.map_or(noted, |change| noted.later(change))
}

/// Whether an entry that is to be stored may take the place of one that is there (rule 3).
#[must_use]
pub fn may_replace(new_through: ChangeId, old_through: ChangeId) -> bool {
    new_through.revision >= old_through.revision
}

/// What this replica knows of one part of the feed, and so of all keys whose changes are told there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part<K> {
    cursor: ChangeId,
    seen: ChangeId,
    applied: Applied,
    changes: Fences<K>,
    creations: Fences<K>,
}

impl<K: Ord + Clone> Part<K> {
    /// A part of which nothing was read yet: nothing fits, until [`start`](Self::start). It has room for `capacity` fences
    /// of each cause, and remembers `history` applied changes.
    #[must_use]
    pub fn new(capacity: usize, history: usize) -> Self {
        let closed = || Fences { dropped: LAST, ..Fences::new(capacity) };
        Self {
            cursor: ChangeId::NONE,
            seen: ChangeId::NONE,
            applied: Applied::new(history),
            changes: closed(),
            creations: closed(),
        }
    }

    /// Rule 7: `cursor` is the newest event; the newest events are [applied](Self::apply) next. Nothing is cached yet, and by
    /// rule 12 nothing that others cached before the first of these events is used.
    pub fn start(&mut self, cursor: ChangeId) {
        self.cursor = cursor;
        self.seen = cursor;
        self.applied = Applied::new(self.applied.capacity);
        for fences in [&mut self.changes, &mut self.creations] {
            *fences = Fences::new(fences.capacity);
        }
    }

    /// Rule 1: what a load notes before it reads anything.
    #[must_use]
    pub fn cursor(&self) -> ChangeId {
        self.cursor
    }

    /// The largest change seen in any way.
    #[must_use]
    pub fn seen(&self) -> ChangeId {
        self.seen
    }

    /// The smallest `through` that may be served for `key`.
    #[must_use]
    pub fn floor(&self, key: &K, kind: Kind) -> ChangeId {
        let floor = self.changes.floor(key);
        match kind {
            Kind::Present => floor,
            Kind::Absent => floor.later(self.creations.floor(key)),
        }
    }

    /// The smallest `through` that may be served for a key without a fence of its own.
    #[cfg(test)]
    fn dropped(&self, kind: Kind) -> ChangeId {
        match kind {
            Kind::Present => self.changes.dropped,
            Kind::Absent => self.changes.dropped.later(self.creations.dropped),
        }
    }

    /// Whether an entry may be stored or served.
    #[must_use]
    pub fn fits(&self, key: &K, kind: Kind, entry_through: ChangeId) -> bool {
        let floor = self.floor(key, kind);
        entry_through.revision >= floor.revision && !entry_through.contradicts(floor)
    }

    /// Rule 2: from now on nothing is served for `key` that does not reflect its change `change`. What no longer fits is
    /// taken out *after* that.
    pub fn raise(&mut self, key: K, cause: Cause, change: ChangeId) {
        match cause {
            Cause::Creation => self.creations.raise(key, change),
            Cause::Change => self.changes.raise(key, change),
        }
    }

    /// Rule 11 for a load that noted `noted` and found a record whose last change is `last_change`.
    ///
    /// # Errors
    /// The record is of another history.
    pub fn see(&mut self, noted: ChangeId, last_change: ChangeId) -> Result<(), Rewound> {
        let is_of_another =
            last_change.contradicts(noted) || last_change.contradicts(self.seen) || self.lacks(last_change);
        if is_of_another {
            return Err(Rewound);
        }
        if last_change.revision == self.seen.revision && self.seen.nonce == ChangeId::UNKNOWN_NONCE {
            self.seen = last_change;
        }
        self.seen = self.seen.later(last_change);
        Ok(())
    }

    /// Rule 11 for a change that this replica made. `seen_before` is the [largest change seen](Self::seen) when it began:
    /// a change that is not larger than that has a revision that was used before.
    ///
    /// # Errors
    /// The change was made in another history.
    pub fn see_own(&mut self, seen_before: ChangeId, change: ChangeId) -> Result<(), Rewound> {
        if change.revision <= seen_before.revision {
            return Err(Rewound);
        }
        self.see(ChangeId::NONE, change)
    }

    /// Rule 8, for each event of a poll, in their order: rule 10 for it, then rule 2.
    ///
    /// # Errors
    /// The event is of another history than what was seen.
    pub fn apply(&mut self, key: K, cause: Cause, event: ChangeId) -> Result<(), Rewound> {
        self.meet(event)?;
        self.raise(key, cause, event);
        Ok(())
    }

    /// The same for an event that can't be read, so that any key may have changed.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply).
    pub fn apply_unreadable(&mut self, revision: Revision) -> Result<(), Rewound> {
        let event = ChangeId::of_revision(revision);
        self.meet(event)?;
        for fences in [&mut self.changes, &mut self.creations] {
            fences.dropped = fences.dropped.later(event);
        }
        Ok(())
    }

    fn meet(&mut self, event: ChangeId) -> Result<(), Rewound> {
        // The event at the revision of the largest change seen was passed without being met.
        let has_passed = event.revision > self.seen.revision && self.seen.revision > self.last_applied();
        if has_passed || event.contradicts(self.seen) {
            return Err(Rewound);
        }
        self.applied.push(event);
        self.seen = self.seen.later(event);
        Ok(())
    }

    /// Rule 8: all events up to `cursor` were applied.
    pub fn advance(&mut self, cursor: ChangeId) {
        self.cursor = self.cursor.later(cursor);
    }

    /// Rule 10: a poll that was sent when `seen` was the largest change seen has read the feed to its end.
    ///
    /// # Errors
    /// The feed ends before that change.
    pub fn check_end(&self, seen: ChangeId) -> Result<(), Rewound> {
        if seen.revision > self.cursor.revision { Err(Rewound) } else { Ok(()) }
    }

    /// Rule 12: whether `change` is a change of the history that is followed, as far as this replica remembers it.
    #[must_use]
    pub fn has_applied(&self, change: ChangeId) -> bool {
        match self.applied.at(change.revision) {
            Some(applied) => !applied.contradicts(change),
            None => self.applied.is_empty() && change == self.cursor,
        }
    }

    /// Whether the history that is followed has no such change.
    fn lacks(&self, change: ChangeId) -> bool {
        match self.applied.at(change.revision) {
            Some(applied) => applied.contradicts(change),
            None => self.applied.spans(change.revision),
        }
    }

    fn last_applied(&self) -> Revision {
        self.applied.last().map_or(self.cursor.revision, |last| last.revision.max(self.cursor.revision))
    }

    /// How many fences there are.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.changes.by_key.len() + self.creations.by_key.len()
    }
}

/// Larger than any change.
const LAST: ChangeId = ChangeId { revision: Revision::MAX, nonce: ChangeId::UNKNOWN_NONCE };

/// The latest changes that were applied, in the order of their revisions. None between the first and the last is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Applied {
    capacity: usize,
    changes: VecDeque<ChangeId>,
}

impl Applied {
    fn new(capacity: usize) -> Self {
        Self { capacity, changes: VecDeque::new() }
    }

    fn push(&mut self, change: ChangeId) {
        if self.last().is_some_and(|last| last.revision >= change.revision) {
            return;
        }
        self.changes.push_back(change);
        if self.changes.len() > self.capacity {
            self.changes.pop_front();
        }
    }

    fn at(&self, revision: Revision) -> Option<ChangeId> {
        let found = self.changes.binary_search_by_key(&revision, |change| change.revision);
        found.ok().map(|at| self.changes[at])
    }

    fn last(&self) -> Option<ChangeId> {
        self.changes.back().copied()
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether `revision` lies between the first change and the last.
    fn spans(&self, revision: Revision) -> bool {
        let ends = self.changes.front().zip(self.changes.back());
        ends.is_some_and(|(first, last)| first.revision < revision && revision < last.revision)
    }
}

/// A bounded map from keys to the smallest `through` that may be served for them (rule 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Fences<K> {
    capacity: usize,
    by_key: BTreeMap<K, ChangeId>,
    oldest_first: BTreeSet<(ChangeId, K)>,
    dropped: ChangeId,
}

impl<K: Ord + Clone> Fences<K> {
    fn new(capacity: usize) -> Self {
        Self { capacity, by_key: BTreeMap::new(), oldest_first: BTreeSet::new(), dropped: ChangeId::NONE }
    }

    fn floor(&self, key: &K) -> ChangeId {
        self.by_key.get(key).copied().unwrap_or(ChangeId::NONE).later(self.dropped)
    }

    fn raise(&mut self, key: K, change: ChangeId) {
        if self.floor(&key).revision >= change.revision {
            return;
        }
        if let Some(former) = self.by_key.insert(key.clone(), change) {
            self.oldest_first.remove(&(former, key.clone()));
        }
        self.oldest_first.insert((change, key));
        // Room is made by holding all keys to what the oldest fence held one to.
        while self.by_key.len() > self.capacity
            && let Some((oldest, key)) = self.oldest_first.pop_first()
        {
            self.dropped = self.dropped.later(oldest);
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod checker;

#[cfg(test)]
mod tests {
    use super::*;

    /// The change `number` of the first history.
    fn change(number: i64) -> ChangeId {
        ChangeId::new(Revision::new(number), 1)
    }

    /// The change `number` of a history that lost changes of the first one.
    fn other(number: i64) -> ChangeId {
        ChangeId::new(Revision::new(number), 2)
    }

    fn part(capacity: usize) -> Part<char> {
        let mut part = Part::new(capacity, 8);
        part.start(ChangeId::NONE);
        part
    }

    /// One that has applied the changes 1 to `last` of the first history.
    fn following(last: i64) -> Part<char> {
        let mut part = part(8);
        for number in 1..=last {
            part.apply('a', Cause::Change, change(number)).unwrap();
        }
        part.advance(change(last));
        part
    }

    #[test]
    fn a_part_that_was_not_started_serves_nothing() {
        let part = Part::<char>::new(8, 8);
        assert!(!part.fits(&'a', Kind::Present, change(1_000_000)));
        assert!(!part.fits(&'a', Kind::Absent, change(1_000_000)));
    }

    #[test]
    fn a_fence_holds_its_key_alone() {
        let mut part = part(8);
        part.raise('a', Cause::Change, change(5));
        assert!(!part.fits(&'a', Kind::Present, change(4)));
        assert!(part.fits(&'a', Kind::Present, change(5)));
        assert!(part.fits(&'b', Kind::Present, change(1)));
        part.raise('a', Cause::Change, change(3));
        assert_eq!(part.floor(&'a', Kind::Present), change(5), "it never goes down");
    }

    #[test]
    fn a_creation_makes_only_absence_stale() {
        let mut part = part(1);
        part.raise('a', Cause::Creation, change(5));
        part.raise('b', Cause::Creation, change(6));
        assert!(part.fits(&'a', Kind::Present, change(1)));
        assert!(!part.fits(&'a', Kind::Absent, change(4)));
        assert_eq!(part.dropped(Kind::Present), ChangeId::NONE);
        assert_eq!(part.dropped(Kind::Absent), change(5));
    }

    #[test]
    fn to_make_room_all_keys_are_held_to_the_oldest_fence() {
        let mut part = part(2);
        for (key, number) in [('a', 1), ('b', 2), ('a', 3), ('c', 4)] {
            part.raise(key, Cause::Change, change(number));
        }
        assert_eq!(part.fences(), 2);
        assert_eq!(part.dropped(Kind::Present), change(2), "that of b; a's was raised meanwhile");
        assert!(!part.fits(&'x', Kind::Present, change(1)));
        assert_eq!(part.floor(&'a', Kind::Present), change(3));
    }

    #[test]
    fn absence_reflects_what_was_noted_and_a_record_its_own_change_too() {
        assert_eq!(through(change(3), None), change(3));
        assert_eq!(through(change(3), Some(change(2))), change(3));
        assert_eq!(through(change(3), Some(change(7))), change(7));
    }

    #[test]
    fn an_entry_of_another_history_does_not_fit_at_the_fence() {
        let mut part = part(8);
        part.raise('a', Cause::Change, change(5));
        assert!(!part.fits(&'a', Kind::Present, other(5)));
        assert!(part.fits(&'a', Kind::Present, ChangeId::of_revision(Revision::new(5))), "it can't be told");
    }

    #[test]
    fn a_poll_that_does_not_bring_what_was_seen_is_of_another_history() {
        // Seen by a load, and not there when the feed was read to its end.
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        assert_eq!(part.check_end(part.seen()), Err(Rewound));
        // Another change has its revision.
        assert_eq!(part.apply('b', Cause::Change, other(4)), Ok(()));
        assert_eq!(part.apply('b', Cause::Change, other(5)), Err(Rewound));
        // It was passed without being met.
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        assert_eq!(part.apply('b', Cause::Change, other(6)), Err(Rewound));
    }

    #[test]
    fn a_poll_that_brings_what_was_seen_goes_on() {
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        let seen = part.seen();
        for number in [4, 5, 6] {
            part.apply('b', Cause::Change, change(number)).unwrap();
        }
        part.advance(change(6));
        assert_eq!(part.check_end(seen), Ok(()));
        assert_eq!(part.seen(), change(6));
    }

    #[test]
    fn a_record_that_contradicts_what_was_applied_is_of_another_history() {
        let mut part = following(3);
        assert_eq!(part.see(change(1), other(2)), Err(Rewound));
        assert_eq!(part.see(change(1), change(2)), Ok(()));
        // Noted by a change of this replica that was not read back yet.
        assert_eq!(part.see(other(4), change(4)), Err(Rewound));
    }

    #[test]
    fn a_change_with_a_revision_that_was_used_before_is_of_another_history() {
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        assert_eq!(part.see_own(change(5), other(4)), Err(Rewound));
        // It began before the other change was seen.
        assert_eq!(part.see_own(change(3), change(4)), Ok(()));
    }

    #[test]
    fn what_others_wrote_has_to_be_of_the_history_that_is_followed() {
        let part = following(3);
        assert!(part.has_applied(change(2)));
        assert!(!part.has_applied(other(2)), "of a lost history");
        assert!(!part.has_applied(change(4)), "not read yet");
        let mut forgetful = Part::<char>::new(8, 2);
        forgetful.start(ChangeId::NONE);
        for number in 1..=3 {
            forgetful.apply('a', Cause::Creation, change(number)).unwrap();
        }
        assert!(!forgetful.has_applied(change(1)), "not remembered any more");
        assert!(self::part(8).has_applied(ChangeId::NONE), "there are no events yet");
    }

    #[test]
    fn an_event_that_can_not_be_read_holds_all_keys() {
        let mut part = following(3);
        part.apply_unreadable(Revision::new(4)).unwrap();
        assert!(!part.fits(&'x', Kind::Present, change(3)));
        assert!(part.fits(&'x', Kind::Present, change(4)));
    }
}
