//! The rules by which a cached record may be served, as a pure state machine.
//!
//! It is generic over the type of keys and has neither time nor I/O, so the checker in its tests explores the
//! same code that the server runs. [`Knowledge`](super::Knowledge) has one [`Partition`] per partition of the
//! change feed.
//!
//! - The **cursor** is the change up to which this replica has applied all events.
//! - The **applied revision** of a cache entry is the change up to which the entry reflects every change of its
//!   key.
//! - The **fence** of a key is the smallest applied revision that may still be served for it. The number of
//!   fences is bounded.
//! - The **watermark** is the smallest applied revision that may be served for any key. When a fence has to be
//!   evicted, the watermark is raised to it. The **minimum** of a key is the larger of its fence and the
//!   watermark.
//! - The **largest change seen** is the latest change that reached this replica in any way, whether by its
//!   own changes, by loaded records or by events.
//!
//! An entry is a record or a negative entry. An event of a *creation* can only make negative entries stale,
//! because an existing key has to be deleted first, which is an event of its own. So creations have fences of
//! their own, and an import of a million keys does not evict cached records. This depends on the feed. A
//! replica that creates a key may not have read the event of its deletion yet, so its own creations are
//! treated as changes.
//!
//! # Rules
//!
//! Comments in this crate refer to these rules by number. For each rule, the list names the code that enforces
//! it and, after "Guards", the guards of the checker (`checker::Guard`). `each_guard_is_needed` removes each of
//! them in turn and finds a violation, so none of the rules can be dropped.
//!
//! 1. *The applied revision of an entry is never larger than what the entry reflects.* A load notes the cursor
//!    and the key's minimum before it reads anything (`Knowledge::begin_load`). Its record also reflects its own
//!    last change, and a negative entry only reflects what was noted ([`applied_revision`]). An entry of a
//!    shared cache keeps its own (`Knowledge::verified_revision`). Guards: `NotedBeforeReading`,
//!    `AppliedRevisionIsKept`, `NegativeReflectsNoted`.
//! 2. *A change raises the fence of its key, and then evicts entries, before it is acknowledged.* This holds for
//!    changes of this replica, even for those that were in effect already (`ChangeEffects::changed`), and for
//!    events (`FeedFollower::apply`). A change that found no key completes a poll first
//!    (`ChangeEffects::failed`). Guards: `ChangeRaises`, `ChangeEvicts`, `FenceBeforeEviction`,
//!    `RepeatedRevokeCounts`, `NotFoundPolls`, `EventRaises`, `EventEvicts`.
//! 3. *Caches only store entries that meet the fences*, and prefer the entry with the larger applied revision
//!    ([`Partition::fits`] and [`may_replace`], called by each cache). Guard: `OnlyFittingIsStored`.
//! 4. *The result of a load is compared with the fences again when a waiting call receives it*
//!    (`Loader::find`). Guard: `HandedOverIsChecked`.
//! 5. *A fence that is evicted raises the watermark* (`Fences::raise`). Guard: `OverflowRaises`.
//! 6. *An epoch begins at the end of the feed, with fences for the newest events and without cached entries*
//!    ([`Partition::start`], `Knowledge::start`). Entries of other replicas from before these events are
//!    rejected by rule 11, so the guard is `SharedEntriesAreVerified`.
//! 7. *The cursor advances after all events before it were applied, and a feed that can't be followed without a
//!    gap ends the epoch* (`FeedFollower::poll`). Guard: `AppliedBeforeAdvancing`.
//! 8. *The staleness of an entry counts from the moment at which a poll was sent that found no further events.*
//!    That of an entry ahead of all polls, and of a negative entry, counts from its own load
//!    (`Knowledge::as_of`). Guards: `CountsFromSending`, `AheadCountsForItself`, `NegativeCountsForItself`.
//!
//! A failover can lose changes, and a restored backup always does. The revisions of the lost changes are then
//! used again, so two changes are the same only if their nonces are equal, too ([`ChangeId`]). Two epochs
//! have different nonces at every revision after they diverge. Therefore:
//!
//! 9. *A poll is compared with the largest change seen.* If the feed ends before that change, or has another
//!    change at its revision, the backend was [rewound](Rewound) ([`Partition::apply`],
//!    [`Partition::check_end`]). Guard: `LargestSeenIsCompared`.
//! 10. *Loads and this replica's own changes are compared in the same way* ([`Partition::check_loaded`],
//!     [`Partition::check_own`]). A change that contradicts the current epoch ends it at once, because nothing
//!     may be served until it is known which epoch is valid. An own change that may have a revision that was used
//!     before, and one that was in effect already, are acknowledged after a poll unless they are larger than the
//!     largest change seen. Guards: `OwnChangeIsCompared`, `UnknownChangePolls`.
//! 11. *An entry that another replica wrote is used only if its applied revision is a change that this replica
//!     has applied* ([`Partition::has_applied`]). Otherwise it may belong to a lost epoch, whatever its revision.
//!     Guard: `SharedEntriesAreVerified`.

mod applied;
#[cfg(test)]
mod checker;
mod fences;
mod partition;
#[cfg(test)]
mod tests;

pub(crate) use self::partition::Partition;
use crate::domain::ChangeId;

/// The kinds of entries that the rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A record.
    Record,
    /// A negative entry.
    Negative,
}

/// The kinds of changes that the rules distinguish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// An event of the feed that reports a creation. All earlier events of the key were applied before.
    Creation,
    /// Any other change.
    Change,
}

/// When a change that this replica made, or found to be made already, was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Novelty {
    /// During the call.
    New,
    /// Possibly before the call: the call found it in effect, or the key could not be read before the change.
    Unknown,
}

/// Whether a change that this replica made certainly belongs to the current epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Certainty {
    /// It does, as far as this replica can know.
    Certain,
    /// It does, or it was assigned a revision that was used before. A poll has to be completed before the change is
    /// acknowledged.
    NeedsPoll,
}

/// The backend was rewound: it lost changes that were seen, so its epoch is not the one that this replica
/// follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewound;

/// Returns the applied revision of a load's result (rule 1). `noted` is the cursor from before the load read
/// anything. A record also reflects its own last change. A negative entry only reflects `noted`.
#[must_use]
pub(crate) fn applied_revision(noted: ChangeId, last_change: Option<ChangeId>) -> ChangeId {
    last_change.map_or(noted, |change| noted.later(change))
}

/// Returns whether a new entry may replace a cached one (rule 3).
#[must_use]
pub(crate) fn may_replace(new: ChangeId, old: ChangeId) -> bool {
    new.revision >= old.revision
}
