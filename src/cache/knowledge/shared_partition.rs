//! The state of one partition of the feed, shared between threads.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cache::protocol::Partition;
use crate::domain::KeyHash;

/// The state of one partition of the feed.
pub(super) struct SharedPartition {
    partition: Mutex<Partition<KeyHash>>,
    /// The moment of the last poll whose events were all applied, in nanoseconds. 0 if there was none.
    pub(super) confirmed: AtomicU64,
    /// The revision of the partition's cursor, readable without a lock.
    pub(super) cursor: AtomicI64,
}

impl SharedPartition {
    /// Creates a partition that was not read yet: see [`Partition::new`].
    pub(super) fn new(capacity: usize, remembered: usize) -> Self {
        Self {
            partition: Mutex::new(Partition::new(capacity, remembered)),
            confirmed: AtomicU64::new(0),
            cursor: AtomicI64::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Partition<KeyHash>> {
        lock(&self.partition)
    }

    /// Changes the state, and publishes its cursor.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Partition<KeyHash>) -> T) -> T {
        let mut partition = self.lock();
        let changed = change(&mut partition);
        self.cursor.store(partition.cursor().revision.get(), Ordering::SeqCst);
        changed
    }
}

// A poisoned lock is usable, because changes of a partition can't panic halfway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
