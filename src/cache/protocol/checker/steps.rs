//! All possible next steps.

use super::super::{Cause, Certainty, Kind, Novelty, Part, Rewound, may_replace, through};
use super::world::{Change, Event, Fact, Found, Happening, Load, Poll, Step, Value, World};
use super::{Checker, Guard, KEY, OTHER};
use crate::domain::{ChangeId, Revision};

/// Labelled steps with their results: the next state, or a violation.
pub(super) type Steps = Vec<(String, Result<World, String>)>;

impl Checker {
    fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    /// Returns every possible step with its result.
    pub(super) fn steps(&self, world: &World) -> Steps {
        let mut steps = Steps::new();
        self.commits(world, &mut steps);
        Self::rewinds(world, &mut steps);
        self.own_change(world, &mut steps);
        if world.is_closed {
            steps.push(("it follows the new history".into(), Ok(self.follow_anew(world))));
        } else {
            self.poll(world, &mut steps);
            self.loads(world, &mut steps);
        }
        if let Some(fact) = world.cache {
            // Hits are served without a check against the fences, because the cache rejects and evicts
            // entries that don't meet them.
            steps
                .push(("hit".into(), world.judge(fact, self.confirmed(world, fact)).map(|()| world.clone())));
            // The entry was evicted or has expired.
            steps.push(("evict".into(), Ok(World { cache: None, ..world.clone() })));
        }
        if world.restarts > 0 {
            let next = World {
                change: None,
                loads: Vec::new(),
                restarts: world.restarts - 1,
                ..self.follow_anew(world)
            };
            steps.push(("restart".into(), Ok(next)));
        }
        steps
    }

    /// Returns the poll from which the staleness of an entry counts (rule 9). 0 for negative entries and for
    /// entries that are ahead of all polls, because they count from their own load.
    fn confirmed(&self, world: &World, fact: Fact) -> usize {
        let is_ahead = fact.through.revision > world.part.cursor().revision;
        let is_absent = world.kind(fact) == Kind::Absent;
        let counts_for_itself = is_ahead && self.has(Guard::AheadCountsForItself)
            || is_absent && self.has(Guard::AbsenceCountsForItself);
        if counts_for_itself { 0 } else { world.confirmed }
    }

    /// Adds changes of the watched key, by this replica or another, and changes of the other key.
    fn commits(&self, world: &World, steps: &mut Steps) {
        let current = world.states[world.states.len() - 1];
        let next = match current.value {
            Value::Absent => vec![Value::Active],
            Value::Active => vec![Value::Revoked, Value::Absent],
            Value::Revoked => vec![Value::Absent],
        };
        let begin = |world: &World, id: ChangeId, time: usize, novelty: Novelty, step: Step| Change {
            id,
            time,
            seen: world.part.seen(),
            novelty,
            needs_poll: false,
            epoch: if world.is_closed { u8::MAX } else { world.epoch },
            state: world.states.len() - 1,
            step,
        };
        if world.changes > 0 {
            for value in next {
                let mut changed = world.clone();
                let id = changed.commit(Some(value));
                changed.changes -= 1;
                steps.push((format!("another makes it {value:?}"), Ok(changed.clone())));
                if world.change.is_none() {
                    let made = begin(&changed, id, changed.now(), Novelty::New, Step::Committed);
                    if value == Value::Revoked && self.bounds.revokes_unread {
                        let change = Some(Change { novelty: Novelty::Unknown, ..made });
                        let unread = World { change, ..changed.clone() };
                        steps.push(("this revokes it without having read it".into(), Ok(unread)));
                    }
                    changed.change = Some(made);
                    steps.push((format!("this makes it {value:?}"), Ok(changed)));
                }
            }
        }
        if world.change.is_none() && current.value == Value::Revoked {
            let mut changed = world.clone();
            let made = world.log.iter().find(|event| event.id == current.id).copied().unwrap();
            if self.has(Guard::RepeatedRevokeCounts) {
                let again = begin(world, current.id, made.time, Novelty::Earlier, Step::Committed);
                if self.bounds.revokes_unread {
                    let change = Some(Change { novelty: Novelty::Unknown, ..again });
                    let unread = World { change, ..world.clone() };
                    steps.push(("this revokes it again without having read it".into(), Ok(unread)));
                }
                changed.change = Some(again);
                steps.push(("this revokes it again".into(), Ok(changed)));
            } else {
                changed.answered |= 1 << made.time;
                steps.push(("this revokes it again and leaves it at that".into(), Ok(changed)));
            }
        }
        if world.change.is_none() && current.value == Value::Absent {
            let mut changed = world.clone();
            let made = world.log.iter().find(|event| event.id == current.id).copied();
            let time = made.map_or(0, |made| made.time);
            changed.change = Some(begin(world, current.id, time, Novelty::Earlier, Step::NotFound(world.now())));
            steps.push(("this finds nothing to change".into(), Ok(changed)));
        }
        if world.other_changes > 0 {
            let mut changed = world.clone();
            let seen = world.part.seen();
            let id = changed.commit(None);
            changed.other_changes -= 1;
            steps.push(("another changes the other key".into(), Ok(changed.clone())));
            if !world.is_closed {
                if self.see_own(&mut changed, seen, id, Novelty::New).is_ok() {
                    self.raise(&mut changed, OTHER, Cause::Change, id);
                }
                steps.push(("this changes the other key".into(), Ok(changed)));
            }
        }
    }

