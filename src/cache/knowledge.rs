//! The state of this replica: the changes it has applied, and the fences that follow from them.

mod shared_partition;
mod starts;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use self::shared_partition::{SharedPartition, lock};
pub(super) use self::starts::PollStart;
pub(crate) use self::starts::{ChangeStart, LoadStart, OwnChange};
use super::Entry;
use super::protocol::{Cause, Certainty, EntryKind, Novelty, Partition, Rewound, applied_revision};
use crate::domain::{ApiKey, ChangeId, ChangeKind, KeyEvent, KeyHash, Moment, Revision, Stopwatch};
use crate::repository::{FeedPosition, RecentChanges, UnreadableEvent, partition_of};

/// Maximum total number of fences per cause. A fence takes about 170 bytes.
const FENCES: usize = 16_384;
/// Maximum total number of applied changes that are remembered, so that entries of other replicas can be
/// compared with them. Each takes 16 bytes. An entry of a shared cache that is older than these changes is
/// loaded again.
const APPLIED: usize = 65_536;

/// The state that the rules of `protocol` need, shared by all threads and all caches of a
/// process.
pub struct Knowledge {
    partitions: Box<[SharedPartition]>,
    /// The number of the current epoch. It grows when the backend was rewound. 0 while no epoch is followed.
    epoch: AtomicU64,
    /// The number of epochs so far.
    last_epoch: AtomicU64,
    /// For backends without a change feed. Revisions of different keys need not be comparable there, so
    /// changes are numbered in this process. This field has fences by the backend's own revisions, for
    /// entries of other replicas.
    by_backend_revision: Option<Mutex<Partition<KeyHash>>>,
    /// Wakes the follower when something other than a poll detected that the backend was rewound.
    rewound: Notify,
    stopwatch: Arc<dyn Stopwatch>,
}

impl Knowledge {
    /// Creates the state for a feed with this number of partitions. Nothing may be served until the end of the feed
    /// was read.
    #[must_use]
    pub(crate) fn of_feed(partitions: u8, stopwatch: Arc<dyn Stopwatch>) -> Self {
        let capacity = Self::fences_per_partition(partitions);
        let applied = APPLIED / usize::from(partitions.max(1));
        let partitions = (0..partitions.max(1)).map(|_| SharedPartition::new(capacity, applied)).collect();
        Self {
            partitions,
            epoch: AtomicU64::new(0),
            last_epoch: AtomicU64::new(0),
            by_backend_revision: None,
            rewound: Notify::new(),
            stopwatch,
        }
    }

    /// Creates the state for a backend without a feed. It only reflects changes of this replica.
    #[must_use]
    pub fn without_feed(stopwatch: Arc<dyn Stopwatch>) -> Self {
        let mut knowledge = Self::of_feed(1, stopwatch);
        let mut by_backend_revision = Partition::new(FENCES, 0);
        by_backend_revision.start(ChangeId::NONE);
        knowledge.by_backend_revision = Some(Mutex::new(by_backend_revision));
        knowledge.partitions[0].change(|partition| partition.start(ChangeId::NONE));
        knowledge.epoch = AtomicU64::new(1);
        knowledge.last_epoch = AtomicU64::new(1);
        knowledge
    }

    /// Returns whether changes of other replicas are received.
    #[must_use]
    pub fn has_feed(&self) -> bool {
        self.by_backend_revision.is_none()
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
    pub(crate) fn begin_load(&self, hash: &KeyHash) -> Option<LoadStart> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if epoch == 0 {
            return None;
        }
        let partition = self.partition(hash).lock();
        let cursor = partition.cursor().later(partition.minimum(hash, EntryKind::Negative));
        drop(partition);
        Some(LoadStart { cursor, epoch, began: self.moment() })
    }

    /// Returns the entry of a load of `hash` that began at `start` and found `key` in the backend. If the record
    /// belongs to another epoch, the current epoch ends, and the entry may not be served.
    #[must_use]
    pub(crate) fn loaded(&self, hash: &KeyHash, start: &LoadStart, key: Option<ApiKey>) -> Entry {
        let last_change = key.as_ref().map(ApiKey::last_change).filter(|_| self.has_feed());
        if let Some(last_change) = last_change {
            let compared = self.partition(hash).change(|partition| {
                // An entry of an epoch that has ended can't be served in any case.
                if self.epoch() == start.epoch {
                    partition.check_loaded(start.cursor, last_change)
                } else {
                    Ok(())
                }
            });
            if compared.is_err() {
                self.rewind();
            }
        }
        Entry {
            key: key.map(Arc::new),
            applied_revision: applied_revision(start.cursor, last_change),
            epoch: start.epoch,
            began: Some(start.began),
            kept_until: Moment::NEVER,
        }
    }

