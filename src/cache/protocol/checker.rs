//! Explores the rules exhaustively with one replica, one watched key, and another key whose changes make
//! fences overflow.
//!
//! All other replicas are modelled by the possible content of the second cache. It may return **any** honest
//! entry, that is, one that some replica could have written at some time. This includes caches that were
//! flushed, filled late, or lost.
//!
//! The backend can lose changes that other replicas and caches have seen, and use their revisions again.
//!
//! The guarantee is checked for every answer from a cache and for every load that is handed to a waiting
//! call. The backend has to have been in the state of the entry at some moment that is not before any of
//! three others: the newest acknowledged change of the key that was not lost, the poll from which the
//! staleness of the answer counts, and the beginning of the load. Without any one of the guards, the checker
//! finds a violation within a few steps.

mod loads;
mod polls;
mod steps;
mod world;

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash as _, Hasher as _};

use self::world::World;

/// The watched key and the other key.
const KEY: u8 = 0;
const OTHER: u8 = 1;

/// The bounds of the exploration.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    changes: u8,
    other_changes: u8,
    loads: usize,
    rewinds: u8,
    restarts: u8,
    capacity: usize,
    /// Number of applied changes that are remembered.
    remembered: usize,
    /// Whether this replica also revokes the key without having read it before.
    revokes_unread: bool,
}

/// The guards, each of which can be disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guard {
    /// Rule 1: the cursor is noted before anything is read.
    NotedBeforeReading,
    /// Rule 1: an entry of the second cache keeps its applied revision.
    AppliedRevisionIsKept,
    /// Rule 1: a negative entry only reflects the noted cursor.
    NegativeReflectsNoted,
    /// Rule 2: a change raises a fence.
    ChangeRaises,
    /// Rule 2: a change evicts entries.
    ChangeEvicts,
    /// Rule 2: the fence is raised before entries are evicted.
    FenceBeforeEviction,
    /// Rule 2: a repeated revocation raises a fence, although it changes nothing.
    RepeatedRevokeCounts,
    /// Rule 2: a change that found no key completes a poll.
    NotFoundPolls,
    /// Rule 2: an event raises a fence.
    EventRaises,
    /// Rule 2: an event evicts entries.
    EventEvicts,
    /// Rule 3: only entries that meet the fences are stored.
    OnlyFittingIsStored,
    /// Rule 4: the result of a load is checked when it is handed over.
    HandedOverIsChecked,
    /// Rule 5: the watermark is raised to an evicted fence.
    OverflowRaises,
    /// Rule 7: the cursor advances after the events were applied.
    AppliedBeforeAdvancing,
    /// Rule 8: staleness counts from the moment at which a poll was sent.
    CountsFromSending,
    /// Rule 8: the staleness of an entry that is ahead of all polls counts from its own load.
    AheadCountsForItself,
    /// Rule 8: the staleness of a negative entry counts from its own load.
    NegativeCountsForItself,
    /// Rule 9: a poll is compared with the largest change seen.
    LargestSeenIsCompared,
    /// Rule 10: a change that this replica made is compared with the largest change seen.
    OwnChangeIsCompared,
    /// Rule 10: a change that may have been made before the call, or have a revision that was used before, is
    /// acknowledged after a poll.
    UnknownChangePolls,
    /// Rule 11: an entry that another replica wrote has to belong to the current epoch.
    SharedEntriesAreVerified,
}

struct Checker {
    bounds: Bounds,
    without: Option<Guard>,
}

impl Checker {
    /// Explores up to `limit` states of the model, breadth first. Returns their number, or the path to the
    /// first violation.
    fn explore(&self, limit: usize) -> Result<usize, Vec<String>> {
        let mut visited: HashMap<u64, (u64, String)> = HashMap::new();
        let first = World::new(self.bounds);
        let mut frontier = VecDeque::from([(fingerprint(&first), first)]);
        visited.insert(frontier[0].0, (0, String::new()));
        while let Some((print, world)) = frontier.pop_front().filter(|_| visited.len() < limit) {
            for (label, outcome) in self.steps(&world) {
                match outcome {
                    Ok(next) => {
                        let next_print = fingerprint(&next);
                        if let std::collections::hash_map::Entry::Vacant(vacant) = visited.entry(next_print) {
                            vacant.insert((print, label));
                            frontier.push_back((next_print, next));
                        }
                    }
                    Err(violation) => {
                        let mut path = vec![violation, label];
                        let mut at = print;
                        while let Some((before, label)) = visited.get(&at).filter(|(before, _)| *before != 0)
                        {
                            path.push(label.clone());
                            at = *before;
                        }
                        path.reverse();
                        return Err(path);
                    }
                }
            }
        }
        Ok(visited.len())
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    // 0 marks the initial state, which has no predecessor.
    hasher.finish().max(1)
}

const SMALL: Bounds = Bounds {
    changes: 2,
    other_changes: 0,
    loads: 1,
    rewinds: 0,
    restarts: 0,
    capacity: 1,
    remembered: 2,
    revokes_unread: false,
};
/// A revocation of an unread key can only contradict changes that this replica made, which are at least two.
const UNREAD: Bounds = Bounds { changes: 3, loads: 0, rewinds: 1, revokes_unread: true, ..SMALL };

#[test]
fn no_promise_is_broken_whatever_happens_in_whichever_order() {
    // `scripts/prove` explores all states within wider bounds.
    let deep = vec![
        Bounds { changes: 3, ..SMALL },
        Bounds { loads: 2, ..SMALL },
        Bounds { changes: 1, other_changes: 1, restarts: 1, ..SMALL },
        Bounds { rewinds: 1, ..SMALL },
        Bounds { changes: 1, other_changes: 1, rewinds: 1, ..SMALL },
        UNREAD,
    ];
    let (all_bounds, limit) = match std::env::var("KEYVOUCH_CHECKER").as_deref() {
        Ok("deep") => (deep, 40_000_000),
        Ok(other) => panic!("KEYVOUCH_CHECKER={other} is unknown: it can be deep"),
        Err(_) => {
            let restart = Bounds { changes: 1, restarts: 1, ..SMALL };
            let overflow = Bounds { changes: 1, other_changes: 1, ..SMALL };
            (vec![SMALL, restart, overflow, Bounds { rewinds: 1, ..SMALL }, UNREAD], 300_000)
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
        (Guard::AppliedRevisionIsKept, restart),
        (Guard::NegativeReflectsNoted, tiny),
        (Guard::ChangeRaises, tiny),
        (Guard::ChangeEvicts, tiny),
        (Guard::FenceBeforeEviction, tiny),
        (Guard::RepeatedRevokeCounts, tiny),
        (Guard::NotFoundPolls, tiny),
        (Guard::EventRaises, tiny),
        (Guard::EventEvicts, tiny),
        (Guard::OnlyFittingIsStored, tiny),
        (Guard::HandedOverIsChecked, tiny),
        (Guard::OverflowRaises, overflow),
        (Guard::AppliedBeforeAdvancing, tiny),
        (Guard::CountsFromSending, tiny),
        (Guard::AheadCountsForItself, rewind),
        (Guard::NegativeCountsForItself, rewind),
        (Guard::LargestSeenIsCompared, rewind),
        (Guard::OwnChangeIsCompared, rewind),
        (Guard::UnknownChangePolls, UNREAD),
        (Guard::SharedEntriesAreVerified, rewind),
    ] {
        match (Checker { bounds, without: Some(guard) }).explore(3_000_000) {
            Ok(worlds) => panic!("without {guard:?} all of {worlds} worlds keep the promises"),
            Err(path) => println!("without {guard:?}: {path:?}"),
        }
    }
}
