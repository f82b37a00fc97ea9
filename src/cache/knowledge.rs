//! What this replica knows of the store's changes, and so what an entry has to know.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Entry;
use super::protocol::{Cause, Kind, Part, Rewound, through};
use crate::domain::{ApiKey, ChangeId, ChangeKind, KeyEvent, KeyHash, Moment, Revision, Stopwatch};
use crate::repository::{FeedPosition, RecentChanges, UnreadableEvent, part_of};

/// Number of fences that there is room for in all, for each cause. A fence takes about 170 bytes.
const FENCES: usize = 16_384;
/// Number of applied changes that are remembered in all, so that entries of other replicas can be compared with them.
/// Each takes 16 bytes. An entry in the Redis cache from before is loaded anew.
const APPLIED: usize = 65_536;

/// One for all caches of a process. It is what the rules of [`protocol`](super::protocol) need, for threads.
pub struct Knowledge {
    parts: Box<[Cell]>,
    /// Which history of the store this is: grows when it was rewound. 0 while it is not known.
    history: AtomicU64,
    /// How many there were.
    histories: AtomicU64,
    /// For a store without a change feed: revisions of different keys need not be comparable, so changes are numbered here,
    /// and this has the fences by the store's own revisions, for entries of other replicas.
    alone: Option<Mutex<Part<KeyHash>>>,
    /// Wakes the follower when something else than a poll found the history rewound.
    rewound: Notify,
    stopwatch: Arc<dyn Stopwatch>,
}

/// One part of the feed.
struct Cell {
    part: Mutex<Part<KeyHash>>,
    /// When the last poll was sent that all events were applied of; 0: none.
    confirmed: AtomicU64,
    /// The revision of the part's cursor, to be read without a lock.
    cursor: AtomicI64,
}

/// What a load notes before it reads anything.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    change: ChangeId,
    history: u64,
    /// When the load began.
    pub began: Moment,
}

impl Noted {
    /// Which history of the store it belongs to.
    #[must_use]
    pub(super) fn history(&self) -> u64 {
        self.history
    }
}

/// What a poll has to bring.
#[derive(Clone, Debug)]
pub(super) struct PollSent {
    pub at: Moment,
    /// The largest change of each part that was seen when the poll was sent.
    seen: Vec<ChangeId>,
}

/// What a change that this replica begins has to be compared with when it was made.
#[derive(Clone, Debug)]
pub(crate) struct ChangeBegun {
    pub at: Moment,
    /// The history in which it begins.
    pub history: u64,
    /// The largest change of each part that was seen.
    seen: Vec<ChangeId>,
}

/// What a change that this replica made turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// A change of the history that is followed. This is the `through` of a record that reflects it.
    Here(ChangeId),
    /// A change of another history: it is told by the feed once that one is followed.
    Elsewhere,
}

impl Knowledge {
    /// Of a store whose feed has `parts` parts. Nothing may be served until its end was read.
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

    /// Of a store without a feed: this replica's own changes are all that it knows of.
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

    /// Whether changes of other replicas are heard of.
    #[must_use]
    pub fn has_feed(&self) -> bool {
        self.alone.is_none()
    }

