//! The state of this replica: the changes it has applied, and the fences that follow from them.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Entry;
use super::protocol::{Cause, Certainty, Kind, Novelty, Part, Rewound, through};
use crate::domain::{ApiKey, ChangeId, ChangeKind, KeyEvent, KeyHash, Moment, Revision, Stopwatch};
use crate::repository::{FeedPosition, RecentChanges, UnreadableEvent, part_of};

/// Maximum total number of fences per cause. A fence takes about 170 bytes.
const FENCES: usize = 16_384;
/// Maximum total number of applied changes that are remembered, so that entries of other replicas can be
/// compared with them. Each takes 16 bytes. An entry in the Redis cache that is older than these changes is
/// loaded again.
const APPLIED: usize = 65_536;

/// The state that the rules of [`protocol`](super::protocol) need, shared by all threads and all caches of a
/// process.
pub struct Knowledge {
    parts: Box<[Cell]>,
    /// The number of the current epoch. It grows when history was rewound. 0 while no epoch is followed.
    history: AtomicU64,
    /// The number of epochs so far.
    histories: AtomicU64,
    /// For backends without a change feed. Revisions of different keys need not be comparable there, so
    /// changes are numbered in this process. This field has fences by the backend's own revisions, for
    /// entries of other replicas.
    alone: Option<Mutex<Part<KeyHash>>>,
    /// Wakes the follower when something other than a poll detected that history was rewound.
    rewound: Notify,
    stopwatch: Arc<dyn Stopwatch>,
}

/// The state of one partition of the feed.
struct Cell {
    part: Mutex<Part<KeyHash>>,
    /// The moment of the last poll whose events were all applied, in nanoseconds. 0 if there was none.
    confirmed: AtomicU64,
    /// The revision of the partition's cursor, readable without a lock.
    cursor: AtomicI64,
}

/// The state that a load notes before it reads anything.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    change: ChangeId,
    history: u64,
    /// The moment at which the load began.
    pub began: Moment,
}

impl Noted {
    /// Returns the epoch in which the load began.
    #[must_use]
    pub(super) fn history(&self) -> u64 {
        self.history
    }
}

/// The state when a poll was sent, which its result is compared with.
#[derive(Clone, Debug)]
pub(super) struct PollSent {
    pub at: Moment,
    /// The largest change seen in each partition when the poll was sent.
    seen: Vec<ChangeId>,
}

/// The state when this replica began a change, which the change is compared with after it was made.
#[derive(Clone, Debug)]
pub(crate) struct ChangeBegun {
    pub at: Moment,
    /// The epoch in which the change began.
    pub history: u64,
    /// The largest change seen in each partition.
    seen: Vec<ChangeId>,
}

/// The classification of a change that this replica made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// The change belongs to the current epoch. Contains the applied revision of a record that reflects it.
    Here(ChangeId, Certainty),
    /// The change belongs to another epoch. The feed reports it once that epoch is followed.
    Elsewhere,
}

impl Knowledge {
    /// Creates the state for a feed with `parts` partitions. Nothing may be served until the end of the feed
    /// was read.
    #[must_use]
    pub fn of_feed(parts: u8, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let capacity = Self::fences_of_a_part(parts);
        let applied = APPLIED / usize::from(parts.max(1));
        let parts = (0..parts.max(1)).map(|_| Cell::new(capacity, applied)).collect();
        Self {
            parts,
            history: AtomicU64::new(0),
            histories: AtomicU64::new(0),
            alone: None,
            rewound: Notify::new(),
            stopwatch,
        }
    }

    /// Creates the state for a backend without a feed. It only reflects changes of this replica.
    #[must_use]
    pub fn without_feed(stopwatch: Arc<dyn Stopwatch>) -> Self {
        let mut knowledge = Self::of_feed(1, stopwatch);
        let mut by_revision = Part::new(FENCES, 0);
        by_revision.start(ChangeId::NONE);
        knowledge.alone = Some(Mutex::new(by_revision));
        knowledge.parts[0].change(|part| part.start(ChangeId::NONE));
        knowledge.history = AtomicU64::new(1);
        knowledge.histories = AtomicU64::new(1);
        knowledge
    }

