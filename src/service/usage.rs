//! When keys were last used: noted in memory on the hot path, written in batches beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{KeyId, Timestamp};
use crate::repository::{Result, UsageStore};
use crate::telemetry::error_chain;

/// How many keys can wait to be written: about 4 MB. The uses of further keys are lost until the next flush.
const CAPACITY: usize = 100_000;

/// Keeps the latest use of each key until it is flushed. Losing some of it harms no validation.
#[derive(Debug)]
pub struct UsageRecorder {
    store: Option<Arc<dyn UsageStore>>,
    pending: Mutex<HashMap<KeyId, Timestamp>>,
}

impl UsageRecorder {
    /// Writes to `store`. Without one, uses are not recorded.
    #[must_use]
    pub fn new(store: Option<Arc<dyn UsageStore>>) -> Self {
        Self { store, pending: Mutex::default() }
    }

    /// Notes that the key was used: a moment under a lock that is never held across I/O. It can't fail.
    pub fn note(&self, id: KeyId, used_at: Timestamp) {
        if self.store.is_none() {
            return;
        }
        let mut pending = self.pending();
        if let Some(last) = pending.get_mut(&id) {
            *last = used_at.max(*last);
        } else if pending.len() < CAPACITY {
            pending.insert(id, used_at);
        }
    }

    /// How many keys' uses wait to be written.
    pub fn waiting(&self) -> usize {
        self.pending().len()
    }

    /// Writes what was noted since the last time.
    ///
    /// # Errors
    /// The store did not take it. It is kept for the next flush.
    pub async fn flush(&self) -> Result<()> {
        let usage: Vec<_> = std::mem::take(&mut *self.pending()).into_iter().collect();
        let Some(store) = self.store.as_ref().filter(|_| !usage.is_empty()) else { return Ok(()) };
        let outcome = store.record_usage(&usage).await;
        if outcome.is_err() {
            for (id, used_at) in usage {
                self.note(id, used_at);
            }
        }
        outcome
    }

    /// Flushes every `interval` until `stop` completes, and then once more. A flush that has begun is never broken off.
    /// A failure is logged when it begins and when it ends.
    pub async fn flush_until(&self, interval: Duration, stop: impl Future<Output = ()>) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_failing = false;
        let mut is_stopping = false;
        tokio::pin!(stop);
        while !is_stopping {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut stop => is_stopping = true,
            }
            let outcome = self.flush().await;
            match &outcome {
                Ok(()) if is_failing => tracing::info!("the last use of keys is recorded again"),
                Err(error) if !is_failing || is_stopping => {
                    tracing::warn!(error = %error_chain(error), "the last use of keys can't be recorded");
                }
                Ok(()) | Err(_) => {}
            }
            is_failing = outcome.is_err();
        }
    }

    // A poisoned lock is taken over: no change of the map can panic half-way.
    fn pending(&self) -> MutexGuard<'_, HashMap<KeyId, Timestamp>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
