//! Batches of loads.
//!
//! A round trip to a backend costs more than a row, so under load many lookups share one. Each thread that
//! serves clients has its own queue. A batch leaves the thread and returns to it as a whole, which wakes two
//! threads once, instead of once per lookup. No load waits for others to join it. While fewer than
//! [`MAX_BATCHES`] batches of its thread are in flight, a load leaves with those that arrived in the same
//! turn of its runtime, alone if need be.
//!
//! Calls of other threads can join the loads of a thread, and must get their outcomes even if that thread's
//! runtime shuts down. So a batch in flight, which runs on the runtime of the backend, lands there if its
//! thread does not take it back, and loads that are still queued are run there.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thread_local::ThreadLocal;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span};

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
            let slot = BatchSlot { loads: Arc::clone(self), queue: Arc::clone(queue), is_held: true };
            // Without a span, because the task outlives the call that scheduled the first batch.
            tokio::spawn(slot.run_batches());
        }
    }

    /// Runs a batch on the runtime of the backend, in the span of its first load. It completes even if the
    /// returned handle is dropped.
    fn run(&self, batch: Vec<Load>) -> JoinHandle<Vec<Load>> {
        let tiers = Arc::clone(&self.tiers);
        let span = batch.first().map_or_else(Span::none, |load| load.span.clone());
        self.handle.spawn(async move { tiers.run(batch).await }.instrument(span))
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

    /// Takes the loads of the next batch, and those before and among them that no call waits for any more.
    fn take_batch(&mut self) -> (Vec<Load>, Vec<Load>) {
        let (mut batch, mut abandoned) = (Vec::new(), Vec::new());
        while batch.len() < MAX_BATCH && !self.waiting.is_empty() {
            let next = self.waiting.len().min(MAX_BATCH - batch.len());
            let (gone, waited): (Vec<_>, Vec<_>) = self.waiting.drain(..next).partition(Load::is_abandoned);
            abandoned.extend(gone);
            batch.extend(waited);
        }
        (batch, abandoned)
    }
}

/// The slot of a batch in the queue of its thread.
struct BatchSlot {
    loads: Arc<LoadQueue>,
    queue: Arc<Mutex<ThreadQueue>>,
    is_held: bool,
}

impl BatchSlot {
    /// Runs batches until no load is waiting.
    async fn run_batches(mut self) {
        while let Some(batch) = self.next() {
            // Schedule the remaining loads as another batch.
            self.loads.schedule(&self.queue);
            // The loads land when they are dropped: on this thread, or on the runtime of the backend if this
            // future is dropped first. A panic, which is logged, only fails the loads of this batch.
            drop(self.loads.run(batch).await);
        }
    }

    /// Takes the loads of the next batch. If none is waiting, frees the slot at once and returns `None`. The
    /// next load then schedules a batch.
    fn next(&mut self) -> Option<Vec<Load>> {
        let mut queue = lock(&self.queue);
        queue.is_scheduled = false;
        let (batch, abandoned) = queue.take_batch();
        if batch.is_empty() {
            queue.batches -= 1;
            self.is_held = false;
        }
        drop(queue);
        drop(abandoned);
        (!batch.is_empty()).then_some(batch)
    }
}

/// Frees a slot that is still held because its runtime shut down. If it was the last one, the thread will run no
/// more batches, so the runtime of the backend runs its waiting loads.
impl Drop for BatchSlot {
    fn drop(&mut self) {
        if self.is_held {
            let mut queue = lock(&self.queue);
            queue.is_scheduled = false;
            queue.batches -= 1;
            let mut batches = Vec::new();
            while queue.batches == 0 && !queue.waiting.is_empty() {
                batches.push(queue.take_batch());
            }
            drop(queue);
            for (batch, _abandoned) in batches {
                // Nobody takes the batch back, so it lands on the runtime of the backend.
                drop(self.loads.run(batch));
            }
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