    /// The present moment.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.stopwatch.moment()
    }

    /// Rule 1: what a load of `hash` notes before it reads anything. `None` before the feed was read.
    ///
    /// The load begins after the fence of its key went up, and that went up after the change was committed: so it reflects
    /// that change, whether or not the feed has told of it yet.
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

    /// The entry of a load of `hash` that noted `noted` and found `key` in the store. If the record is of another history
    /// than the one that is followed, that one ends, and the entry does not fit.
    #[must_use]
    pub fn loaded(&self, hash: &KeyHash, noted: &Noted, key: Option<ApiKey>) -> Entry {
        let last_change = key.as_ref().map(ApiKey::last_change).filter(|_| self.has_feed());
        if let Some(last_change) = last_change {
            let seen = self.cell(hash).change(|part| {
                // What belongs to a history that is over does not fit in any case.
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

    /// Rule 12: what an entry that another replica wrote is here; `None` if it may not be served. `noted` is from before it
    /// was read, `known` is the `through` that was written with it.
    #[must_use]
    pub(super) fn adopt(&self, hash: &KeyHash, noted: &Noted, known: ChangeId) -> Option<ChangeId> {
        let Some(by_revision) = &self.alone else {
            let is_known = self.cell(hash).lock().has_applied(known);
            return is_known.then_some(known);
        };
        let fits = lock(by_revision).fits(hash, Kind::Present, known);
        fits.then_some(noted.change)
    }

    /// The `through` that is written for other replicas with a record.
    #[must_use]
    pub(super) fn published(&self, entry: &Entry, key: &ApiKey) -> ChangeId {
        if self.has_feed() { entry.through } else { ChangeId::of_revision(key.revision) }
    }

    /// Whether `entry` may be stored, or served if it is fresh enough.
    #[must_use]
    pub fn fits(&self, hash: &KeyHash, entry: &Entry) -> bool {
        self.is_of_this_history(entry) && self.cell(hash).lock().fits(hash, entry.kind(), entry.through)
    }

    /// Whether `entry` is of the history that is followed now. For a hit in a cache that lets nothing in that does not fit and
    /// takes it out as soon as it does not, that is all there is to ask, and it takes no lock.
    #[must_use]
    pub(super) fn is_of_this_history(&self, entry: &Entry) -> bool {
        entry.history != 0 && entry.history == self.history()
    }

    /// Rule 9: when the last poll was sent that all events were applied of. **Taken before an entry is read**: the entry then
    /// reflects all that was known at that time. Taken afterwards, it could be about a change that the entry misses.
    #[must_use]
    pub(super) fn confirmed(&self, hash: &KeyHash) -> Option<Moment> {
        match self.cell(hash).confirmed.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }

    /// Rule 9: the latest moment at which the store is known to have been as `entry` says, which fits. `confirmed` was
    /// [taken](Self::confirmed) before the entry was read.
    ///
    /// An entry that knows of changes that no poll has brought yet counts from its own load alone: those changes may be lost.
    /// So does absence, which names no change that could be compared: it may reflect a deletion that is lost.
    #[must_use]
    pub(super) fn as_of(&self, hash: &KeyHash, entry: &Entry, confirmed: Option<Moment>) -> Option<Moment> {
        let is_ahead = entry.through.revision.get() > self.cell(hash).cursor.load(Ordering::SeqCst);
        if is_ahead || entry.kind() == Kind::Absent { entry.began } else { entry.began.max(confirmed) }
    }

    /// How long ago the poll was sent that last said that nothing is missing; of the part that is furthest behind. `None`
    /// without a feed, before the first, and while the history is not known.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
        if self.history() == 0 {
            return None;
        }
        let oldest = self.parts.iter().map(|cell| cell.confirmed.load(Ordering::SeqCst)).min()?;
        (oldest > 0).then(|| self.moment().since(Moment::from_nanos(oldest)))
    }

    /// How many fences there are.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.parts.iter().map(|cell| lock(&cell.part).fences()).sum()
    }

    /// Which history of the store this is; 0 while it is not known.
    #[must_use]
    pub fn history(&self) -> u64 {
        self.history.load(Ordering::SeqCst)
    }

    /// What a change that begins now is compared with when it was made.
    pub(crate) fn change_begins(&self) -> ChangeBegun {
        let history = self.history();
        ChangeBegun { at: self.moment(), history, seen: self.largest_seen() }
    }

    /// Rules 2 and 11: from now on nothing is served for `hash` that does not reflect `change`, which this replica made. With
    /// `is_new` it was made after `begun`; otherwise it is an older one that turned out to stand already. Caches take out
    /// what no longer fits *after* that.
    pub(crate) fn raise(&self, begun: &ChangeBegun, hash: &KeyHash, change: ChangeId, is_new: bool) -> Made {
        let number = part_of(hash.as_bytes()[0], self.parts.len());
        let made = self.parts[number].change(|part| {
            // A new history is read after the old one ended: if that has not happened yet, this change will be in it.
            if begun.history == 0 || self.history() != begun.history {
                return Ok(Made::Elsewhere);
            }
            let Some(by_revision) = &self.alone else {
                if is_new {
                    part.see_own(begun.seen[number], change)?;
                } else {
                    part.see(ChangeId::NONE, change)?;
                }
                part.raise(*hash, Cause::Change, change);
                return Ok(Made::Here(change));
            };
            lock(by_revision).raise(*hash, Cause::Change, ChangeId::of_revision(change.revision));
            let next = ChangeId::of_revision(Revision::new(part.cursor().revision.get() + 1));
            part.raise(*hash, Cause::Change, next);
            part.advance(next);
            Ok(Made::Here(next))
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

    /// Rule 8, for each event of a poll. The caller takes it out of the caches next.
    ///
    /// # Errors
    /// Rule 10: the event is of another history.
    pub(crate) fn apply(&self, event: &KeyEvent) -> Result<(), Rewound> {
        let cause = match event.kind {
            // To revive a revoked hash is more than to create a key: what was cached before is not only absence.
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

    /// The same for an event that can't be read. The caller empties the caches next.
    ///
    /// # Errors
    /// Those of [`apply`](Self::apply).
    pub(super) fn apply_unreadable(&self, event: &UnreadableEvent) -> Result<(), Rewound> {
        match self.parts.get(usize::from(event.part)) {
            Some(cell) => cell.change(|part| part.apply_unreadable(event.revision)),
            None => Err(Rewound),
        }
    }

    /// Rule 8: all events before `position` were applied and taken out.
    pub(super) fn advance(&self, position: &FeedPosition) {
        for (number, cell) in (0..).zip(&self.parts) {
            cell.change(|part| part.advance(position.last_change(number)));
        }
    }

    /// Rules 9 and 10: the poll `sent` found nothing more; the parts in `unanswered` were not reached.
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

    /// Rule 7: begins with the newest events, in a history of its own: what belongs to another one is not served any more.
    pub(super) fn start(&self, recent: &RecentChanges) {
        self.end_history();
        for (number, cell) in (0..).zip(&self.parts) {
            cell.confirmed.store(0, Ordering::SeqCst);
            let position = recent.position.last_change(number);
            cell.change(|part| part.start(position));
        }
        for event in &recent.events {
            // They are from one history, so nothing contradicts anything.
            let _ = self.apply(event);
        }
        for event in &recent.unreadable {
            let _ = self.apply_unreadable(event);
        }
        let number = self.histories.fetch_add(1, Ordering::SeqCst) + 1;
        self.history.store(number, Ordering::SeqCst);
    }

    /// Rule 8: history was rewound, or events were let go before they were read. Nothing is served until the next
    /// [`start`](Self::start).
    pub(super) fn end_history(&self) {
        self.history.store(0, Ordering::SeqCst);
    }

    /// Rule 11: ends the history, and has the follower begin anew.
    fn rewind(&self) {
        self.end_history();
        self.rewound.notify_one();
    }

    /// Waits until something else than a poll found the history rewound.
    pub(super) async fn is_rewound(&self) {
        self.rewound.notified().await;
    }

    /// How many of the newest events of a part are worth reading at the start, of a feed with `parts` parts.
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

// A poisoned lock is taken over: no change of a part can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
