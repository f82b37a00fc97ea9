//! Batches of loads.
//!
//! A round trip to a backend costs more than a row, so under load many lookups share one. Each thread that
//! serves clients has its own queue. A batch leaves the thread and returns to it as a whole, which wakes two
//! threads once, instead of once per lookup. No load waits for others to join it. While fewer than
//! [`MAX_BATCHES`] batches of its thread are in flight, a load leaves with those that arrived in the same
//! turn of its runtime, alone if need be.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thread_local::ThreadLocal;
use tokio::runtime::Handle;
use tracing::Instrument as _;

use super::Tiers;
use super::flights::Load;

/// Maximum number of batches in flight per thread.
pub(super) const MAX_BATCHES: usize = 4;
/// Maximum number of loads per batch.
pub(super) const MAX_BATCH: usize = 64;

/// Queues of loads, one per thread.
pub(super) struct LoadQueue {
    tiers: Arc<Tiers>,
    /// The runtime that runs the batches.
    handle: Handle,
    threads: ThreadLocal<Arc<Mutex<ThreadQueue>>>,
}

/// The queue of a thread.
#[derive(Debug, Default)]
struct ThreadQueue {
    waiting: Vec<Load>,
    /// Batches that are in flight or scheduled.
    batches: usize,
    /// Whether a batch is scheduled. Loads that arrive before it leaves become part of it.
    is_scheduled: bool,
}

impl LoadQueue {
    pub(super) fn new(tiers: Arc<Tiers>, handle: Handle) -> Arc<Self> {
        Arc::new(Self { tiers, handle, threads: ThreadLocal::new() })
    }

    /// Queues `load` for one of the next batches. Must be called on a runtime.
    pub(super) fn push(self: &Arc<Self>, load: Load) {
        let queue = self.threads.get_or_default();
        lock(queue).waiting.push(load);
        self.schedule(queue);
    }

    /// Schedules a batch if loads are waiting and a slot is free.
    fn schedule(self: &Arc<Self>, queue: &Arc<Mutex<ThreadQueue>>) {
        if lock(queue).try_reserve_batch() {
            let slot = BatchSlot { queue: Arc::clone(queue), is_held: true };
            let batches = Arc::clone(self).run_batches(slot);
            // The span is that of the call that scheduled the first batch.
            tokio::spawn(batches.in_current_span());
        }
    }

    /// Runs batches until no load is waiting.
    async fn run_batches(self: Arc<Self>, mut slot: BatchSlot) {
        while let Some(batch) = slot.next() {
            // Schedule the remaining loads as another batch.
            self.schedule(&slot.queue);
            let tiers = Arc::clone(&self.tiers);
            let ran = self.handle.spawn(async move { tiers.run(batch).await }.in_current_span());
            // A panic, which is logged, only fails the loads of this batch, which are dropped.
            for (load, outcome) in ran.await.unwrap_or_default() {
                load.land(outcome);
            }
        }
    }
}

impl ThreadQueue {
    /// Reserves a slot for another batch. Returns whether it did. The caller then has to schedule the batch.
    /// Returns false if no batch is needed or no slot is free.
    fn try_reserve_batch(&mut self) -> bool {
        let is_needed = !self.is_scheduled && !self.waiting.is_empty() && self.batches < MAX_BATCHES;
        if is_needed {
            self.is_scheduled = true;
            self.batches += 1;
        }
        is_needed
    }
}

/// The slot of a batch in the queue of its thread.
struct BatchSlot {
    queue: Arc<Mutex<ThreadQueue>>,
    is_held: bool,
}

impl BatchSlot {
    /// Takes the loads of the next batch. If none is waiting, frees the slot at once and returns `None`. The
    /// next load then schedules a batch.
    fn next(&mut self) -> Option<Vec<Load>> {
        let mut queue = lock(&self.queue);
        queue.is_scheduled = false;
        let mut abandoned = Vec::new();
        let mut batch = Vec::new();
        while batch.len() < MAX_BATCH && !queue.waiting.is_empty() {
            let next = queue.waiting.len().min(MAX_BATCH - batch.len());
            let (gone, waited): (Vec<_>, Vec<_>) = queue.waiting.drain(..next).partition(Load::is_abandoned);
            abandoned.extend(gone);
            batch.extend(waited);
        }
        if batch.is_empty() {
            queue.batches -= 1;
            self.is_held = false;
        }
        drop(queue);
        (!batch.is_empty()).then_some(batch)
    }
}

/// Frees a slot that is still held because its runtime shut down. If it was the last one, the thread's
/// waiting loads are dropped.
impl Drop for BatchSlot {
    fn drop(&mut self) {
        if self.is_held {
            let mut queue = lock(&self.queue);
            queue.is_scheduled = false;
            queue.batches -= 1;
            let lost = if queue.batches == 0 { std::mem::take(&mut queue.waiting) } else { Vec::new() };
            drop(queue);
            drop(lost);
        }
    }
}

// A poisoned lock is usable, because code that holds a queue can't panic.
fn lock(queue: &Mutex<ThreadQueue>) -> MutexGuard<'_, ThreadQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for LoadQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadQueue").finish_non_exhaustive()
    }
}