    /// Adds failovers that lose the last changes, and restored backups.
    fn rewinds(world: &World, steps: &mut Steps) {
        if world.rewinds == 0 {
            return;
        }
        for to in 1..world.head().revision.get() {
            let mut rewound = world.clone();
            rewound.happens(Happening::Rewind { to });
            rewound.rewinds -= 1;
            steps.push((format!("the store loses what came after {to}"), Ok(rewound)));
        }
    }

    fn raise(&self, world: &mut World, key: u8, cause: Cause, change: ChangeId) {
        let dropped = [world.part.changes.dropped, world.part.creations.dropped];
        world.part.raise(key, cause, change);
        if !self.has(Guard::OverflowRaises) {
            [world.part.changes.dropped, world.part.creations.dropped] = dropped;
        }
    }

    /// Compares a change of this replica with the current epoch (rule 11). If history was rewound, the world
    /// is closed.
    fn see_own(
        &self,
        world: &mut World,
        seen: ChangeId,
        id: ChangeId,
        novelty: Novelty,
    ) -> Result<Certainty, Rewound> {
        if !self.has(Guard::OwnChangeIsCompared) {
            return Ok(Certainty::Certain);
        }
        world.part.see_own(seen, id, novelty).inspect_err(|_| world.close())
    }

    fn own_change(&self, world: &World, steps: &mut Steps) {
        let Some(change) = world.change else { return };
        let mut next = world.clone();
        let step = |step| Some(Change { step, ..change });
        let mut needs_poll = change.needs_poll;
        let fence_first = self.has(Guard::FenceGoesFirst);
        match change.step {
            Step::Committed | Step::Fenced => {
                let is_first = change.step == Step::Committed;
                if is_first == fence_first {
                    let is_here = !world.is_closed && change.epoch == world.epoch;
                    let certainty = if is_here {
                        self.see_own(&mut next, change.seen, change.id, change.novelty)
                    } else {
                        Err(Rewound)
                    };
                    let Ok(certainty) = certainty else {
                        next.change = step(Step::AwaitsPoll(world.now()));
                        steps.push(("this changed another history".into(), Ok(next)));
                        return;
                    };
                    needs_poll = certainty == Certainty::NeedsPoll && self.has(Guard::UnknownChangePolls);
                    if self.has(Guard::ChangeRaises) {
                        // A creation raises the fence, too, because this replica may not have read the
                        // deletion of the key before it.
                        self.raise(&mut next, KEY, Cause::Change, change.id);
                    }
                } else if self.has(Guard::ChangeTakesOut) {
                    // Without a fence to compare with, the entry is evicted in any case.
                    if fence_first { next.take_out() } else { next.cache = None }
                }
                let step = if is_first { Step::Fenced } else { Step::TakenOut };
                next.change = Some(Change { step, needs_poll, ..change });
            }
            Step::TakenOut => {
                let fact = Fact { state: change.state, through: change.id, began: 0 };
                // Negative entries are not put by changes.
                if world.kind(fact) == Kind::Present && change.epoch == world.epoch {
                    self.store(&mut next, fact);
                }
                next.change = step(Step::Put);
            }
            Step::Put if needs_poll => next.change = step(Step::AwaitsPoll(world.now())),
            Step::Put => {
                next.answered |= 1 << change.time;
                next.change = None;
            }
            Step::AwaitsPoll(since) | Step::NotFound(since) => {
                let is_needed = match change.step {
                    Step::NotFound(_) => self.has(Guard::NotFoundPolls),
                    _ => true,
                };
                if is_needed && world.confirmed < since {
                    return;
                }
                next.answered |= 1 << change.time;
                next.change = None;
            }
        }
        steps.push((format!("this goes on after {:?}", change.step), Ok(next)));
        // The caller gets an error, which guarantees nothing. The feed reports whether the change was made.
        steps.push(("this gives up".into(), Ok(World { change: None, ..world.clone() })));
    }

