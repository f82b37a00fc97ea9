//! What this replica knows of the store's changes, and so what an entry has to know.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Entry;
use super::protocol::{Cause, Kind, Part, through};
use crate::domain::{ApiKey, ChangeKind, KeyEvent, KeyHash, KeyId, Moment, Revision, Stopwatch};
use crate::repository::{FeedPosition, RecentChanges, part_of};

/// How many fences there is room for in all, of each cause: with about 150 bytes each.
const FENCES: usize = 16_384;

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
    stopwatch: Arc<dyn Stopwatch>,
}

/// One part of the feed.
struct Cell {
    part: Mutex<Part<KeyHash>>,
    /// When the last poll was sent that all events were applied of; 0: none.
    confirmed: AtomicU64,
    /// How often it was forgotten.
    doubts: AtomicU64,
}

/// What a load notes before it reads anything.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    revision: Revision,
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

/// How often each part was doubted when a poll was sent.
#[derive(Clone, Debug)]
pub(super) struct PollSent {
    pub at: Moment,
    doubts: Vec<u64>,
}

impl Knowledge {
    /// Of a store whose feed has `parts` parts. Nothing may be served until its end was read.
    #[must_use]
    pub fn of_feed(parts: u8, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let capacity = Self::fences_of_a_part(parts);
        let parts = (0..parts.max(1)).map(|_| Cell::new(capacity)).collect();
        Self { parts, history: AtomicU64::new(0), histories: AtomicU64::new(0), alone: None, stopwatch }
    }

    /// Of a store without a feed: this replica's own changes are all that it knows of.
    #[must_use]
    pub fn without_feed(stopwatch: Arc<dyn Stopwatch>) -> Self {
        let mut knowledge = Self::of_feed(1, stopwatch);
        let mut by_revision = Part::new(FENCES);
        by_revision.start(Revision::NONE, Revision::NONE);
        knowledge.alone = Some(Mutex::new(by_revision));
        knowledge.parts[0].change(|part| part.start(Revision::NONE, Revision::NONE));
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
        let revision = part.cursor().max(part.floor(hash, Kind::Absent));
        drop(part);
        Some(Noted { revision, history, began: self.moment() })
    }

    /// The entry of a load that noted `noted` and found `key` in the store.
    #[must_use]
    pub fn loaded(&self, noted: &Noted, key: Option<ApiKey>) -> Entry {
        let revision = key.as_ref().map(|key| key.revision).filter(|_| self.has_feed());
        Entry {
            key: key.map(Arc::new),
            through: through(noted.revision, revision),
            history: noted.history,
            began: Some(noted.began),
            kept_until: Moment::NEVER,
        }
    }

    /// What an entry that another replica wrote is here; `None` if it may not be served. `noted` is from before it was read,
    /// `known` is the `through` that was written with it.
    #[must_use]
    pub(super) fn adopt(&self, hash: &KeyHash, noted: &Noted, known: Revision) -> Option<Revision> {
        let Some(by_revision) = &self.alone else {
            return Some(known);
        };
        let fits = lock(by_revision).fits(hash, Kind::Present, known);
        fits.then_some(noted.revision)
    }

