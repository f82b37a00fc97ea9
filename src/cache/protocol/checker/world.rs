//! The state of the model at one moment: the backend, this replica, and all operations in progress.
//!
//! Time is the number of commits and rewinds of the backend, so "sent before" and "committed after" are
//! comparisons of numbers.

use std::hash::{Hash, Hasher};

use super::super::{Cause, EntryKind, Novelty, Partition};
use super::{Bounds, KEY};
use crate::domain::{ChangeId, Revision};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Absent,
    Active,
    Revoked,
}

/// An event in the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Happening {
    /// A change of the watched key, with its new state, or of the other key (`None`).
    Commit { id: ChangeId, value: Option<Value> },
    /// All changes after this revision are lost.
    Rewind { to: i64 },
}

/// An event of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) id: ChangeId,
    pub(super) value: Option<Value>,
    pub(super) time: usize,
}

/// A state of the watched key, and the time from which it applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) since: usize,
    pub(super) value: Value,
    /// The change that led to this state. It may be much older if a rewind restored the state.
    pub(super) id: ChangeId,
}

/// An entry: the state of the key that it reflects, and its applied revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fact {
    pub(super) state: usize,
    pub(super) applied_revision: ChangeId,
    /// The time at which its load began. 0 if another replica loaded it.
    pub(super) began: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Load {
    pub(super) noted: ChangeId,
    pub(super) began: usize,
    pub(super) found: Option<Found>,
    pub(super) is_stored: bool,
}

/// The result of a load and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Found {
    pub(super) fact: Fact,
    pub(super) is_of_backend: bool,
    /// The poll from which the staleness counts, for an entry of the second cache.
    pub(super) confirmed: usize,
}

/// A change that this replica makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) id: ChangeId,
    /// The time at which the change was made.
    pub(super) time: usize,
    /// The largest change seen when the change began.
    pub(super) largest_seen: ChangeId,
    pub(super) novelty: Novelty,
    /// Whether a poll has to be completed before the change is acknowledged.
    pub(super) needs_poll: bool,
    pub(super) epoch: u8,
    /// The state of the key that is put into the cache.
    pub(super) state: usize,
    pub(super) step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Committed,
    Fenced,
    Evicted,
    Put,
    /// The change is answered after a poll has completed that was sent after this step began.
    AwaitsPoll(Awaited),
    /// The change found no key, and is answered after a poll has completed that was sent after this step began.
    NotFound(Awaited),
}

/// The progress of a poll that a change awaits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Awaited {
    /// It was not sent yet. A poll that is in flight does not count.
    Unsent,
    Sent,
    Completed,
}

impl Step {
    /// Returns the step after the poll that it awaits has progressed from `from` to `to`.
    fn progressed(self, from: Awaited, to: Awaited) -> Self {
        match self {
            Self::AwaitsPoll(awaited) if awaited == from => Self::AwaitsPoll(to),
            Self::NotFound(awaited) if awaited == from => Self::NotFound(to),
            step => step,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Poll {
    pub(super) sent: usize,
    /// The largest change seen when the poll was sent.
    pub(super) largest_seen: ChangeId,
    /// The events that the poll has read. `None` if it has not read them yet.
    pub(super) read: Option<Vec<Event>>,
    pub(super) applied: i64,
    /// Whether the event after `applied` is half applied, that is, its fence is raised, but entries are not
    /// evicted yet.
    pub(super) is_half: bool,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) timeline: Vec<Happening>,
    /// Derived from the timeline: the feed, the states of the key, and the newest change at each time.
    pub(super) log: Vec<Event>,
    pub(super) states: Vec<State>,
    pub(super) heads: Vec<ChangeId>,
    pub(super) partition: Partition<u8>,
    /// Number of epochs that this replica followed.
    pub(super) epoch: u8,
    /// Whether the backend was found to be rewound. Nothing is served until the next epoch is followed.
    pub(super) is_closed: bool,
    pub(super) cache: Option<Fact>,
    pub(super) loads: Vec<Load>,
    pub(super) change: Option<Change>,
    pub(super) poll: Option<Poll>,
    /// The time at which the last completed poll was sent.
    pub(super) confirmed: usize,
    /// The times of the acknowledged changes of the key, as bits.
    pub(super) answered: u32,
    pub(super) changes: u8,
    pub(super) other_changes: u8,
    pub(super) rewinds: u8,
    pub(super) restarts: u8,
}

/// Leaves out fields that are derived from others.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.timeline, &self.partition, self.epoch, self.is_closed, self.cache).hash(hasher);
        (&self.loads, self.change, &self.poll, self.confirmed, self.answered).hash(hasher);
        (self.changes, self.other_changes, self.rewinds, self.restarts).hash(hasher);
    }
}

pub(super) fn change_id(revision: i64, nonce: u64) -> ChangeId {
    ChangeId::new(Revision::new(revision), nonce)
}