    /// Returns the applied revision, in this process, of an entry that another replica wrote (rule 11).
    /// `None` if the entry may not be served. `start` was taken before the entry was read, and `written` is the
    /// applied revision that was written with it.
    #[must_use]
    pub(super) fn verified_revision(
        &self,
        hash: &KeyHash,
        start: &LoadStart,
        written: ChangeId,
    ) -> Option<ChangeId> {
        let Some(by_backend_revision) = &self.by_backend_revision else {
            let is_known = self.partition(hash).lock().has_applied(written);
            return is_known.then_some(written);
        };
        let fits = lock(by_backend_revision).fits(hash, EntryKind::Record, written);
        fits.then_some(start.cursor)
    }

    /// Returns the applied revision that is written for other replicas with a record.
    #[must_use]
    pub(super) fn revision_for_others(&self, entry: &Entry, key: &ApiKey) -> ChangeId {
        if self.has_feed() { entry.applied_revision } else { ChangeId::of_revision(key.revision) }
    }

    /// Returns whether `entry` meets the fences, so that it may be stored, and served if its staleness is
    /// acceptable.
    #[must_use]
    pub fn fits(&self, hash: &KeyHash, entry: &Entry) -> bool {
        self.is_of_this_epoch(entry)
            && self.partition(hash).lock().fits(hash, entry.kind(), entry.applied_revision)
    }

    /// Returns whether `entry` belongs to the current epoch. This takes no lock. It suffices for a hit in a
    /// cache that rejects entries which don't meet the fences, and evicts them as soon as a fence is raised.
    #[must_use]
    pub(super) fn is_of_this_epoch(&self, entry: &Entry) -> bool {
        entry.epoch != 0 && entry.epoch == self.epoch()
    }

    /// Returns the moment of the last poll whose events were all applied (rule 8). `None` if there was none.
    /// **Call this before reading an entry.** The entry then reflects all changes up to that moment. If this
    /// is called after the entry was read, a later poll may have delivered a change that the entry does not
    /// reflect.
    #[must_use]
    pub(super) fn confirmed(&self, hash: &KeyHash) -> Option<Moment> {
        match self.partition(hash).confirmed.load(Ordering::SeqCst) {
            0 => None,
            nanos => Some(Moment::from_nanos(nanos)),
        }
    }

    /// Returns the latest moment at which the backend is certain to have been in the state of `entry`, which
    /// has to meet the fences (rule 8). `confirmed` was [read](Self::confirmed) before the entry. `None` if
    /// there is no such moment.
    ///
    /// An entry that reflects changes that no poll has delivered yet counts from its own load alone, because
    /// those changes may be lost. A negative entry counts from its own load, too. It has no change that could
    /// be compared, and may reflect a deletion that is lost.
    #[must_use]
    pub(super) fn as_of(&self, hash: &KeyHash, entry: &Entry, confirmed: Option<Moment>) -> Option<Moment> {
        let is_ahead =
            entry.applied_revision.revision.get() > self.partition(hash).cursor.load(Ordering::SeqCst);
        if is_ahead || entry.kind() == EntryKind::Negative { entry.began } else { entry.began.max(confirmed) }
    }

    /// Returns the time since the last poll that found no further events was sent, for the partition that is
    /// furthest behind. `None` without a feed, before the first such poll, and while no epoch is followed.
    #[must_use]
    pub fn feed_age(&self) -> Option<Duration> {
        if self.epoch() == 0 {
            return None;
        }
        let oldest =
            self.partitions.iter().map(|partition| partition.confirmed.load(Ordering::SeqCst)).min()?;
        (oldest > 0).then(|| self.moment().since(Moment::from_nanos(oldest)))
    }

    /// Returns the number of fences.
    #[must_use]
    pub fn fences(&self) -> usize {
        self.partitions.iter().map(|partition| partition.lock().fences()).sum()
    }

    /// Returns the number of the current epoch. 0 while no epoch is followed.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Returns the state that a change which begins now is compared with after it was made.
    pub(crate) fn begin_change(&self) -> ChangeStart {
        let epoch = self.epoch();
        ChangeStart { at: self.moment(), epoch, largest_seen: self.largest_seen() }
    }

