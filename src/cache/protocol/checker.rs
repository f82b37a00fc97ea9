//! Explores the rules exhaustively: one replica, one key that is watched, and another whose changes make fences overflow.
//!
//! All other replicas are in what the second cache may hold: **any** entry that is honest, that is, one that some replica
//! could have written at some time. That includes caches that were flushed, filled late, or lost.
//!
//! The store can lose changes, which other replicas and caches have seen, and use their revisions again.
//!
//! What must hold of every answer from a cache, and of every load that is handed to one who waits for it: the store was as
//! it says after each change of the key that this replica answered and that was not lost, after the poll that the answer
//! counts its age by was sent, and after the load began. Whoever leaves out a guard finds a violation within a few steps.

mod steps;
mod world;

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};

use self::world::World;

/// The key that is watched, and the other one.
const KEY: u8 = 0;
const OTHER: u8 = 1;

/// How far it explores.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    changes: u8,
    other_changes: u8,
    loads: usize,
    rewinds: u8,
    restarts: u8,
    capacity: usize,
    /// How many applied changes are remembered.
    history: usize,
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
    /// 3: only what fits is stored.
    OnlyFittingIsStored,
    /// 4: a load is judged when it is handed over.
    HandedOverIsJudged,
    /// 5: `dropped` is raised to the fence that has to go.
    OverflowRaises,
    /// 8: the cursor advances after the events were applied.
    AppliedBeforeAdvancing,
    /// 9: a poll counts from when it was sent.
    CountsFromSending,
    /// 9: an entry that is ahead of all polls counts for its own age alone.
    AheadCountsForItself,
    /// 9: so is absence.
    AbsenceCountsForItself,
    /// 10: a poll is compared with the largest change seen.
    SeenIsCompared,
    /// 11: a change that this replica made is compared with it.
    OwnChangeIsCompared,
    /// 12: an entry that another replica wrote has to be of it.
    EntriesAreVerified,
}

struct Checker {
    bounds: Bounds,
    without: Option<Guard>,
}

impl Checker {
    /// Explores up to `limit` worlds, nearest first. Returns how many there are, or how one is reached in which a promise is
    /// broken.
    fn explore(&self, limit: usize) -> Result<usize, Vec<String>> {
        let mut seen: HashMap<u64, (u64, String)> = HashMap::new();
        let first = World::new(self.bounds);
        let mut frontier = VecDeque::from([(fingerprint(&first), first)]);
        seen.insert(frontier[0].0, (0, String::new()));
        while let Some((print, world)) = frontier.pop_front().filter(|_| seen.len() < limit) {
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

const SMALL: Bounds =
    Bounds { changes: 2, other_changes: 0, loads: 1, rewinds: 0, restarts: 0, capacity: 1, history: 2 };

#[test]
fn no_promise_is_broken_whatever_happens_in_whichever_order() {
    // `scripts/prove` explores all worlds within wider bounds.
    let deep = vec![
        Bounds { changes: 3, ..SMALL },
        Bounds { loads: 2, ..SMALL },
        Bounds { changes: 1, other_changes: 1, restarts: 1, ..SMALL },
        Bounds { rewinds: 1, ..SMALL },
        Bounds { changes: 1, other_changes: 1, rewinds: 1, ..SMALL },
    ];
    let (all_bounds, limit) = match std::env::var("KEYVOUCH_CHECKER").as_deref() {
        Ok("deep") => (deep, 40_000_000),
        Ok(other) => panic!("KEYVOUCH_CHECKER={other} is unknown: it can be deep"),
        Err(_) => {
            let restart = Bounds { changes: 1, restarts: 1, ..SMALL };
            let overflow = Bounds { changes: 1, other_changes: 1, ..SMALL };
            (vec![SMALL, restart, overflow, Bounds { rewinds: 1, ..SMALL }], 300_000)
        }
    };
    for bounds in all_bounds {
        match (Checker { bounds, without: None }).explore(limit) {
            Ok(worlds) => {
                let is_deep = limit > 1_000_000;
                assert!(!is_deep || worlds < limit, "more than {limit} worlds: the bounds are too wide");
                println!("{worlds} worlds, no violation ({bounds:?})");
            }
            Err(path) => panic!("{path:#?}"),
        }
    }
}

#[test]
fn each_guard_is_needed() {
    let tiny = SMALL;
    let overflow = Bounds { changes: 1, other_changes: 1, ..SMALL };
    let rewind = Bounds { rewinds: 1, ..SMALL };
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
        (Guard::OnlyFittingIsStored, tiny),
        (Guard::HandedOverIsJudged, tiny),
        (Guard::OverflowRaises, overflow),
        (Guard::AppliedBeforeAdvancing, tiny),
        (Guard::CountsFromSending, tiny),
        (Guard::AheadCountsForItself, rewind),
        (Guard::AbsenceCountsForItself, rewind),
        (Guard::SeenIsCompared, rewind),
        (Guard::OwnChangeIsCompared, rewind),
        (Guard::EntriesAreVerified, rewind),
    ] {
        match (Checker { bounds, without: Some(guard) }).explore(3_000_000) {
            Ok(worlds) => panic!("without {guard:?} all of {worlds} worlds keep the promises"),
            Err(path) => println!("without {guard:?}: {path:?}"),
        }
    }
}
