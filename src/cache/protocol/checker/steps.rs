//! Everything that can happen next.

use super::super::{Cause, Kind, Part, may_replace, through};
use super::world::{Change, Fact, Load, Poll, Step, Value, World, rev};
use super::{Checker, Guard, KEY, OTHER};

/// Steps by what they are called, with what they lead to: another world, or a promise that is broken.
pub(super) type Steps = Vec<(String, Result<World, String>)>;

impl Checker {
    fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    /// Every step that is possible, with what it leads to.
    pub(super) fn steps(&self, world: &World) -> Steps {
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
}
