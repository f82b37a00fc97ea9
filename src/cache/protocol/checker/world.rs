//! What the checker knows at one moment: the store, this replica, and what is under way.

use super::super::{Cause, Kind, Part};
use super::{Bounds, KEY};
use crate::domain::Revision;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Absent,
    Active,
    Revoked,
}

/// An entry: which of the key's states it has, and what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fact {
    pub(super) state: usize,
    pub(super) through: i64,
    /// The newest revision when its load began; 0 if another replica loaded it.
    pub(super) began: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Load {
    pub(super) noted: i64,
    pub(super) began: i64,
    pub(super) found: Option<Fact>,
    pub(super) is_stored: bool,
}

/// A change that this replica makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) revision: i64,
    /// The state that is put into the cache.
    pub(super) state: usize,
    pub(super) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Committed,
    Fenced,
    TakenOut,
    Put,
    /// Nothing was found; a poll that is sent later than this revision was reached has to be completed.
    NotFound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Poll {
    pub(super) sent: i64,
    /// The newest revision that it read, when it has.
    pub(super) read: Option<i64>,
    pub(super) applied: i64,
    /// The fence of the event after `applied` is up, or the event is taken out, whichever comes first.
    pub(super) is_half: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    /// What each revision changed: the watched key, with its state afterwards, or the other one.
    pub(super) log: Vec<Option<Value>>,
    pub(super) part: Part<u8>,
    pub(super) cache: Option<Fact>,
    pub(super) loads: Vec<Load>,
    pub(super) change: Option<Change>,
    pub(super) poll: Option<Poll>,
    /// The newest revision when the last poll was sent that was completed.
    pub(super) confirmed: i64,
    /// The newest change of the key that this replica answered.
    pub(super) answered: i64,
    pub(super) changes: u8,
    pub(super) other_changes: u8,
    pub(super) restarts: u8,
}

pub(super) fn rev(number: i64) -> Revision {
    Revision::new(number)
}

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        let mut part = Part::new(bounds.capacity);
        part.start(rev(1), rev(0));
        part.raise(KEY, Cause::Creation, rev(1));
        // The key was made by revision 1.
        Self {
            log: vec![Some(Value::Active)],
            part,
            cache: None,
            loads: Vec::new(),
            change: None,
            poll: None,
            confirmed: 0,
            answered: 0,
            changes: bounds.changes,
            other_changes: bounds.other_changes,
            restarts: bounds.restarts,
        }
    }

    pub(super) fn head(&self) -> i64 {
        i64::try_from(self.log.len()).unwrap()
    }

    pub(super) fn at(&self, revision: i64) -> Option<Value> {
        self.log[usize::try_from(revision - 1).unwrap()]
    }

    /// The revisions that changed the key: the first of each of its states.
    pub(super) fn states(&self) -> Vec<i64> {
        (1..=self.head()).filter(|&revision| self.at(revision).is_some()).collect()
    }

    pub(super) fn value(&self, state: usize) -> Value {
        self.at(self.states()[state]).unwrap()
    }

    pub(super) fn kind(&self, fact: Fact) -> Kind {
        if self.value(fact.state) == Value::Absent { Kind::Absent } else { Kind::Present }
    }

    pub(super) fn fits(&self, fact: Fact) -> bool {
        self.part.fits(&KEY, self.kind(fact), rev(fact.through))
    }

    pub(super) fn cause_of(&self, revision: i64) -> Cause {
        // The key was made again if it was absent before.
        let before = (1..revision).rev().find_map(|earlier| self.at(earlier));
        if before == Some(Value::Absent) || before.is_none() { Cause::Creation } else { Cause::Change }
    }

    pub(super) fn take_out(&mut self) {
        self.cache = self.cache.filter(|&fact| self.fits(fact));
    }

    /// Whether an answer that rests on `fact` keeps what is promised.
    pub(super) fn judge(&self, fact: Fact) -> Result<(), String> {
        let superseded = self.states().get(fact.state + 1).copied().unwrap_or(i64::MAX);
        for (what, revision) in
            [("answered", self.answered), ("confirmed", self.confirmed), ("begun", fact.began)]
        {
            if superseded <= revision {
                return Err(format!("{fact:?} was served, although {superseded} was {what} (by {revision})"));
            }
        }
        Ok(())
    }
}
