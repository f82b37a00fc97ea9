//! Records when keys were last used. Uses are collected in memory on the hot path, and written in batches in
//! the background.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::{KeyId, Timestamp};
use crate::repository::{Result, UsageStore};
use crate::telemetry::error_chain;

/// Maximum number of keys whose use waits to be written, about 4 MB. The uses of further keys are lost until
/// the next flush.
const CAPACITY: usize = 100_000;

/// Keeps the latest use of each key until it is flushed. Validations don't depend on it, so lost uses are
/// harmless.
#[derive(Debug)]
pub struct UsageRecorder {
    store: Option<Arc<dyn UsageStore>>,
    pending: Mutex<HashMap<KeyId, Timestamp>>,
}

impl UsageRecorder {
    /// Creates a recorder that writes to `store`. Without a store, uses are not recorded.
    #[must_use]
    pub fn new(store: Option<Arc<dyn UsageStore>>) -> Self {
        Self { store, pending: Mutex::default() }
    }

    /// Records that the key was used. It never fails, and holds a lock only briefly, never across I/O.
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

    /// Returns the number of keys whose use waits to be written.
    pub fn waiting(&self) -> usize {
        self.pending().len()
    }

    /// Writes the uses since the last flush.
    ///
    /// # Errors
    /// Returns an error if the backend did not store the uses. They are kept for the next flush.
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

    /// Flushes every `interval` until `stop` completes, and then once more. `stop` does not cancel a running
    /// flush. Dropping this future does, and loses the uses that it was writing. A failure is logged when it
    /// begins and when it ends.
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
                Ok(()) if is_failing => tracing::info!("last uses of keys are written again"),
                Err(error) if !is_failing || is_stopping => {
                    tracing::warn!(error = %error_chain(error), "last uses of keys can't be written");
                }
                Ok(()) | Err(_) => {}
            }
            is_failing = outcome.is_err();
        }
    }

    // The lock is used even if it is poisoned, because no change of the map can panic half-way.
    fn pending(&self) -> MutexGuard<'_, HashMap<KeyId, Timestamp>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
