//! Explores the rules exhaustively: one replica, one key that is watched, and another whose changes make fences overflow.
//!
//! All other replicas are in what the second cache may hold: **any** entry that is honest, that is, one that some replica
//! could have written at some time. That includes caches that were flushed, filled late, or lost.
//!
//! What must hold of every answer from a cache, and of every load that is handed to one who waits for it: the store was as
//! it says after each change of the key that this replica answered, after the poll that the answer counts its age by was
//! sent, and after the load began. Whoever leaves out a guard finds a violation within a few steps.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};

use super::{Cause, Kind, Part, may_replace, through};
use crate::domain::Revision;

/// The key that is watched, and the other one.
const KEY: u8 = 0;
const OTHER: u8 = 1;

/// How far it explores.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    changes: u8,
    other_changes: u8,
    loads: usize,
    restarts: u8,
    capacity: usize,
}

/// A guard that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// 1: the cursor is noted before anything is read.
    NotedBeforeReading,
    /// 1: an entry of the second cache keeps its `through`.
    ThroughIsKept,
    /// 1: that there is no key reflects what was noted and no more.
    AbsenceKnowsWhatWasNoted,
    /// 2: a change raises a fence.
    ChangeRaises,
    /// 2: a change takes out.
    ChangeTakesOut,
    /// 2: the fence goes up before anything is taken out.
    FenceGoesFirst,
    /// 2: a revocation that changed nothing counts.
    RepeatedRevokeCounts,
    /// 2: a change that found nothing completes a poll.
    NotFoundPolls,
    /// 2: an event raises a fence.
    EventRaises,
    /// 2: an event takes out.
    EventTakesOut,
    /// 2: an event that tells of a creation raises a fence for absence.
    CreationRaises,
    /// 3: only what fits is stored.
    OnlyFittingIsStored,
    /// 4: a load is judged when it is handed over.
    HandedOverIsJudged,
    /// 5: `dropped` is raised to the fence that has to go.
    OverflowRaises,
    /// 7: a start holds all keys to the oldest event that was read.
    StartHolds,
    /// 8: the cursor advances after the events were applied.
    AppliedBeforeAdvancing,
    /// 9: a poll counts from when it was sent.
    CountsFromSending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Value {
    Absent,
    Active,
    Revoked,
}

/// An entry: which of the key's states it has, and what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Fact {
    state: usize,
    through: i64,
    /// The newest revision when its load began; 0 if another replica loaded it.
    began: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Load {
    noted: i64,
    began: i64,
    found: Option<Fact>,
    is_stored: bool,
}

/// A change that this replica makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Change {
    revision: i64,
    /// The state that is put into the cache.
    state: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Committed,
    Fenced,
    TakenOut,
    Put,
    /// Nothing was found; a poll that is sent later than this revision was reached has to be completed.
    NotFound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Poll {
    sent: i64,
    /// The newest revision that it read, when it has.
    read: Option<i64>,
    applied: i64,
    /// The fence of the event after `applied` is up, or the event is taken out, whichever comes first.
    is_half: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    /// What each revision changed: the watched key, with its state afterwards, or the other one.
    log: Vec<Option<Value>>,
    part: Part<u8>,
    cache: Option<Fact>,
    loads: Vec<Load>,
    change: Option<Change>,
    poll: Option<Poll>,
    /// The newest revision when the last poll was sent that was completed.
    confirmed: i64,
    /// The newest change of the key that this replica answered.
    answered: i64,
    changes: u8,
    other_changes: u8,
    restarts: u8,
}

struct Checker {
    bounds: Bounds,
    without: Option<Guard>,
}

type Steps = Vec<(String, Result<World, String>)>;

fn rev(number: i64) -> Revision {
    Revision::new(number)
}

