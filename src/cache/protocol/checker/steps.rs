//! All possible next steps, and those of changes.

use super::super::{Cause, Certainty, EntryKind, Novelty, Partition, Rewound, may_replace};
use super::world::{Awaited, Change, Fact, Happening, Step, Value, World};
use super::{Checker, Guard, KEY, OTHER};
use crate::domain::ChangeId;

/// Labelled steps with their results: the next state, or a violation.
pub(super) type Steps = Vec<(String, Result<World, String>)>;

impl Checker {
    pub(super) fn has(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }

    /// Returns every possible step with its result.
    pub(super) fn steps(&self, world: &World) -> Steps {
        let mut steps = Steps::new();
        self.commits(world, &mut steps);
        Self::rewinds(world, &mut steps);
        self.own_change(world, &mut steps);
        if world.is_closed {
            steps.push(("it follows the new epoch".into(), Ok(self.follow_next_epoch(world))));
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
                ..self.follow_next_epoch(world)
            };
            steps.push(("restart".into(), Ok(next)));
        }
        steps
    }

    /// Returns the poll from which the staleness of an entry counts (rule 8). 0 for negative entries and for
    /// entries that are ahead of all polls, because they count from their own load.
    fn confirmed(&self, world: &World, fact: Fact) -> usize {
        let is_ahead = fact.applied_revision.revision > world.partition.cursor().revision;
        let is_absent = world.kind(fact) == EntryKind::Negative;
        let counts_for_itself = is_ahead && self.has(Guard::AheadCountsForItself)
            || is_absent && self.has(Guard::NegativeCountsForItself);
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
            largest_seen: world.partition.largest_seen(),
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
                changed.change = Some(begin(world, current.id, made.time, Novelty::Unknown, Step::Committed));
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
            changed.change =
                Some(begin(world, current.id, time, Novelty::Unknown, Step::NotFound(Awaited::Unsent)));
            steps.push(("this finds nothing to change".into(), Ok(changed)));
        }
        if world.other_changes > 0 {
            let mut changed = world.clone();
            let largest_seen = world.partition.largest_seen();
            let id = changed.commit(None);
            changed.other_changes -= 1;
            steps.push(("another changes the other key".into(), Ok(changed.clone())));
            if !world.is_closed {
                if self.check_own(&mut changed, largest_seen, id, Novelty::New).is_ok() {
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
            steps.push((format!("the backend loses what came after {to}"), Ok(rewound)));
        }
    }

    pub(super) fn raise(&self, world: &mut World, key: u8, cause: Cause, change: ChangeId) {
        let watermark = [world.partition.changes.watermark, world.partition.creations.watermark];
        world.partition.raise(key, cause, change);
        if !self.has(Guard::OverflowRaises) {
            [world.partition.changes.watermark, world.partition.creations.watermark] = watermark;
        }
    }

    /// Compares a change of this replica with the current epoch (rule 10). If the backend was rewound, the world
    /// is closed.
    fn check_own(
        &self,
        world: &mut World,
        largest_seen: ChangeId,
        id: ChangeId,
        novelty: Novelty,
    ) -> Result<Certainty, Rewound> {
        if !self.has(Guard::OwnChangeIsCompared) {
            return Ok(Certainty::Certain);
        }
        world.partition.check_own(largest_seen, id, novelty).inspect_err(|_| world.close())
    }

    fn own_change(&self, world: &World, steps: &mut Steps) {
        let Some(change) = world.change else { return };
        let mut next = world.clone();
        let step = |step| Some(Change { step, ..change });
        let mut needs_poll = change.needs_poll;
        let fence_first = self.has(Guard::FenceBeforeEviction);
        match change.step {
            Step::Committed | Step::Fenced => {
                let is_first = change.step == Step::Committed;
                if is_first == fence_first {
                    let is_here = !world.is_closed && change.epoch == world.epoch;
                    let certainty = if is_here {
                        self.check_own(&mut next, change.largest_seen, change.id, change.novelty)
                    } else {
                        Err(Rewound)
                    };
                    let Ok(certainty) = certainty else {
                        next.change = step(Step::AwaitsPoll(Awaited::Unsent));
                        steps.push(("this changed another epoch".into(), Ok(next)));
                        return;
                    };
                    needs_poll = certainty == Certainty::NeedsPoll && self.has(Guard::UnknownChangePolls);
                    if self.has(Guard::ChangeRaises) {
                        // A creation raises the fence, too, because this replica may not have read the
                        // deletion of the key before it.
                        self.raise(&mut next, KEY, Cause::Change, change.id);
                    }
                } else if self.has(Guard::ChangeEvicts) {
                    // Without a fence to compare with, the entry is evicted in any case.
                    if fence_first { next.evict() } else { next.cache = None }
                }
                let step = if is_first { Step::Fenced } else { Step::Evicted };
                next.change = Some(Change { needs_poll, step, ..change });
            }
            Step::Evicted => {
                let fact = Fact { state: change.state, applied_revision: change.id, began: 0 };
                // Negative entries are not put by changes.
                if world.kind(fact) == EntryKind::Record && change.epoch == world.epoch {
                    self.store(&mut next, fact);
                }
                next.change = step(Step::Put);
            }
            Step::Put if needs_poll => next.change = step(Step::AwaitsPoll(Awaited::Unsent)),
            Step::Put => {
                next.answered |= 1 << change.time;
                next.change = None;
            }
            Step::AwaitsPoll(awaited) | Step::NotFound(awaited) => {
                let is_needed = match change.step {
                    Step::NotFound(_) => self.has(Guard::NotFoundPolls),
                    _ => true,
                };
                if is_needed && awaited != Awaited::Completed {
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

    pub(super) fn store(&self, world: &mut World, fact: Fact) {
        let fits = world.fits(fact) || !self.has(Guard::OnlyFittingIsStored);
        // Keeping the newer entry only avoids going back in time within the bound. Any entry that meets the
        // fences may be served.
        let knows_more =
            world.cache.is_some_and(|there| !may_replace(fact.applied_revision, there.applied_revision));
        if fits && !knows_more {
            world.cache = Some(fact);
        }
    }

    /// Begins a new epoch with the newest events.
    fn follow_next_epoch(&self, world: &World) -> World {
        let mut partition = Partition::new(self.bounds.capacity, self.bounds.remembered);
        let capacity = i64::try_from(self.bounds.capacity).unwrap();
        let before_oldest = (world.head().revision.get() - capacity).max(0);
        partition.start(world.head());
        let mut next = World {
            partition,
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