    /// Returns whether changes of other replicas are received.
    #[must_use]
    pub fn has_feed(&self) -> bool {
        self.alone.is_none()
    }

    /// Returns the current moment.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.stopwatch.moment()
    }

    /// Returns the state that a load of `hash` has to note before it reads anything (rule 1). `None` before
    /// the feed was read.
    ///
    /// A load that begins after a fence was raised reflects the fence's change, whether or not the feed has
    /// delivered it yet, because fences are raised after their change was committed.
    #[must_use]
    pub fn note(&self, hash: &KeyHash) -> Option<Noted> {
        let history = self.history.load(Ordering::SeqCst);
        if history == 0 {
            return None;
        }
        let part = self.cell(hash).lock();
        let change = part.cursor().later(part.floor(hash, Kind::Absent));
        drop(part);
        Some(Noted { change, history, began: self.moment() })
    }

    /// Returns the entry of a load of `hash` that noted `noted` and found `key` in the backend. If the record
    /// belongs to another epoch, the current epoch ends, and the entry may not be served.
    #[must_use]
    pub fn loaded(&self, hash: &KeyHash, noted: &Noted, key: Option<ApiKey>) -> Entry {
        let last_change = key.as_ref().map(ApiKey::last_change).filter(|_| self.has_feed());
        if let Some(last_change) = last_change {
            let seen = self.cell(hash).change(|part| {
                // An entry of an epoch that has ended can't be served in any case.
                if self.history() == noted.history { part.see(noted.change, last_change) } else { Ok(()) }
            });
            if seen.is_err() {
                self.rewind();
            }
        }
        Entry {
            key: key.map(Arc::new),
            through: through(noted.change, last_change),
            history: noted.history,
            began: Some(noted.began),
            kept_until: Moment::NEVER,
        }
    }

    /// Returns the applied revision, in this process, of an entry that another replica wrote (rule 12).
    /// `None` if the entry may not be served. `noted` was noted before the entry was read, and `known` is the
    /// applied revision that was written with it.
    #[must_use]
    pub(super) fn adopt(&self, hash: &KeyHash, noted: &Noted, known: ChangeId) -> Option<ChangeId> {
        let Some(by_revision) = &self.alone else {
            let is_known = self.cell(hash).lock().has_applied(known);
            return is_known.then_some(known);
        };
        let fits = lock(by_revision).fits(hash, Kind::Present, known);
        fits.then_some(noted.change)
    }

    /// Returns the applied revision that is written for other replicas with a record.
    #[must_use]
    pub(super) fn published(&self, entry: &Entry, key: &ApiKey) -> ChangeId {
        if self.has_feed() { entry.through } else { ChangeId::of_revision(key.revision) }
    }

    /// Returns whether `entry` meets the fences, so that it may be stored, and served if its staleness is
    /// acceptable.
    #[must_use]
    pub fn fits(&self, hash: &KeyHash, entry: &Entry) -> bool {
        self.is_of_this_history(entry) && self.cell(hash).lock().fits(hash, entry.kind(), entry.through)
    }

    /// Returns whether `entry` belongs to the current epoch. This takes no lock. It suffices for a hit in a
    /// cache that rejects entries which don't meet the fences, and evicts them as soon as a fence is raised.
    #[must_use]
    pub(super) fn is_of_this_history(&self, entry: &Entry) -> bool {
        entry.history != 0 && entry.history == self.history()
    }

    /// Returns the moment of the last poll whose events were all applied (rule 9). `None` if there was none.
    /// **Call this before reading an entry.** The entry then reflects all changes up to that moment. If this
    /// is called after the entry was read, a later poll may have delivered a change that the entry does not
    /// reflect.
    #[must_use]
    pub(super) fn confirmed(&self, hash: &KeyHash) -> Option<Moment> {
        match self.cell(hash).confirmed.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }

    /// Returns the latest moment at which the backend is certain to have been in the state of `entry`, which
    /// has to meet the fences (rule 9). `confirmed` was [read](Self::confirmed) before the entry. `None` if
    /// there is no such moment.
    ///
    /// An entry that reflects changes that no poll has delivered yet counts from its own load alone, because
    /// those changes may be lost. A negative entry counts from its own load, too. It has no change that could
    /// be compared, and may reflect a deletion that is lost.
    #[must_use]
    pub(super) fn as_of(&self, hash: &KeyHash, entry: &Entry, confirmed: Option<Moment>) -> Option<Moment> {
        let is_ahead = entry.through.revision.get() > self.cell(hash).cursor.load(Ordering::SeqCst);
        if is_ahead || entry.kind() == Kind::Absent { entry.began } else { entry.began.max(confirmed) }
    }

    /// Returns the time since the last poll that found no further events was sent, for the partition that is
    /// furthest behind. `None` without a feed, before the first such poll, and while no epoch is followed.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
        if self.history() == 0 {
            return None;
        }
        let oldest = self.parts.iter().map(|cell| cell.confirmed.load(Ordering::SeqCst)).min()?;
        (oldest > 0).then(|| self.moment().since(Moment::from_nanos(oldest)))
    }

    /// Returns the number of fences.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.parts.iter().map(|cell| lock(&cell.part).fences()).sum()
    }

    /// Returns the number of the current epoch. 0 while no epoch is followed.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.history.load(Ordering::SeqCst)
    }

    /// Returns the state that a change which begins now is compared with after it was made.
    pub(crate) fn change_begins(&self) -> ChangeBegun {
        let history = self.history();
        ChangeBegun { at: self.moment(), history, seen: self.largest_seen() }
    }

    /// Raises the fence of `hash` to `change`, which this replica made (rules 2 and 11). From now on nothing
    /// is served for `hash` that does not reflect it. `novelty` is relative to `begun`. The caller has to evict
    /// entries *after* this call.
    pub(crate) fn raise(
        &self,
        begun: &ChangeBegun,
        hash: &KeyHash,
        change: ChangeId,
        novelty: Novelty,
    ) -> Made {
        let number = part_of(hash.as_bytes()[0], self.parts.len());
        let made = self.parts[number].change(|part| {
            // A new epoch is read after the old one ended. If that has not happened yet, the new epoch will
            // contain this change.
            if begun.history == 0 || self.history() != begun.history {
                return Ok(Made::Elsewhere);
            }
            let Some(by_revision) = &self.alone else {
                let certainty = part.see_own(begun.seen[number], change, novelty)?;
                part.raise(*hash, Cause::Change, change);
                return Ok(Made::Here(change, certainty));
            };
            lock(by_revision).raise(*hash, Cause::Change, ChangeId::of_revision(change.revision));
            let next = ChangeId::of_revision(Revision::new(part.cursor().revision.get() + 1));
            part.raise(*hash, Cause::Change, next);
            part.advance(next);
            Ok(Made::Here(next, Certainty::Certain))
        });
        made.unwrap_or_else(|Rewound| {
            self.rewind();
            Made::Elsewhere
        })
    }

    fn largest_seen(&self) -> Vec<ChangeId> {
        self.parts.iter().map(|cell| cell.lock().seen()).collect()
    }

    /// Notes that a poll is sent.
    pub(super) fn poll_sent(&self) -> PollSent {
        PollSent { at: self.moment(), seen: self.largest_seen() }
    }

    /// Applies an event of a poll (rule 8). The caller has to evict the key's entries afterwards.
    ///
    /// # Errors
    /// The event belongs to another epoch (rule 10).
    pub(crate) fn apply(&self, event: &KeyEvent) -> Result<(), Rewound> {
        let cause = match event.kind {
            // Reviving a revoked hash is more than a creation, because not only negative entries may be
            // cached for it.
            ChangeKind::Created if event.changed_fields.is_empty() => Cause::Creation,
            ChangeKind::Created
            | ChangeKind::Updated
            | ChangeKind::Revoked
            | ChangeKind::Rotated
            | ChangeKind::Deleted
            | ChangeKind::Unknown => Cause::Change,
        };
        self.cell(&event.hash).change(|part| part.apply(event.hash, cause, event.change()))
    }

    /// Applies an event that can't be read. The caller has to clear the caches afterwards.
    ///
    /// # Errors
    /// The errors of [`apply`](Self::apply).
    pub(super) fn apply_unreadable(&self, event: &UnreadableEvent) -> Result<(), Rewound> {
        match self.parts.get(usize::from(event.part)) {
            Some(cell) => cell.change(|part| part.apply_unreadable(event.revision)),
            None => Err(Rewound),
        }
    }

    /// Advances the cursors to `position` (rule 8). All events before it were applied, and entries were
    /// evicted.
    pub(super) fn advance(&self, position: &FeedPosition) {
        for (number, cell) in (0..).zip(&self.parts) {
            cell.change(|part| part.advance(position.last_change(number)));
        }
    }

    /// Confirms that the poll `sent` reached the end of the feed (rules 9 and 10). The partitions in
    /// `unanswered` were not reached.
    ///
    /// # Errors
    /// The feed ends before a change that was seen.
    pub(super) fn confirm(&self, sent: &PollSent, unanswered: &[u8]) -> Result<(), Rewound> {
        let answered = || {
            let parts = (0..).zip(&self.parts).zip(&sent.seen);
            parts.filter(|((number, _), _)| !unanswered.contains(number))
        };
        for ((_, cell), seen) in answered() {
            cell.lock().check_end(*seen)?;
        }
        for ((_, cell), _) in answered() {
            cell.confirmed.fetch_max(sent.at.as_nanos(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Begins a new epoch with the newest events (rule 7). Entries of earlier epochs are not served any more.
    pub(super) fn start(&self, recent: &RecentChanges) {
        self.end_history();
        for (number, cell) in (0..).zip(&self.parts) {
            cell.confirmed.store(0, Ordering::SeqCst);
            let position = recent.position.last_change(number);
            cell.change(|part| part.start(position));
        }
        for event in &recent.events {
            // All events belong to one epoch, so they can't contradict each other.
            let _ = self.apply(event);
        }
        for event in &recent.unreadable {
            let _ = self.apply_unreadable(event);
        }
        let number = self.histories.fetch_add(1, Ordering::SeqCst) + 1;
        self.history.store(number, Ordering::SeqCst);
    }

    /// Ends the epoch, because history was rewound or events were pruned before they were read (rule 8).
    /// Nothing is served until the next [`start`](Self::start).
    pub(super) fn end_history(&self) {
        self.history.store(0, Ordering::SeqCst);
    }

    /// Ends the epoch and makes the follower restart (rule 11).
    fn rewind(&self) {
        self.end_history();
        self.rewound.notify_one();
    }

    /// Waits until something other than a poll detects that history was rewound.
    pub(super) async fn is_rewound(&self) {
        self.rewound.notified().await;
    }

    /// Returns the number of fences per partition, in a feed with `parts` partitions. At startup, as many of
    /// the newest events are read.
    pub(super) fn fences_of_a_part(parts: u8) -> usize {
        FENCES / usize::from(parts.max(1))
    }

    fn cell(&self, hash: &KeyHash) -> &Cell {
        &self.parts[part_of(hash.as_bytes()[0], self.parts.len())]
    }
}

impl fmt::Debug for Knowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knowledge").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

impl Cell {
    fn new(capacity: usize, applied: usize) -> Self {
        Self {
            part: Mutex::new(Part::new(capacity, applied)),
            confirmed: AtomicU64::new(0),
            cursor: AtomicI64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Part<KeyHash>> {
        lock(&self.part)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Part<KeyHash>) -> T) -> T {
        let mut part = self.lock();
        let changed = change(&mut part);
        self.cursor.store(part.cursor().revision.get(), Ordering::SeqCst);
        changed
    }
}

// A poisoned lock is usable, because changes of a partition can't panic halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
