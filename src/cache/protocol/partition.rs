//! The state that the rules need for one partition of the change feed.

use super::applied::AppliedChanges;
use super::fences::Fences;
use super::{Cause, Certainty, EntryKind, Novelty, Rewound};
use crate::domain::{ChangeId, Revision};

/// Larger than any change.
const LAST: ChangeId = ChangeId { revision: Revision::MAX, nonce: ChangeId::UNKNOWN_NONCE };

/// The state of this replica for one partition of the feed, and so for all keys of that partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Partition<K> {
    cursor: ChangeId,
    pub(super) largest_seen: ChangeId,
    applied: AppliedChanges,
    pub(super) changes: Fences<K>,
    pub(super) creations: Fences<K>,
}

impl<K: Ord + Clone> Partition<K> {
    /// Creates the state of a partition that was not read yet. Nothing may be served until
    /// [`start`](Self::start). `capacity` is the maximum number of fences per cause, and `remembered` is the
    /// number of applied changes to remember.
    #[must_use]
    pub(crate) fn new(capacity: usize, remembered: usize) -> Self {
        let closed = || Fences::with_watermark(capacity, LAST);
        Self {
            cursor: ChangeId::NONE,
            largest_seen: ChangeId::NONE,
            applied: AppliedChanges::new(remembered),
            changes: closed(),
            creations: closed(),
        }
    }

    /// Begins at the newest event `cursor` (rule 6). The caller [applies](Self::apply) the newest events
    /// next. No entry is cached yet, and rule 11 rejects entries of other replicas from before the first of
    /// these events.
    pub(crate) fn start(&mut self, cursor: ChangeId) {
        self.cursor = cursor;
        self.largest_seen = cursor;
        self.applied = AppliedChanges::new(self.applied.capacity);
        for fences in [&mut self.changes, &mut self.creations] {
            *fences = Fences::new(fences.capacity);
        }
    }

    /// Returns the cursor. A load notes it before it reads anything (rule 1).
    #[must_use]
    pub(crate) fn cursor(&self) -> ChangeId {
        self.cursor
    }

    /// Returns the largest change seen.
    #[must_use]
    pub(crate) fn largest_seen(&self) -> ChangeId {
        self.largest_seen
    }

    /// Returns the smallest applied revision that may be served for `key`.
    #[must_use]
    pub(crate) fn minimum(&self, key: &K, kind: EntryKind) -> ChangeId {
        let minimum = self.changes.minimum(key);
        match kind {
            EntryKind::Record => minimum,
            EntryKind::Negative => minimum.later(self.creations.minimum(key)),
        }
    }

    /// Returns the watermark: the smallest applied revision that may be served for keys without a fence.
    #[cfg(test)]
    pub(super) fn watermark(&self, kind: EntryKind) -> ChangeId {
        match kind {
            EntryKind::Record => self.changes.watermark,
            EntryKind::Negative => self.changes.watermark.later(self.creations.watermark),
        }
    }

    /// Returns whether an entry may be stored or served.
    #[must_use]
    pub(crate) fn fits(&self, key: &K, kind: EntryKind, applied_revision: ChangeId) -> bool {
        let minimum = self.minimum(key, kind);
        applied_revision.revision >= minimum.revision && !applied_revision.contradicts(minimum)
    }

    /// Raises the fence of `key` (rule 2). From now on nothing is served for `key` that does not reflect
    /// `change`. The caller has to evict entries *after* this call.
    pub(crate) fn raise(&mut self, key: K, cause: Cause, change: ChangeId) {
        match cause {
            Cause::Creation => self.creations.raise(key, change),
            Cause::Change => self.changes.raise(key, change),
        }
    }

