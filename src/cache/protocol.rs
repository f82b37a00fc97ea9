//! The rules by which a cached record may be served, as a pure state machine.
//!
//! It is generic over the type of keys and has neither time nor I/O, so the checker in its tests explores the
//! same code that the server runs. [`Knowledge`](super::Knowledge) has one [`Part`] per partition of the
//! change feed.
//!
//! - The **cursor** is the change up to which this replica has applied all events.
//! - The **applied revision** of a cache entry is its `through`: the entry reflects every change up to that
//!   one.
//! - The **fence** of a key is the smallest applied revision that may still be served for it. The number of
//!   fences is bounded.
//! - The **watermark** (`dropped`) is the smallest applied revision that may be served for any key. When a
//!   fence has to be evicted, the watermark is raised to it. The **floor** of a key is the larger of its
//!   fence and the watermark.
//! - The **largest change seen** is the latest change that reached this replica in any way, whether by its
//!   own changes, by loaded records or by events.
//!
//! An entry is a record or a negative entry. An event of a *creation* can only make negative entries stale,
//! because an existing key has to be deleted first, which is an event of its own. So creations have fences of
//! their own, and an import of a million keys does not evict cached records. This depends on the feed. A
//! replica that creates a key may not have read the event of its deletion yet, so its own creations are
//! treated as changes.
//!
//! # Rewound histories
//!
//! A failover can lose changes, and a restored backup always does. The revisions of the lost changes are then
//! used again, so two changes are the same only if their nonces are equal, too ([`ChangeId`]). Two epochs
//! have different nonces at every revision after they diverge. Therefore:
//!
//! - Rule 10: a poll compares the feed with the largest change seen. If the feed ends before it, or has
//!   another change at its revision, history was [rewound](Rewound).
//! - Rule 11: loads and this replica's own changes are compared in the same way. A change that contradicts
//!   the current epoch ends it at once, because nothing may be served until it is known which epoch is valid.
//! - Rule 12: an entry that another replica wrote is used only if its `through` is a change that this replica
//!   has applied ([`Part::has_applied`]). Otherwise it may belong to a lost epoch, whatever its revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::{ChangeId, Revision};

/// The kinds of entries that the rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A record.
    Present,
    /// A negative entry.
    Absent,
}

/// The kinds of changes that the rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// An event of the feed that reports a creation. All earlier events of the key were applied before.
    Creation,
    /// Any other change.
    Change,
}

/// When a change that this replica made, or found to be made already, was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Novelty {
    /// During the call.
    New,
    /// Before the call. The call found it in effect.
    Earlier,
    /// Unknown, because the key could not be read before the change.
    Unknown,
}

/// Whether a change that this replica made certainly belongs to the current epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Certainty {
    /// It does, as far as this replica can know.
    Certain,
    /// It does, or it was assigned a revision that was used before. A poll has to be completed before the change is
    /// acknowledged.
    NeedsPoll,
}

/// History was rewound. The backend lost changes that were seen, so its epoch is not the one that this
/// replica follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewound;

/// Returns the applied revision of a load's result (rule 1). `noted` is the cursor from before the load read
/// anything. A record also reflects its own last change. A negative entry only reflects `noted`.
#[must_use]
pub fn through(noted: ChangeId, last_change: Option<ChangeId>) -> ChangeId {
    last_change.map_or(noted, |change| noted.later(change))
}

/// Returns whether a new entry may replace a cached one (rule 3).
#[must_use]
pub fn may_replace(new_through: ChangeId, old_through: ChangeId) -> bool {
    new_through.revision >= old_through.revision
}

/// The state of this replica for one partition of the feed, and so for all keys of that partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part<K> {
    cursor: ChangeId,
    seen: ChangeId,
    applied: Applied,
    changes: Fences<K>,
    creations: Fences<K>,
}

impl<K: Ord + Clone> Part<K> {
    /// Creates the state of a partition that was not read yet. Nothing may be served until
    /// [`start`](Self::start). `capacity` is the maximum number of fences per cause, and `history` is the
    /// number of applied changes to remember.
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

