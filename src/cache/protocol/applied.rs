//! The latest changes that were applied, with which entries of other replicas and loaded records are compared.

use std::collections::VecDeque;

use crate::domain::{ChangeId, Revision};

/// The latest applied changes, in the order of their revisions, without gaps between the first and the last.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AppliedChanges {
    pub(super) capacity: usize,
    changes: VecDeque<ChangeId>,
}

impl AppliedChanges {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, changes: VecDeque::new() }
    }

    pub(super) fn push(&mut self, change: ChangeId) {
        if self.last().is_some_and(|last| last.revision >= change.revision) {
            return;
        }
        self.changes.push_back(change);
        if self.changes.len() > self.capacity {
            self.changes.pop_front();
        }
    }

    pub(super) fn at(&self, revision: Revision) -> Option<ChangeId> {
        let found = self.changes.binary_search_by_key(&revision, |change| change.revision);
        found.ok().map(|at| self.changes[at])
    }

    pub(super) fn last(&self) -> Option<ChangeId> {
        self.changes.back().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns whether `revision` lies between the first change and the last.
    pub(super) fn spans(&self, revision: Revision) -> bool {
        let ends = self.changes.front().zip(self.changes.back());
        ends.is_some_and(|(first, last)| first.revision < revision && revision < last.revision)
    }
}