    fn store(&self, world: &mut World, fact: Fact) {
        let fits = world.fits(fact) || !self.has(Guard::OnlyFittingIsStored);
        // Keeping the newer entry only avoids going back in time within the bound. Any entry that meets the
        // fences may be served.
        let knows_more = world.cache.is_some_and(|there| !may_replace(fact.through, there.through));
        if fits && !knows_more {
            world.cache = Some(fact);
        }
    }

    fn poll(&self, world: &World, steps: &mut Steps) {
        let Some(poll) = &world.poll else {
            let cursor = world.part.cursor().revision.get();
            let seen = world.part.seen();
            let poll = Poll { sent: world.now(), seen, read: None, applied: cursor, is_half: false };
            steps.push(("a poll is sent".into(), Ok(World { poll: Some(poll), ..world.clone() })));
            return;
        };
        let mut next = world.clone();
        let Some(log) = &poll.read else {
            let cursor = world.part.cursor();
            if world.log.iter().any(|event| event.id == cursor) {
                next.poll = Some(Poll { read: Some(world.log.clone()), ..poll.clone() });
                if !self.has(Guard::AppliedBeforeAdvancing) {
                    self.advance(&mut next, poll, world.head());
                }
                steps.push(("the poll reads".into(), Ok(next)));
            } else {
                next.close();
                steps.push(("the poll does not find its position".into(), Ok(next)));
            }
            return;
        };
        let head = log.last().map_or(ChangeId::NONE, |event| event.id);
        if poll.applied == head.revision.get() {
            self.advance(&mut next, poll, head);
            next.poll = None;
            if self.has(Guard::SeenIsCompared) && next.part.check_end(poll.seen).is_err() {
                next.close();
            }
            steps.push(("the poll is completed".into(), Ok(next)));
            return;
        }
        let at = log.iter().position(|event| event.id.revision.get() == poll.applied + 1).unwrap();
        let event = log[at];
        let key = if event.value.is_some() { KEY } else { OTHER };
        if poll.is_half {
            if key == KEY && self.has(Guard::EventTakesOut) {
                next.take_out();
            }
            next.poll = Some(Poll { applied: event.id.revision.get(), is_half: false, ..poll.clone() });
        } else {
            next.poll = Some(Poll { is_half: true, ..poll.clone() });
            if self.apply(&mut next, log, at, event).is_err() {
                next.close();
            }
        }
        steps.push((format!("the poll applies {:?}", event.id), Ok(next)));
    }

    /// Applies one event (rules 8 and 10).
    fn apply(&self, world: &mut World, log: &[Event], at: usize, event: Event) -> Result<(), Rewound> {
        if !self.has(Guard::SeenIsCompared) {
            world.part.seen = event.id;
        }
        world.part.meet(event.id)?;
        let key = if event.value.is_some() { KEY } else { OTHER };
        if key == OTHER || self.has(Guard::EventRaises) {
            self.raise(world, key, World::cause_of(log, at), event.id);
        }
        Ok(())
    }

    fn advance(&self, world: &mut World, poll: &Poll, head: ChangeId) {
        world.part.advance(head);
        world.confirmed = if self.has(Guard::CountsFromSending) { poll.sent } else { world.now() };
    }