    /// Begins at the newest event `cursor` (rule 7). The caller [applies](Self::apply) the newest events
    /// next. No entry is cached yet, and rule 12 rejects entries of other replicas from before the first of
    /// these events.
    pub fn start(&mut self, cursor: ChangeId) {
        self.cursor = cursor;
        self.seen = cursor;
        self.applied = Applied::new(self.applied.capacity);
        for fences in [&mut self.changes, &mut self.creations] {
            *fences = Fences::new(fences.capacity);
        }
    }

    /// Returns the cursor. A load notes it before it reads anything (rule 1).
    #[must_use]
    pub fn cursor(&self) -> ChangeId {
        self.cursor
    }

    /// Returns the largest change seen.
    #[must_use]
    pub fn seen(&self) -> ChangeId {
        self.seen
    }

    /// Returns the smallest applied revision that may be served for `key`.
    #[must_use]
    pub fn floor(&self, key: &K, kind: Kind) -> ChangeId {
        let floor = self.changes.floor(key);
        match kind {
            Kind::Present => floor,
            Kind::Absent => floor.later(self.creations.floor(key)),
        }
    }

    /// Returns the watermark: the smallest applied revision that may be served for keys without a fence.
    #[cfg(test)]
    fn dropped(&self, kind: Kind) -> ChangeId {
        match kind {
            Kind::Present => self.changes.dropped,
            Kind::Absent => self.changes.dropped.later(self.creations.dropped),
        }
    }

    /// Returns whether an entry may be stored or served.
    #[must_use]
    pub fn fits(&self, key: &K, kind: Kind, entry_through: ChangeId) -> bool {
        let floor = self.floor(key, kind);
        entry_through.revision >= floor.revision && !entry_through.contradicts(floor)
    }

    /// Raises the fence of `key` (rule 2). From now on nothing is served for `key` that does not reflect
    /// `change`. The caller has to evict entries *after* this call.
    pub fn raise(&mut self, key: K, cause: Cause, change: ChangeId) {
        match cause {
            Cause::Creation => self.creations.raise(key, change),
            Cause::Change => self.changes.raise(key, change),
        }
    }

    /// Compares a loaded record with the current epoch (rule 11). The load noted `noted`, and `last_change`
    /// is the last change of the record that it found.
    ///
    /// # Errors
    /// The record belongs to another epoch.
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

    /// Compares a change that this replica made with the current epoch (rule 11). `seen_before` is the
    /// [largest change seen](Self::seen) when the change began. A new change that is not larger has a revision
    /// that was used before.
    ///
    /// # Errors
    /// The change was made in another epoch.
    pub fn see_own(
        &mut self,
        seen_before: ChangeId,
        change: ChangeId,
        novelty: Novelty,
    ) -> Result<Certainty, Rewound> {
        let is_larger = change.revision > seen_before.revision;
        let certainty = match novelty {
            Novelty::New if !is_larger => return Err(Rewound),
            Novelty::Unknown if !is_larger => Certainty::NeedsPoll,
            Novelty::New | Novelty::Earlier | Novelty::Unknown => Certainty::Certain,
        };
        self.see(ChangeId::NONE, change)?;
        Ok(certainty)
    }

    /// Applies an event of a poll (rule 8). It is compared with the current epoch (rule 10), and then it
    /// raises the key's fence (rule 2). Events have to be applied in their order.
    ///
    /// # Errors
    /// The event belongs to another epoch.
    pub fn apply(&mut self, key: K, cause: Cause, event: ChangeId) -> Result<(), Rewound> {
        self.meet(event)?;
        self.raise(key, cause, event);
        Ok(())
    }

    /// Applies an event that can't be read. Any key may have changed, so it raises the watermark.
    ///
    /// # Errors
    /// The errors of [`apply`](Self::apply).
    pub fn apply_unreadable(&mut self, revision: Revision) -> Result<(), Rewound> {
        let event = ChangeId::of_revision(revision);
        self.meet(event)?;
        for fences in [&mut self.changes, &mut self.creations] {
            fences.dropped = fences.dropped.later(event);
        }
        Ok(())
    }

    fn meet(&mut self, event: ChangeId) -> Result<(), Rewound> {
        // The events have passed the revision of the largest change seen without containing that change.
        let has_passed = event.revision > self.seen.revision && self.seen.revision > self.last_applied();
        if has_passed || event.contradicts(self.seen) {
            return Err(Rewound);
        }
        self.applied.push(event);
        self.seen = self.seen.later(event);
        Ok(())
    }