    /// The `through` that is written for other replicas with a record.
    #[must_use]
    pub(super) fn published(&self, entry: &Entry, key: &ApiKey) -> Revision {
        if self.has_feed() { entry.through } else { key.revision }
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

    /// How long ago the poll was sent that last said that nothing is missing; of the part that is furthest behind. `None`
    /// without a feed, or before the first.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
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

    /// Rule 2: from now on nothing is served for `hash` that does not reflect its change `revision`, which this replica made.
    /// Returns the `through` of a record that does; `None` if the `history` in which the change was begun is over: then its
    /// revision means nothing. Caches take out what no longer fits *after* that.
    pub fn raise(&self, history: u64, hash: &KeyHash, revision: Revision) -> Option<Revision> {
        self.cell(hash).change(|part| {
            // A new history is read after the old one ended: if that has not happened yet, this change will be in it.
            if history == 0 || self.history() != history {
                return None;
            }
            let Some(by_revision) = &self.alone else {
                part.raise(*hash, Cause::Change, revision);
                return Some(revision);
            };
            lock(by_revision).raise(*hash, Cause::Change, revision);
            let number = Revision::new(part.cursor().get() + 1);
            part.raise(*hash, Cause::Change, number);
            part.advance(number);
            Some(number)
        })
    }

    /// A change of `hash` may or may not have been made: until a poll that is sent from now on, what the feed said before
    /// counts for nothing.
    pub fn doubt(&self, hash: &KeyHash) {
        Self::doubt_in(self.cell(hash));
    }

    /// The same where only the key's id is known.
    pub fn doubt_id(&self, id: KeyId) {
        Self::doubt_in(&self.parts[part_of(id.hash_byte(), self.parts.len())]);
    }

    fn doubt_in(cell: &Cell) {
        cell.doubts.fetch_add(1, Ordering::SeqCst);
        cell.confirmed.store(0, Ordering::SeqCst);
    }

    /// Notes that a poll is sent.
    pub(super) fn poll_sent(&self) -> PollSent {
        let doubts = self.parts.iter().map(|cell| cell.doubts.load(Ordering::SeqCst)).collect();
        PollSent { at: self.moment(), doubts }
    }

    /// Rule 8, for each event of a poll. The caller takes it out of the caches next.
    pub(super) fn apply(&self, event: &KeyEvent) {
        let cause = match event.kind {
            ChangeKind::Created => Cause::Creation,
            ChangeKind::Updated | ChangeKind::Revoked | ChangeKind::Rotated | ChangeKind::Deleted => {
                Cause::Change
            }
        };
        self.cell(&event.hash).change(|part| part.raise(event.hash, cause, event.revision));
    }

    /// Rule 8: all events before `position` were applied and taken out.
    pub(super) fn advance(&self, position: &FeedPosition) {
        for (number, cell) in (0..).zip(&self.parts) {
            cell.change(|part| part.advance(position.revision(number)));
        }
    }

    /// Rule 9: the poll `sent` found nothing more; the parts in `unanswered` were not reached.
    pub(super) fn confirm(&self, sent: &PollSent, unanswered: &[u8]) {
        for ((number, cell), doubts) in (0..).zip(&self.parts).zip(&sent.doubts) {
            if !unanswered.contains(&number) && cell.doubts.load(Ordering::SeqCst) == *doubts {
                cell.confirmed.fetch_max(sent.at.as_nanos(), Ordering::SeqCst);
                // A doubt that came in between must not be overwritten.
                if cell.doubts.load(Ordering::SeqCst) != *doubts {
                    cell.confirmed.store(0, Ordering::SeqCst);
                }
            }
        }
    }

    /// Rule 7: begins with the newest events, in a history of its own: what belongs to another one is not served any more.
    pub(super) fn start(&self, recent: &RecentChanges) {
        self.end_history();
        for (number, cell) in (0..).zip(&self.parts) {
            cell.doubts.fetch_add(1, Ordering::SeqCst);
            cell.confirmed.store(0, Ordering::SeqCst);
            cell.change(|part| part.start(recent.position.revision(number), recent.complete_after(number)));
        }
        for event in &recent.events {
            self.apply(event);
        }
        let number = self.histories.fetch_add(1, Ordering::SeqCst) + 1;
        self.history.store(number, Ordering::SeqCst);
    }

    /// Rule 8: history was rewound, or events were let go before they were read. Nothing is served until the next
    /// [`start`](Self::start).
    pub(super) fn end_history(&self) {
        self.history.store(0, Ordering::SeqCst);
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
    fn new(capacity: usize) -> Self {
        Self {
            part: Mutex::new(Part::new(capacity)),
            confirmed: AtomicU64::new(0),
            doubts: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Part<KeyHash>> {
        lock(&self.part)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Part<KeyHash>) -> T) -> T {
        change(&mut self.lock())
    }
}

// A poisoned lock is taken over: no change of a part can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