    /// Raises the fence of `hash` to `change`, which this replica made (rules 2 and 10). From now on nothing
    /// is served for `hash` that does not reflect it. `novelty` is relative to `start`. The caller has to evict
    /// entries *after* this call.
    pub(crate) fn apply_own(
        &self,
        start: &ChangeStart,
        hash: &KeyHash,
        change: ChangeId,
        novelty: Novelty,
    ) -> OwnChange {
        let number = partition_of(hash.as_bytes()[0], self.partitions.len());
        let made = self.partitions[number].change(|partition| {
            // A new epoch is read after the old one ended. If that has not happened yet, the new epoch will
            // contain this change.
            if start.epoch == 0 || self.epoch() != start.epoch {
                return Ok(OwnChange::OtherEpoch);
            }
            let Some(by_backend_revision) = &self.by_backend_revision else {
                let certainty = partition.check_own(start.largest_seen[number], change, novelty)?;
                partition.raise(*hash, Cause::Change, change);
                return Ok(OwnChange::Current(change, certainty));
            };
            lock(by_backend_revision).raise(*hash, Cause::Change, ChangeId::of_revision(change.revision));
            let next = ChangeId::of_revision(Revision::new(partition.cursor().revision.get() + 1));
            partition.raise(*hash, Cause::Change, next);
            partition.advance(next);
            Ok(OwnChange::Current(next, Certainty::Certain))
        });
        made.unwrap_or_else(|Rewound| {
            self.rewind();
            OwnChange::OtherEpoch
        })
    }

    fn largest_seen(&self) -> Vec<ChangeId> {
        self.partitions.iter().map(|partition| partition.lock().largest_seen()).collect()
    }

    /// Notes that a poll is sent.
    pub(super) fn begin_poll(&self) -> PollStart {
        PollStart { at: self.moment(), largest_seen: self.largest_seen() }
    }

    /// Applies an event of a poll (rule 7). The caller has to evict the key's entries afterwards.
    ///
    /// # Errors
    /// The event belongs to another epoch (rule 9).
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
        self.partition(&event.hash).change(|partition| partition.apply(event.hash, cause, event.change()))
    }

    /// Applies an event that can't be read. The caller has to clear the caches afterwards.
    ///
    /// # Errors
    /// The errors of [`apply`](Self::apply).
    pub(super) fn apply_unreadable(&self, event: &UnreadableEvent) -> Result<(), Rewound> {
        match self.partitions.get(usize::from(event.partition)) {
            Some(partition) => partition.change(|partition| partition.apply_unreadable(event.revision)),
            None => Err(Rewound),
        }
    }

    /// Advances the cursors to `position` (rule 7). All events before it were applied, and entries were
    /// evicted.
    pub(super) fn advance(&self, position: &FeedPosition) {
        for (number, partition) in (0..).zip(&self.partitions) {
            partition.change(|partition| partition.advance(position.last_change(number)));
        }
    }

    /// Confirms that the poll `sent` reached the end of the feed (rules 8 and 9). The partitions in
    /// `unanswered` were not reached.
    ///
    /// # Errors
    /// The feed ends before a change that was seen.
    pub(super) fn confirm(&self, sent: &PollStart, unanswered: &[u8]) -> Result<(), Rewound> {
        let answered = || {
            let partitions = (0..).zip(&self.partitions).zip(&sent.largest_seen);
            partitions.filter(|((number, _), _)| !unanswered.contains(number))
        };
        for ((_, partition), largest_seen) in answered() {
            partition.lock().check_end(*largest_seen)?;
        }
        for ((_, partition), _) in answered() {
            partition.confirmed.fetch_max(sent.at.as_nanos(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// Begins a new epoch with the newest events (rule 6). Entries of earlier epochs are not served any more.
    pub(super) fn start(&self, recent: &RecentChanges) {
        self.end_epoch();
        for (number, partition) in (0..).zip(&self.partitions) {
            partition.confirmed.store(0, Ordering::SeqCst);
            let position = recent.position.last_change(number);
            partition.change(|partition| partition.start(position));
        }
        for event in &recent.events {
            // All events belong to one epoch, so they can't contradict each other.
            let _ = self.apply(event);
        }
        for event in &recent.unreadable {
            let _ = self.apply_unreadable(event);
        }
        let number = self.last_epoch.fetch_add(1, Ordering::SeqCst) + 1;
        self.epoch.store(number, Ordering::SeqCst);
    }

    /// Ends the epoch, because the backend was rewound or events were pruned before they were read (rule 7).
    /// Nothing is served until the next [`start`](Self::start).
    pub(super) fn end_epoch(&self) {
        self.epoch.store(0, Ordering::SeqCst);
    }

    /// Ends the epoch and makes the follower restart (rule 10).
    fn rewind(&self) {
        self.end_epoch();
        self.rewound.notify_one();
    }

    /// Waits until something other than a poll detects that the backend was rewound.
    pub(super) async fn is_rewound(&self) {
        self.rewound.notified().await;
    }

    /// Returns the number of fences per partition, in a feed with this number of partitions. At startup, as many of
    /// the newest events are read.
    pub(super) fn fences_per_partition(partitions: u8) -> usize {
        FENCES / usize::from(partitions.max(1))
    }

    fn partition(&self, hash: &KeyHash) -> &SharedPartition {
        &self.partitions[partition_of(hash.as_bytes()[0], self.partitions.len())]
    }
}

impl fmt::Debug for Knowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knowledge").field("partitions", &self.partitions.len()).finish_non_exhaustive()
    }
}