    /// Advances the cursor (rule 8). All events up to `cursor` were applied.
    pub fn advance(&mut self, cursor: ChangeId) {
        self.cursor = self.cursor.later(cursor);
    }

    /// Checks the result of a poll that has read the feed to its end (rule 10). `seen` is the largest change
    /// seen when the poll was sent.
    ///
    /// # Errors
    /// The feed ends before that change.
    pub fn check_end(&self, seen: ChangeId) -> Result<(), Rewound> {
        if seen.revision > self.cursor.revision { Err(Rewound) } else { Ok(()) }
    }

    /// Returns whether `change` is an applied change of the current epoch (rule 12). Returns false for a
    /// change that is not remembered any more.
    #[must_use]
    pub fn has_applied(&self, change: ChangeId) -> bool {
        match self.applied.at(change.revision) {
            Some(applied) => !applied.contradicts(change),
            None => self.applied.is_empty() && change == self.cursor,
        }
    }

    /// Returns whether the current epoch certainly does not contain this change.
    fn lacks(&self, change: ChangeId) -> bool {
        match self.applied.at(change.revision) {
            Some(applied) => applied.contradicts(change),
            None => self.applied.spans(change.revision),
        }
    }

    fn last_applied(&self) -> Revision {
        self.applied.last().map_or(self.cursor.revision, |last| last.revision.max(self.cursor.revision))
    }

    /// Returns the number of fences.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.changes.by_key.len() + self.creations.by_key.len()
    }
}

/// Larger than any change.
const LAST: ChangeId = ChangeId { revision: Revision::MAX, nonce: ChangeId::UNKNOWN_NONCE };

/// The latest applied changes, in the order of their revisions, without gaps between the first and the last.
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

    /// Returns whether `revision` lies between the first change and the last.
    fn spans(&self, revision: Revision) -> bool {
        let ends = self.changes.front().zip(self.changes.back());
        ends.is_some_and(|(first, last)| first.revision < revision && revision < last.revision)
    }
}

/// A bounded map from keys to the smallest applied revisions that may be served for them (rule 5). `dropped`
/// is the watermark.
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
        // Evict the oldest fence, and raise the watermark to it. It is then the minimum for all keys.
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

    /// Returns the change `number` of the first epoch.
    fn change(number: i64) -> ChangeId {
        ChangeId::new(Revision::new(number), 1)
    }

    /// Returns the change `number` of an epoch that lost changes of the first one.
    fn other(number: i64) -> ChangeId {
        ChangeId::new(Revision::new(number), 2)
    }

    fn part(capacity: usize) -> Part<char> {
        let mut part = Part::new(capacity, 8);
        part.start(ChangeId::NONE);
        part
    }

    /// Returns a partition that has applied the changes 1 to `last` of the first epoch.
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
        // A load saw the change, but the feed ends before it.
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        assert_eq!(part.check_end(part.seen()), Err(Rewound));
        // Another change has its revision.
        assert_eq!(part.apply('b', Cause::Change, other(4)), Ok(()));
        assert_eq!(part.apply('b', Cause::Change, other(5)), Err(Rewound));
        // The events pass its revision without containing it.
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
        // The load noted the fence of this replica's own change, which the feed has not delivered yet.
        assert_eq!(part.see(other(4), change(4)), Err(Rewound));
    }

    #[test]
    fn a_change_with_a_revision_that_was_used_before_is_of_another_history() {
        let mut part = following(3);
        part.see(change(3), change(5)).unwrap();
        assert_eq!(part.see_own(change(5), other(4), Novelty::New), Err(Rewound));
        // It can't be distinguished from a change that was made before the call.
        assert_eq!(part.see_own(change(5), other(4), Novelty::Unknown), Ok(Certainty::NeedsPoll));
        assert_eq!(part.see_own(change(5), change(4), Novelty::Earlier), Ok(Certainty::Certain));
        // The change began before the other one was seen.
        for novelty in [Novelty::New, Novelty::Unknown] {
            assert_eq!(part.see_own(change(3), change(4), novelty), Ok(Certainty::Certain));
        }
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