impl World {
    fn new(bounds: Bounds) -> Self {
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

    fn head(&self) -> i64 {
        i64::try_from(self.log.len()).unwrap()
    }

    fn at(&self, revision: i64) -> Option<Value> {
        self.log[usize::try_from(revision - 1).unwrap()]
    }

    /// The revisions that changed the key: the first of each of its states.
    fn states(&self) -> Vec<i64> {
        (1..=self.head()).filter(|&revision| self.at(revision).is_some()).collect()
    }

    fn value(&self, state: usize) -> Value {
        self.at(self.states()[state]).unwrap()
    }

    fn kind(&self, fact: Fact) -> Kind {
        if self.value(fact.state) == Value::Absent { Kind::Absent } else { Kind::Present }
    }

    fn fits(&self, fact: Fact) -> bool {
        self.part.fits(&KEY, self.kind(fact), rev(fact.through))
    }

    fn cause_of(&self, revision: i64) -> Cause {
        // The key was made again if it was absent before.
        let before = (1..revision).rev().find_map(|earlier| self.at(earlier));
        if before == Some(Value::Absent) || before.is_none() { Cause::Creation } else { Cause::Change }
    }

    fn take_out(&mut self) {
        self.cache = self.cache.filter(|&fact| self.fits(fact));
    }

    /// Whether an answer that rests on `fact` keeps what is promised.
    fn judge(&self, fact: Fact) -> Result<(), String> {
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

impl Checker {
    fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    /// Every step that is possible, with what it leads to.
    fn steps(&self, world: &World) -> Steps {
        let mut steps = Steps::new();
        self.commits(world, &mut steps);
        self.own_change(world, &mut steps);
        self.poll(world, &mut steps);
        self.loads(world, &mut steps);
        if let Some(fact) = world.cache {
            // It is served as it is: what does not fit is not let in, and taken out as soon as it does not.
            steps.push(("hit".into(), world.judge(fact).map(|()| world.clone())));
            // Evicted, or expired.
            steps.push(("evict".into(), Ok(World { cache: None, ..world.clone() })));
        }
        if world.restarts > 0 {
            steps.push(("restart".into(), Ok(self.restart(world))));
        }
        steps
    }

    /// A change of the key by this replica or another, and changes of the other key.
    fn commits(&self, world: &World, steps: &mut Steps) {
        let current = world.value(world.states().len() - 1);
        let next = match current {
            Value::Absent => vec![Value::Active],
            Value::Active => vec![Value::Revoked, Value::Absent],
            Value::Revoked => vec![Value::Absent],
        };
        if world.changes > 0 {
            for value in next {
                let mut changed = world.clone();
                changed.log.push(Some(value));
                changed.changes -= 1;
                steps.push((format!("another makes it {value:?}"), Ok(changed.clone())));
                if world.change.is_none() {
                    let (revision, state) = (changed.head(), changed.states().len() - 1);
                    changed.change = Some(Change { revision, state, step: Step::Committed });
                    steps.push((format!("this makes it {value:?}"), Ok(changed)));
                }
            }
        }
        if world.change.is_none() && current == Value::Revoked && self.has(Guard::RepeatedRevokeCounts) {
            let mut changed = world.clone();
            let state = world.states().len() - 1;
            let revision = world.states()[state];
            changed.change = Some(Change { revision, state, step: Step::Committed });
            steps.push(("this revokes it again".into(), Ok(changed)));
        } else if world.change.is_none() && current == Value::Revoked {
            let mut changed = world.clone();
            changed.answered = changed.answered.max(world.states()[world.states().len() - 1]);
            steps.push(("this revokes it again and leaves it at that".into(), Ok(changed)));
        }
        if world.change.is_none() && current == Value::Absent {
            let mut changed = world.clone();
            let (revision, state) = (world.head(), world.states().len() - 1);
            changed.change = Some(Change { revision, state, step: Step::NotFound });
            steps.push(("this finds nothing to change".into(), Ok(changed)));
        }
        if world.other_changes > 0 {
            let mut changed = world.clone();
            changed.log.push(None);
            changed.other_changes -= 1;
            steps.push(("another changes the other key".into(), Ok(changed.clone())));
            let revision = changed.head();
            self.raise(&mut changed, OTHER, Cause::Change, revision);
            steps.push(("this changes the other key".into(), Ok(changed)));
        }
    }

    fn raise(&self, world: &mut World, key: u8, cause: Cause, revision: i64) {
        if cause == Cause::Creation && !self.has(Guard::CreationRaises) {
            return;
        }
        let dropped = [Kind::Present, Kind::Absent].map(|kind| world.part.dropped(kind));
        world.part.raise(key, cause, rev(revision));
        if !self.has(Guard::OverflowRaises) {
            world.part.changes.dropped = dropped[0];
            world.part.creations.dropped = dropped[1];
        }
    }

    fn own_change(&self, world: &World, steps: &mut Steps) {
        let Some(change) = world.change else { return };
        let mut next = world.clone();
        let step = |step| Some(Change { step, ..change });
        let fence_first = self.has(Guard::FenceGoesFirst);
        match change.step {
            Step::Committed | Step::Fenced => {
                let is_first = change.step == Step::Committed;
                if is_first == fence_first {
                    if self.has(Guard::ChangeRaises) {
                        // Also if it made the key: what was there before may be gone without this replica having heard of it.
                        self.raise(&mut next, KEY, Cause::Change, change.revision);
                    }
                } else if self.has(Guard::ChangeTakesOut) {
                    // Without a fence to compare with, it is taken out whatever it knows.
                    if fence_first { next.take_out() } else { next.cache = None }
                }
                next.change = step(if is_first { Step::Fenced } else { Step::TakenOut });
            }
            Step::TakenOut => {
                let fact = Fact { state: change.state, through: change.revision, began: 0 };
                // That there is none any more is not put.
                if world.kind(fact) == Kind::Present {
                    self.store(&mut next, fact);
                }
                next.change = step(Step::Put);
            }
            Step::Put => {
                next.answered = next.answered.max(change.revision);
                next.change = None;
            }
            Step::NotFound => {
                if self.has(Guard::NotFoundPolls) && world.confirmed < change.revision {
                    return;
                }
                next.answered = next.answered.max(world.states()[change.state]);
                next.change = None;
            }
        }
        steps.push((format!("this goes on after {:?}", change.step), Ok(next)));
        // Its caller gets an error: the commit was uncertain. What the feed said before counts for nothing.
        let given_up = World { change: None, confirmed: 0, cache: None, ..world.clone() };
        steps.push(("this gives up".into(), Ok(given_up)));
    }

    fn store(&self, world: &mut World, fact: Fact) {
        let fits = world.fits(fact) || !self.has(Guard::OnlyFittingIsStored);
        // That what is there knows more is a matter of not going back within the bound: whatever fits may be served.
        let knows_more = world.cache.is_some_and(|there| !may_replace(rev(fact.through), rev(there.through)));
        if fits && !knows_more {
            world.cache = Some(fact);
        }
    }

    fn poll(&self, world: &World, steps: &mut Steps) {
        let Some(poll) = world.poll else {
            let poll =
                Poll { sent: world.head(), read: None, applied: world.part.cursor().get(), is_half: false };
            steps.push(("a poll is sent".into(), Ok(World { poll: Some(poll), ..world.clone() })));
            return;
        };
        let mut next = world.clone();
        let Some(read) = poll.read else {
            next.poll = Some(Poll { read: Some(world.head()), ..poll });
            if !self.has(Guard::AppliedBeforeAdvancing) {
                self.advance(&mut next, poll, world.head());
            }
            steps.push(("the poll reads".into(), Ok(next)));
            return;
        };
        if poll.applied == read {
            self.advance(&mut next, poll, read);
            next.poll = None;
            steps.push(("the poll is completed".into(), Ok(next)));
            return;
        }
        let event = poll.applied + 1;
        let key = if world.at(event).is_some() { KEY } else { OTHER };
        let cause = if key == KEY { world.cause_of(event) } else { Cause::Change };
        if poll.is_half {
            if key == KEY && self.has(Guard::EventTakesOut) {
                next.take_out();
            }
            next.poll = Some(Poll { applied: event, is_half: false, ..poll });
        } else {
            if key == OTHER || self.has(Guard::EventRaises) {
                self.raise(&mut next, key, cause, event);
            }
            next.poll = Some(Poll { is_half: true, ..poll });
        }
        steps.push((format!("the poll applies {event}"), Ok(next)));
    }

    fn advance(&self, world: &mut World, poll: Poll, read: i64) {
        world.part.advance(rev(read));
        world.confirmed = if self.has(Guard::CountsFromSending) { poll.sent } else { world.head() };
    }

    fn loads(&self, world: &World, steps: &mut Steps) {
        if world.loads.len() < self.bounds.loads {
            let noted = world.part.cursor().max(world.part.floor(&KEY, Kind::Absent)).get();
            let load = Load { noted, began: world.head(), found: None, is_stored: false };
            let mut next = world.clone();
            next.loads.push(load);
            steps.push(("a load begins".into(), Ok(next)));
        }
        for (number, &load) in world.loads.iter().enumerate() {
            let with = |load: Load| {
                let mut next = world.clone();
                next.loads[number] = load;
                next
            };
            let Some(fact) = load.found else {
                for fact in Self::honest(world) {
                    let through = if self.has(Guard::ThroughIsKept) { fact.through } else { load.noted };
                    let fact = Fact { through, ..fact };
                    // Without this, nothing else would be served: it is judged when it is stored and handed over, too. But
                    // then the store would not be asked.
                    if world.fits(fact) {
                        let found = with(Load { found: Some(fact), ..load });
                        steps.push((format!("a load finds {fact:?} in the second cache"), Ok(found)));
                    }
                }
                let found = with(Load { found: Some(self.read(world, load)), ..load });
                steps.push(("a load reads the store".into(), Ok(found)));
                continue;
            };
            if !load.is_stored {
                let mut stored = with(Load { is_stored: true, ..load });
                let fact = if self.has(Guard::NotedBeforeReading) {
                    fact
                } else {
                    Fact { through: fact.through.max(world.part.cursor().get()), ..fact }
                };
                stored.loads[number].found = Some(fact);
                self.store(&mut stored, fact);
                steps.push(("a load is stored".into(), Ok(stored)));
                continue;
            }
            let mut landed = world.clone();
            landed.loads.remove(number);
            let is_served = world.fits(fact) || !self.has(Guard::HandedOverIsJudged);
            let outcome = if is_served { world.judge(fact).map(|()| landed) } else { Ok(landed) };
            steps.push(("a load is handed over".into(), outcome));
        }
    }

    fn read(&self, world: &World, load: Load) -> Fact {
        let state = world.states().len() - 1;
        let revision = world.states()[state];
        let found = if world.value(state) == Value::Absent {
            if self.has(Guard::AbsenceKnowsWhatWasNoted) {
                through(rev(load.noted), None)
            } else {
                rev(i64::MAX)
            }
        } else {
            through(rev(load.noted), Some(rev(revision)))
        };
        Fact { state, through: found.get(), began: load.began }
    }

    /// All that any replica could have put into the second cache by now: a record, with any cursor that one could have
    /// noted while it was the current one. That there is none is not put there.
    fn honest(world: &World) -> Vec<Fact> {
        let states = world.states();
        let mut facts = Vec::new();
        for state in 0..states.len() {
            let last = states.get(state + 1).map_or(world.head(), |next| next - 1);
            if world.value(state) != Value::Absent {
                // The one that knows most is served wherever another one would be.
                facts.push(Fact { state, through: last, began: 0 });
            }
        }
        facts
    }

    fn restart(&self, world: &World) -> World {
        let mut part = Part::new(self.bounds.capacity);
        let capacity = i64::try_from(self.bounds.capacity).unwrap();
        let before_oldest = (world.head() - capacity).max(0);
        part.start(rev(world.head()), rev(if self.has(Guard::StartHolds) { before_oldest } else { 0 }));
        let mut next = World {
            part,
            cache: None,
            loads: Vec::new(),
            change: None,
            poll: None,
            confirmed: 0,
            restarts: world.restarts - 1,
            ..world.clone()
        };
        for event in before_oldest + 1..=world.head() {
            let key = if world.at(event).is_some() { KEY } else { OTHER };
            let cause = if key == KEY { world.cause_of(event) } else { Cause::Change };
            self.raise(&mut next, key, cause, event);
        }
        next
    }

    /// Explores all of it: how many worlds there are, or how one is reached in which a promise is broken.
    fn explore(&self, limit: usize) -> Result<usize, Vec<String>> {
        let mut seen: HashMap<u64, (u64, String)> = HashMap::new();
        let first = World::new(self.bounds);
        let mut frontier = VecDeque::from([(fingerprint(&first), first)]);
        seen.insert(frontier[0].0, (0, String::new()));
        while let Some((print, world)) = frontier.pop_front() {
            for (label, outcome) in self.steps(&world) {
                match outcome {
                    Ok(next) => {
                        let next_print = fingerprint(&next);
                        if let std::collections::hash_map::Entry::Vacant(vacant) = seen.entry(next_print) {
                            vacant.insert((print, label));
                            frontier.push_back((next_print, next));
                        }
                    }
                    Err(violation) => {
                        let mut path = vec![violation, label];
                        let mut at = print;
                        while let Some((before, label)) = seen.get(&at).filter(|(before, _)| *before != 0) {
                            path.push(label.clone());
                            at = *before;
                        }
                        path.reverse();
                        return Err(path);
                    }
                }
            }
            assert!(seen.len() <= limit, "more than {limit} worlds: the bounds are too wide for this run");
        }
        Ok(seen.len())
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    // 0 stands for none.
    hasher.finish().max(1)
}

const SMALL: Bounds = Bounds { changes: 2, other_changes: 0, loads: 1, restarts: 0, capacity: 1 };

#[test]
fn no_promise_is_broken_whatever_happens_in_whichever_order() {
    // `scripts/prove` goes deeper.
    let all_bounds = match std::env::var("KEYVOUCH_CHECKER").as_deref() {
        Ok("deep") => vec![
            Bounds { changes: 3, ..SMALL },
            Bounds { loads: 2, ..SMALL },
            Bounds { other_changes: 1, restarts: 1, ..SMALL },
        ],
        Ok(other) => panic!("KEYVOUCH_CHECKER={other} is unknown: it can be deep"),
        Err(_) => vec![SMALL, Bounds { changes: 1, other_changes: 1, restarts: 1, ..SMALL }],
    };
    for bounds in all_bounds {
        match (Checker { bounds, without: None }).explore(200_000_000) {
            Ok(worlds) => println!("{worlds} worlds, no violation ({bounds:?})"),
            Err(path) => panic!("{path:#?}"),
        }
    }
}

#[test]
fn each_guard_is_needed() {
    let tiny = SMALL;
    let overflow = Bounds { changes: 1, other_changes: 1, ..SMALL };
    let restart = Bounds { changes: 1, other_changes: 1, restarts: 1, ..SMALL };
    for (guard, bounds) in [
        (Guard::NotedBeforeReading, tiny),
        (Guard::ThroughIsKept, restart),
        (Guard::AbsenceKnowsWhatWasNoted, tiny),
        (Guard::ChangeRaises, tiny),
        (Guard::ChangeTakesOut, tiny),
        (Guard::FenceGoesFirst, tiny),
        (Guard::RepeatedRevokeCounts, tiny),
        (Guard::NotFoundPolls, tiny),
        (Guard::EventRaises, tiny),
        (Guard::EventTakesOut, tiny),
        (Guard::CreationRaises, Bounds { restarts: 1, ..tiny }),
        (Guard::OnlyFittingIsStored, tiny),
        (Guard::HandedOverIsJudged, tiny),
        (Guard::OverflowRaises, overflow),
        (Guard::StartHolds, restart),
        (Guard::AppliedBeforeAdvancing, tiny),
        (Guard::CountsFromSending, tiny),
    ] {
        match (Checker { bounds, without: Some(guard) }).explore(3_000_000) {
            Ok(worlds) => panic!("without {guard:?} all of {worlds} worlds keep the promises"),
            Err(path) => println!("without {guard:?}: {path:?}"),
        }
    }
}
