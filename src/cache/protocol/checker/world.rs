//! What the checker knows at one moment: the store, this replica, and what is under way.
//!
//! Time is counted in what happens to the store: commits and rewinds. So "sent before" and "committed after" are numbers.

use std::hash::{Hash, Hasher};

use super::super::{Cause, Kind, Part};
use super::{Bounds, KEY};
use crate::domain::{ChangeId, Revision};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Absent,
    Active,
    Revoked,
}

/// What happens to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Happening {
    /// A change of the watched key, with its state afterwards, or of the other one.
    Commit { id: ChangeId, value: Option<Value> },
    /// Every change after this revision is lost.
    Rewind { to: i64 },
}

/// An event of the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) id: ChangeId,
    pub(super) value: Option<Value>,
    pub(super) time: usize,
}

/// What the watched key was from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) since: usize,
    pub(super) value: Value,
    /// The change that made it so, perhaps long before a rewind brought it back.
    pub(super) id: ChangeId,
}

/// An entry: which of the key's states it has, and what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fact {
    pub(super) state: usize,
    pub(super) through: ChangeId,
    /// When its load began; 0 if another replica loaded it.
    pub(super) began: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Load {
    pub(super) noted: ChangeId,
    pub(super) began: usize,
    pub(super) found: Option<Found>,
    pub(super) is_stored: bool,
}

/// What a load found, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Found {
    pub(super) fact: Fact,
    pub(super) is_of_store: bool,
    /// The poll that its age counts from, if it is one of the second cache.
    pub(super) confirmed: usize,
}

/// A change that this replica makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    pub(super) id: ChangeId,
    /// When it was made.
    pub(super) time: usize,
    /// The largest change seen when it began.
    pub(super) seen: ChangeId,
    pub(super) is_new: bool,
    pub(super) epoch: u8,
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
    /// A poll has to be completed that was sent at this time or later, before it is answered.
    AwaitsPoll(usize),
    /// The same, and nothing was found.
    NotFound(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Poll {
    pub(super) sent: usize,
    /// The largest change seen when it was sent.
    pub(super) seen: ChangeId,
    /// What it read, if it has.
    pub(super) read: Option<Vec<Event>>,
    pub(super) applied: i64,
    /// The fence of the event after `applied` is up, or the event is taken out, whichever comes first.
    pub(super) is_half: bool,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) timeline: Vec<Happening>,
    /// What follows from the timeline: the feed, the states of the key and the newest change at each time.
    pub(super) log: Vec<Event>,
    pub(super) states: Vec<State>,
    pub(super) heads: Vec<ChangeId>,
    pub(super) part: Part<u8>,
    /// Counts the histories that this replica followed.
    pub(super) epoch: u8,
    /// The history was found to be rewound: nothing is served until the next one is followed.
    pub(super) is_closed: bool,
    pub(super) cache: Option<Fact>,
    pub(super) loads: Vec<Load>,
    pub(super) change: Option<Change>,
    pub(super) poll: Option<Poll>,
    /// When the last poll was sent that was completed.
    pub(super) confirmed: usize,
    /// The times of the key's changes that this replica answered: bits.
    pub(super) answered: u32,
    pub(super) changes: u8,
    pub(super) other_changes: u8,
    pub(super) rewinds: u8,
    pub(super) restarts: u8,
}

/// What follows from the rest is left out.
impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.timeline, &self.part, self.epoch, self.is_closed, self.cache).hash(hasher);
        (&self.loads, self.change, &self.poll, self.confirmed, self.answered).hash(hasher);
        (self.changes, self.other_changes, self.rewinds, self.restarts).hash(hasher);
    }
}

pub(super) fn change_id(revision: i64, nonce: u64) -> ChangeId {
    ChangeId::new(Revision::new(revision), nonce)
}

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        let first = change_id(1, 1);
        let mut part = Part::new(bounds.capacity, bounds.history);
        part.start(first);
        part.apply(KEY, Cause::Creation, first).unwrap();
        let mut world = Self {
            timeline: Vec::new(),
            log: Vec::new(),
            states: Vec::new(),
            heads: Vec::new(),
            part,
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
        // The key was made by revision 1.
        world.happens(Happening::Commit { id: first, value: Some(Value::Active) });
        world
    }

    pub(super) fn now(&self) -> usize {
        self.timeline.len()
    }

    pub(super) fn head(&self) -> ChangeId {
        self.heads[self.now() - 1]
    }

    /// Makes a change; returns it. Its nonce tells the history in which it is made.
    pub(super) fn commit(&mut self, value: Option<Value>) -> ChangeId {
        let rewinds = self.timeline.iter().filter(|it| matches!(it, Happening::Rewind { .. })).count();
        let id = change_id(self.head().revision.get() + 1, u64::try_from(rewinds).unwrap() + 1);
        self.happens(Happening::Commit { id, value });
        id
    }

    /// A rewind that loses a change of the key brings a former state back.
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

    pub(super) fn kind(&self, fact: Fact) -> Kind {
        if self.states[fact.state].value == Value::Absent { Kind::Absent } else { Kind::Present }
    }

    /// Whether it fits at the fences. Only a world that is not closed serves anything.
    pub(super) fn fits(&self, fact: Fact) -> bool {
        !self.is_closed && self.part.fits(&KEY, self.kind(fact), fact.through)
    }

    /// What the event number `at` of `log` is for the rules.
    pub(super) fn cause_of(log: &[Event], at: usize) -> Cause {
        if log[at].value.is_none() {
            return Cause::Change;
        }
        // The key was made again if it was absent before.
        let before = log[..at].iter().rev().find_map(|earlier| earlier.value);
        if before == Some(Value::Absent) || before.is_none() { Cause::Creation } else { Cause::Change }
    }

    pub(super) fn take_out(&mut self) {
        self.cache = self.cache.filter(|&fact| self.fits(fact));
    }

    /// Nothing of the history that was followed is served any more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.cache = None;
        self.loads.clear();
        self.poll = None;
        self.confirmed = 0;
    }

    /// The time of the newest change of the key that this replica answered and that was not lost.
    fn answered(&self) -> usize {
        let is_answered = |event: &&Event| self.answered & (1 << event.time) != 0;
        self.log.iter().filter(is_answered).map(|event| event.time).max().unwrap_or(0)
    }

    /// Whether an answer that rests on `fact`, and whose age counts from the poll `confirmed`, keeps what is promised.
    pub(super) fn judge(&self, fact: Fact, confirmed: usize) -> Result<(), String> {
        let states = &self.states;
        // A rewind can bring its state back.
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