impl World {
    /// Records the progress of a poll for a change that awaits one.
    pub(super) fn poll_progressed(&mut self, from: Awaited, to: Awaited) {
        if let Some(change) = &mut self.change {
            change.step = change.step.progressed(from, to);
        }
    }

    pub(super) fn new(bounds: Bounds) -> Self {
        let first = change_id(1, 1);
        let mut partition = Partition::new(bounds.capacity, bounds.remembered);
        partition.start(first);
        partition.apply(KEY, Cause::Creation, first).unwrap();
        let mut world = Self {
            timeline: Vec::new(),
            log: Vec::new(),
            states: Vec::new(),
            heads: Vec::new(),
            partition,
            epoch: 0,
            is_closed: false,
            cache: None,
            loads: Vec::new(),
            change: None,
            poll: None,
            confirmed: 0,
            answered: 0,
            changes: bounds.changes,
            other_changes: bounds.other_changes,
            rewinds: bounds.rewinds,
            restarts: bounds.restarts,
        };
        // Revision 1 creates the key.
        world.happens(Happening::Commit { id: first, value: Some(Value::Active) });
        world
    }

    pub(super) fn now(&self) -> usize {
        self.timeline.len()
    }

    pub(super) fn head(&self) -> ChangeId {
        self.heads[self.now() - 1]
    }

    /// Makes a change and returns it. Its nonce identifies the epoch.
    pub(super) fn commit(&mut self, value: Option<Value>) -> ChangeId {
        let rewinds = self.timeline.iter().filter(|it| matches!(it, Happening::Rewind { .. })).count();
        let id = change_id(self.head().revision.get() + 1, u64::try_from(rewinds).unwrap() + 1);
        self.happens(Happening::Commit { id, value });
        id
    }

    /// Records an event in the backend. A rewind that loses a change of the key restores an earlier state.
    pub(super) fn happens(&mut self, happening: Happening) {
        self.timeline.push(happening);
        let time = self.now();
        match happening {
            Happening::Commit { id, value } => self.log.push(Event { id, value, time }),
            Happening::Rewind { to } => self.log.retain(|event| event.id.revision.get() <= to),
        }
        self.heads.push(self.log.last().map_or(ChangeId::NONE, |event| event.id));
        let of_key = self.log.iter().rev().find_map(|event| Some((event.id, event.value?)));
        let (id, value) = of_key.unwrap_or((ChangeId::NONE, Value::Absent));
        if self.states.last().is_none_or(|last| last.id != id) {
            self.states.push(State { since: time, value, id });
        }
    }

    pub(super) fn kind(&self, fact: Fact) -> EntryKind {
        if self.states[fact.state].value == Value::Absent { EntryKind::Negative } else { EntryKind::Record }
    }

    /// Returns whether an entry meets the fences. A closed world serves nothing.
    pub(super) fn fits(&self, fact: Fact) -> bool {
        !self.is_closed && self.partition.fits(&KEY, self.kind(fact), fact.applied_revision)
    }

    /// Returns how the rules classify the event number `at` of `log`.
    pub(super) fn cause_of(log: &[Event], at: usize) -> Cause {
        if log[at].value.is_none() {
            return Cause::Change;
        }
        // The event is a creation if the key did not exist before.
        let before = log[..at].iter().rev().find_map(|earlier| earlier.value);
        if before == Some(Value::Absent) || before.is_none() { Cause::Creation } else { Cause::Change }
    }

    pub(super) fn evict(&mut self) {
        self.cache = self.cache.filter(|&fact| self.fits(fact));
    }

    /// Ends the epoch, so that nothing of it is served any more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.cache = None;
        self.loads.clear();
        self.poll = None;
        self.confirmed = 0;
    }

    /// Returns the time of the newest acknowledged change of the key that was not lost.
    fn answered(&self) -> usize {
        let is_answered = |event: &&Event| self.answered & (1 << event.time) != 0;
        self.log.iter().filter(is_answered).map(|event| event.time).max().unwrap_or(0)
    }

    /// Checks the guarantee for an answer from `fact` whose staleness counts from the poll `confirmed`.
    pub(super) fn judge(&self, fact: Fact, confirmed: usize) -> Result<(), String> {
        let states = &self.states;
        // A rewind can restore the state, so the latest state made by the same change counts.
        let id = states[fact.state].id;
        let state = states.iter().rposition(|state| state.id == id).unwrap();
        let superseded = states.get(state + 1).map_or(usize::MAX, |next| next.since);
        for (what, time) in [("answered", self.answered()), ("confirmed", confirmed), ("begun", fact.began)] {
            if superseded <= time {
                return Err(format!(
                    "{fact:?} was served, although {superseded} was {what} (by {time}): {:?}",
                    self.timeline
                ));
            }
        }
        Ok(())
    }
}
