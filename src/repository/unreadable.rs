//! Records and events that can't be read: skipped, counted and logged.

use std::sync::atomic::{AtomicU64, Ordering};

use super::RepositoryError;
use crate::domain::{KeyId, Revision};
use crate::telemetry::{LogLimit, error_chain};

static KEYS: AtomicU64 = AtomicU64::new(0);
static EVENTS: AtomicU64 = AtomicU64::new(0);

/// Returns how often a record was skipped because it can't be read, and how often an event was.
#[must_use]
pub fn unreadable_counts() -> (u64, u64) {
    (KEYS.load(Ordering::Relaxed), EVENTS.load(Ordering::Relaxed))
}

/// Counts and logs a record that a listing skipped.
pub(super) fn skipped_key(id: KeyId, error: &RepositoryError) {
    static LIMIT: LogLimit = LogLimit::new();
    KEYS.fetch_add(1, Ordering::Relaxed);
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(key = %id, error = %error_chain(error), left_out, "a stored key can't be read and was skipped");
    }
}

/// Counts and logs an event that was skipped.
pub(super) fn skipped_event(revision: Revision, error: &RepositoryError) {
    static LIMIT: LogLimit = LogLimit::new();
    EVENTS.fetch_add(1, Ordering::Relaxed);
    if let Some(left_out) = LIMIT.admit() {
        tracing::error!(
            %revision,
            error = %error_chain(error),
            left_out,
            "a stored event can't be read and was skipped: all keys of its part are loaded anew"
        );
    }
}
