//! The steps of loads.

use super::super::{EntryKind, Rewound, applied_revision};
use super::steps::Steps;
use super::world::{Fact, Found, Load, Value, World};
use super::{Checker, Guard, KEY};
use crate::domain::{ChangeId, Revision};

impl Checker {
    /// Adds the steps of loads.
    pub(super) fn loads(&self, world: &World, steps: &mut Steps) {
        if world.loads.len() < self.bounds.loads {
            let noted = world.partition.cursor().later(world.partition.minimum(&KEY, EntryKind::Negative));
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
            let Some(Found { fact, is_of_backend, confirmed }) = load.found else {
                for fact in Self::honest(world) {
                    if self.has(Guard::SharedEntriesAreVerified)
                        && !world.partition.has_applied(fact.applied_revision)
                    {
                        continue;
                    }
                    let applied_revision = if self.has(Guard::AppliedRevisionIsKept) {
                        fact.applied_revision
                    } else {
                        load.noted
                    };
                    let fact = Fact { applied_revision, ..fact };
                    // This check only avoids useless steps. The entry is checked when it is stored and handed
                    // over, too, but the load would not read the backend then.
                    if world.fits(fact) {
                        let confirmed = world.confirmed;
                        let found = Some(Found { fact, is_of_backend: false, confirmed });
                        let label = format!("a load finds {fact:?} in the second cache");
                        steps.push((label, Ok(with(Load { found, ..load }))));
                    }
                }
                let found = Some(Found { fact: self.read(world, load), is_of_backend: true, confirmed: 0 });
                steps.push(("a load reads the backend".into(), Ok(with(Load { found, ..load }))));
                continue;
            };
            if !load.is_stored {
                let mut stored = with(Load { is_stored: true, ..load });
                if is_of_backend && Self::check_loaded(&mut stored, load, fact).is_err() {
                    stored.close();
                    steps.push(("a load is of another epoch".into(), Ok(stored)));
                    continue;
                }
                let fact = if self.has(Guard::NotedBeforeReading) {
                    fact
                } else {
                    Fact { applied_revision: fact.applied_revision.later(world.partition.cursor()), ..fact }
                };
                stored.loads[number].found = Some(Found { fact, is_of_backend, confirmed });
                self.store(&mut stored, fact);
                steps.push(("a load is stored".into(), Ok(stored)));
                continue;
            }
            let mut landed = world.clone();
            landed.loads.remove(number);
            let is_served = world.fits(fact) || !self.has(Guard::HandedOverIsChecked);
            let judged = || world.judge(fact, confirmed).map(|()| landed.clone());
            let outcome = if is_served { judged() } else { Ok(landed.clone()) };
            steps.push(("a load is handed over".into(), outcome));
        }
    }

    /// Compares a loaded record with the current epoch (rule 10).
    fn check_loaded(world: &mut World, load: Load, fact: Fact) -> Result<(), Rewound> {
        if world.kind(fact) == EntryKind::Negative {
            return Ok(());
        }
        let last_change = world.states[fact.state].id;
        world.partition.check_loaded(load.noted, last_change)
    }

    fn read(&self, world: &World, load: Load) -> Fact {
        let states = &world.states;
        let state = states.len() - 1;
        let applied_revision = if states[state].value != Value::Absent {
            applied_revision(load.noted, Some(states[state].id))
        } else if self.has(Guard::NegativeReflectsNoted) {
            applied_revision(load.noted, None)
        } else {
            ChangeId::of_revision(Revision::MAX)
        };
        Fact { state, applied_revision, began: load.began }
    }

    /// Returns all entries that any replica could have written into the second cache by now: records, with
    /// the newest change that could have been noted at that time. Negative entries are not written there.
    fn honest(world: &World) -> Vec<Fact> {
        let states = &world.states;
        let mut facts: Vec<Fact> = Vec::new();
        for time in 1..=world.now() {
            let state = states.iter().rposition(|state| state.since <= time).unwrap();
            let fact = Fact { state, applied_revision: world.heads[time - 1], began: 0 };
            if states[state].value != Value::Absent && !facts.contains(&fact) {
                facts.push(fact);
            }
        }
        facts
    }
}
