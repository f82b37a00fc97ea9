//! The rules by which a cached record may be served: a pure state machine.
//!
//! It is generic over what keys are called and knows neither time nor I/O, so the checker in its tests explores the very
//! code that the server runs. [`Knowledge`](super::Knowledge) holds one [`Part`] for each part of the change feed.
//!
//! Words: the **cursor** is the revision up to which this replica has applied all events. An entry of a cache carries
//! `through`: it reflects every event up to that revision. The **floor** of a key is the smallest `through` that may be
//! served for it: that of its **fence**, if it has one, or `dropped`, which holds for all keys.
//!
//! An entry is a key or says that there is none. An event that tells of a *creation* can only make the latter stale: if the
//! key was there before, then another event has told that it was deleted. So such events have fences of their own, and an
//! import of a million keys costs nobody the records that are cached. It takes the feed for that: a replica that makes a
//! key may not have heard yet that it was deleted, so its own creations are changes like any other.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::Revision;

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

/// The `through` of what a load found (rule 1). `noted` is the cursor from before the load read anything; a record also
/// reflects the change that gave it its `revision`. That there is none reflects no more than was noted.
#[must_use]
pub fn through(noted: Revision, revision: Option<Revision>) -> Revision {
    revision.map_or(noted, |revision| revision.max(noted))
}

/// Whether an entry that is to be stored may take the place of one that is there (rule 3).
#[must_use]
pub fn may_replace(new_through: Revision, old_through: Revision) -> bool {
    new_through >= old_through
}

/// What this replica knows of one part of the feed, and so of all keys whose changes are told there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part<K> {
    cursor: Revision,
    changes: Fences<K>,
    creations: Fences<K>,
}

impl<K: Ord + Clone> Part<K> {
    /// A part of which nothing was read yet: nothing fits, until [`start`](Self::start). It has room for `capacity` fences
    /// of each cause.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let closed = || Fences { dropped: Revision::new(i64::MAX), ..Fences::new(capacity) };
        Self { cursor: Revision::NONE, changes: closed(), creations: closed() }
    }

    /// Rule 7: `cursor` is the newest event, `dropped` the revision before the oldest event that was read; the events in
    /// between are [raised](Self::raise) next.
    pub fn start(&mut self, cursor: Revision, dropped: Revision) {
        self.cursor = cursor;
        for fences in [&mut self.changes, &mut self.creations] {
            *fences = Fences { dropped, ..Fences::new(fences.capacity) };
        }
    }

    /// Rule 1: what a load notes before it reads anything.
    #[must_use]
    pub fn cursor(&self) -> Revision {
        self.cursor
    }

    /// The smallest `through` that may be served for `key`.
    #[must_use]
    pub fn floor(&self, key: &K, kind: Kind) -> Revision {
        let floor = self.changes.floor(key);
        match kind {
            Kind::Present => floor,
            Kind::Absent => floor.max(self.creations.floor(key)),
        }
    }

    /// The smallest `through` that may be served for a key without a fence of its own.
    #[cfg(test)]
    fn dropped(&self, kind: Kind) -> Revision {
        match kind {
            Kind::Present => self.changes.dropped,
            Kind::Absent => self.changes.dropped.max(self.creations.dropped),
        }
    }

    /// Whether an entry may be stored or served.
    #[must_use]
    pub fn fits(&self, key: &K, kind: Kind, entry_through: Revision) -> bool {
        entry_through >= self.floor(key, kind)
    }

    /// Rule 2: from now on nothing is served for `key` that does not reflect its change `revision`. What no longer fits is
    /// taken out *after* that.
    pub fn raise(&mut self, key: K, cause: Cause, revision: Revision) {
        match cause {
            Cause::Creation => self.creations.raise(key, revision),
            Cause::Change => self.changes.raise(key, revision),
        }
    }

    /// Rule 8: all events up to `cursor` were applied.
    pub fn advance(&mut self, cursor: Revision) {
        self.cursor = self.cursor.max(cursor);
    }

    /// How many fences there are.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.changes.by_key.len() + self.creations.by_key.len()
    }
}

/// A bounded map from keys to the smallest `through` that may be served for them (rule 5).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Fences<K> {
    capacity: usize,
    by_key: BTreeMap<K, Revision>,
    oldest_first: BTreeSet<(Revision, K)>,
    dropped: Revision,
}

impl<K: Ord + Clone> Fences<K> {
    fn new(capacity: usize) -> Self {
        Self { capacity, by_key: BTreeMap::new(), oldest_first: BTreeSet::new(), dropped: Revision::NONE }
    }

    fn floor(&self, key: &K) -> Revision {
        self.by_key.get(key).copied().unwrap_or(Revision::NONE).max(self.dropped)
    }

    fn raise(&mut self, key: K, revision: Revision) {
        if self.floor(&key) >= revision {
            return;
        }
        if let Some(former) = self.by_key.insert(key.clone(), revision) {
            self.oldest_first.remove(&(former, key.clone()));
        }
        self.oldest_first.insert((revision, key));
        // Room is made by holding all keys to what the oldest fence held one to.
        while self.by_key.len() > self.capacity
            && let Some((oldest, key)) = self.oldest_first.pop_first()
        {
            self.dropped = self.dropped.max(oldest);
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod checker;

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64) -> Revision {
        Revision::new(number)
    }

    fn part(capacity: usize) -> Part<char> {
        let mut part = Part::new(capacity);
        part.start(Revision::NONE, Revision::NONE);
        part
    }

    #[test]
    fn a_part_that_was_not_started_serves_nothing() {
        let part = Part::<char>::new(8);
        assert!(!part.fits(&'a', Kind::Present, revision(1_000_000)));
        assert!(!part.fits(&'a', Kind::Absent, revision(1_000_000)));
    }

    #[test]
    fn a_fence_holds_its_key_alone() {
        let mut part = part(8);
        part.raise('a', Cause::Change, revision(5));
        assert!(!part.fits(&'a', Kind::Present, revision(4)));
        assert!(part.fits(&'a', Kind::Present, revision(5)));
        assert!(part.fits(&'b', Kind::Present, revision(1)));
        part.raise('a', Cause::Change, revision(3));
        assert_eq!(part.floor(&'a', Kind::Present), revision(5), "it never goes down");
    }

    #[test]
    fn a_creation_makes_only_absence_stale() {
        let mut part = part(1);
        part.raise('a', Cause::Creation, revision(5));
        part.raise('b', Cause::Creation, revision(6));
        assert!(part.fits(&'a', Kind::Present, revision(1)));
        assert!(!part.fits(&'a', Kind::Absent, revision(4)));
        assert_eq!(part.dropped(Kind::Present), Revision::NONE);
        assert_eq!(part.dropped(Kind::Absent), revision(5));
    }

    #[test]
    fn to_make_room_all_keys_are_held_to_the_oldest_fence() {
        let mut part = part(2);
        for (key, number) in [('a', 1), ('b', 2), ('a', 3), ('c', 4)] {
            part.raise(key, Cause::Change, revision(number));
        }
        assert_eq!(part.fences(), 2);
        assert_eq!(part.dropped(Kind::Present), revision(2), "that of b; a's was raised meanwhile");
        assert!(!part.fits(&'x', Kind::Present, revision(1)));
        assert_eq!(part.floor(&'a', Kind::Present), revision(3));
    }

    #[test]
    fn absence_reflects_what_was_noted_and_a_record_its_own_change_too() {
        assert_eq!(through(revision(3), None), revision(3));
        assert_eq!(through(revision(3), Some(revision(2))), revision(3));
        assert_eq!(through(revision(3), Some(revision(7))), revision(7));
    }
}