    /// Compares a loaded record with the current epoch (rule 10). The load noted `noted`, and `last_change`
    /// is the last change of the record that it found.
    ///
    /// # Errors
    /// The record belongs to another epoch.
    pub(crate) fn check_loaded(&mut self, noted: ChangeId, last_change: ChangeId) -> Result<(), Rewound> {
        let is_of_another = last_change.contradicts(noted)
            || last_change.contradicts(self.largest_seen)
            || self.lacks(last_change);
        if is_of_another {
            return Err(Rewound);
        }
        if last_change.revision == self.largest_seen.revision
            && self.largest_seen.nonce == ChangeId::UNKNOWN_NONCE
        {
            self.largest_seen = last_change;
        }
        self.largest_seen = self.largest_seen.later(last_change);
        Ok(())
    }

    /// Compares a change that this replica made with the current epoch (rule 10). `largest_before` is the
    /// [largest change seen](Self::largest_seen) when the change began. A new change that is not larger has a revision
    /// that was used before.
    ///
    /// # Errors
    /// The change was made in another epoch.
    pub(crate) fn check_own(
        &mut self,
        largest_before: ChangeId,
        change: ChangeId,
        novelty: Novelty,
    ) -> Result<Certainty, Rewound> {
        let is_larger = change.revision > largest_before.revision;
        let certainty = match novelty {
            Novelty::New if !is_larger => return Err(Rewound),
            // The key may have a larger change in this epoch, which the backend has lost.
            Novelty::Unknown if !is_larger => Certainty::NeedsPoll,
            Novelty::New | Novelty::Unknown => Certainty::Certain,
        };
        self.check_loaded(ChangeId::NONE, change)?;
        Ok(certainty)
    }

    /// Applies an event of a poll (rule 7). It is compared with the current epoch (rule 9), and then it
    /// raises the key's fence (rule 2). Events have to be applied in their order.
    ///
    /// # Errors
    /// The event belongs to another epoch.
    pub(crate) fn apply(&mut self, key: K, cause: Cause, event: ChangeId) -> Result<(), Rewound> {
        self.check_event(event)?;
        self.raise(key, cause, event);
        Ok(())
    }

    /// Applies an event that can't be read. Any key may have changed, so it raises the watermark.
    ///
    /// # Errors
    /// The errors of [`apply`](Self::apply).
    pub(crate) fn apply_unreadable(&mut self, revision: Revision) -> Result<(), Rewound> {
        let event = ChangeId::of_revision(revision);
        self.check_event(event)?;
        for fences in [&mut self.changes, &mut self.creations] {
            fences.watermark = fences.watermark.later(event);
        }
        Ok(())
    }

    pub(super) fn check_event(&mut self, event: ChangeId) -> Result<(), Rewound> {
        // The events have passed the revision of the largest change seen without containing that change.
        let has_passed =
            event.revision > self.largest_seen.revision && self.largest_seen.revision > self.last_applied();
        if has_passed || event.contradicts(self.largest_seen) {
            return Err(Rewound);
        }
        self.applied.push(event);
        self.largest_seen = self.largest_seen.later(event);
        Ok(())
    }

    /// Advances the cursor (rule 7). All events up to `cursor` were applied.
    pub(crate) fn advance(&mut self, cursor: ChangeId) {
        self.cursor = self.cursor.later(cursor);
    }

    /// Checks the result of a poll that has read the feed to its end (rule 9). `largest_seen` is the largest change
    /// seen when the poll was sent.
    ///
    /// # Errors
    /// The feed ends before that change.
    pub(crate) fn check_end(&self, largest_seen: ChangeId) -> Result<(), Rewound> {
        if largest_seen.revision > self.cursor.revision { Err(Rewound) } else { Ok(()) }
    }

    /// Returns whether `change` is an applied change of the current epoch (rule 11). Returns false for a
    /// change that is not remembered any more.
    #[must_use]
    pub(crate) fn has_applied(&self, change: ChangeId) -> bool {
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
    pub(crate) fn fences(&self) -> usize {
        self.changes.len() + self.creations.len()
    }
}