    fn loads(&self, world: &World, steps: &mut Steps) {
        if world.loads.len() < self.bounds.loads {
            let noted = world.part.cursor().later(world.part.floor(&KEY, Kind::Absent));
            let load = Load { noted, began: world.now(), found: None, is_stored: false };
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
            let Some(Found { fact, is_of_store, confirmed }) = load.found else {
                for fact in Self::honest(world) {
                    if self.has(Guard::EntriesAreVerified) && !world.part.has_applied(fact.through) {
                        continue;
                    }
                    let through = if self.has(Guard::ThroughIsKept) { fact.through } else { load.noted };
                    let fact = Fact { through, ..fact };
                    // This check only avoids useless steps. The entry is checked when it is stored and handed
                    // over, too, but the load would not read the backend then.
                    if world.fits(fact) {
                        let confirmed = world.confirmed;
                        let found = Some(Found { fact, is_of_store: false, confirmed });
                        let label = format!("a load finds {fact:?} in the second cache");
                        steps.push((label, Ok(with(Load { found, ..load }))));
                    }
                }
                let found = Some(Found { fact: self.read(world, load), is_of_store: true, confirmed: 0 });
                steps.push(("a load reads the store".into(), Ok(with(Load { found, ..load }))));
                continue;
            };
            if !load.is_stored {
                let mut stored = with(Load { is_stored: true, ..load });
                if is_of_store && Self::see(&mut stored, load, fact).is_err() {
                    stored.close();
                    steps.push(("a load is of another history".into(), Ok(stored)));
                    continue;
                }
                let fact = if self.has(Guard::NotedBeforeReading) {
                    fact
                } else {
                    Fact { through: fact.through.later(world.part.cursor()), ..fact }
                };
                stored.loads[number].found = Some(Found { fact, is_of_store, confirmed });
                self.store(&mut stored, fact);
                steps.push(("a load is stored".into(), Ok(stored)));
                continue;
            }
            let mut landed = world.clone();
            landed.loads.remove(number);
            let is_served = world.fits(fact) || !self.has(Guard::HandedOverIsJudged);
            let judged = || world.judge(fact, confirmed).map(|()| landed.clone());
            let outcome = if is_served { judged() } else { Ok(landed.clone()) };
            steps.push(("a load is handed over".into(), outcome));
        }
    }

    /// Compares a loaded record with the current epoch (rule 11).
    fn see(world: &mut World, load: Load, fact: Fact) -> Result<(), Rewound> {
        if world.kind(fact) == Kind::Absent {
            return Ok(());
        }
        let last_change = world.states[fact.state].id;
        world.part.see(load.noted, last_change)
    }

    fn read(&self, world: &World, load: Load) -> Fact {
        let states = &world.states;
        let state = states.len() - 1;
        let through = if states[state].value != Value::Absent {
            through(load.noted, Some(states[state].id))
        } else if self.has(Guard::AbsenceKnowsWhatWasNoted) {
            through(load.noted, None)
        } else {
            ChangeId::of_revision(Revision::MAX)
        };
        Fact { state, through, began: load.began }
    }

    /// Returns all entries that any replica could have written into the second cache by now: records, with
    /// the newest change that could have been noted at that time. Negative entries are not written there.
    fn honest(world: &World) -> Vec<Fact> {
        let states = &world.states;
        let mut facts: Vec<Fact> = Vec::new();
        for time in 1..=world.now() {
            let state = states.iter().rposition(|state| state.since <= time).unwrap();
            let fact = Fact { state, through: world.heads[time - 1], began: 0 };
            if states[state].value != Value::Absent && !facts.contains(&fact) {
                facts.push(fact);
            }
        }
        facts
    }

    /// Begins a new epoch with the newest events.
    fn follow_anew(&self, world: &World) -> World {
        let mut part = Part::new(self.bounds.capacity, self.bounds.history);
        let capacity = i64::try_from(self.bounds.capacity).unwrap();
        let before_oldest = (world.head().revision.get() - capacity).max(0);
        part.start(world.head());
        let mut next = World {
            part,
            epoch: world.epoch + 1,
            is_closed: false,
            cache: None,
            poll: None,
            confirmed: 0,
            ..world.clone()
        };
        for (at, event) in world.log.iter().enumerate() {
            if event.id.revision.get() > before_oldest {
                self.apply(&mut next, &world.log, at, *event).unwrap();
            }
        }
        next
    }
}
