//! Limits the unread responses of all connections together.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use super::ConnectionLimiter;
use crate::domain::Moment;
use crate::server::connection::state::ConnectionState;
use crate::telemetry::ConnectionClosure;

/// Number of bytes of unread responses above which the server closes connections whose clients don't read.
pub(super) const MAX_STALLED_BYTES: usize = 8 * 1024 * 1024;
/// Number of bytes of unread responses above which the server closes connections even if their clients read.
pub(super) const MAX_UNREAD_BYTES: usize = 64 * 1024 * 1024;
/// Time without reading any part of a response after which a client counts as stalled.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(1);

impl ConnectionLimiter {
    /// Counts `bytes` of a response. Above the limits, closes connections whose clients don't read, or read
    /// too little.
    pub(in crate::server::connection) fn add_unread(&self, bytes: usize) {
        let all = self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if all > MAX_UNREAD_BYTES {
            self.close_unread(MAX_UNREAD_BYTES, None);
        }
        if all > MAX_STALLED_BYTES
            && let Ok(runtime) = Handle::try_current()
            && !self.is_sweeping.swap(true, Ordering::Relaxed)
        {
            runtime.spawn(Self::sweep(Weak::clone(&self.this)));
        }
    }

    /// Closes connections of stalled clients until the unread responses are within the limit.
    async fn sweep(limiter: Weak<Self>) {
        loop {
            tokio::time::sleep(STALLED_AFTER / 4).await;
            let Some(limiter) = limiter.upgrade() else { return };
            limiter.close_unread(MAX_STALLED_BYTES, Some(limiter.stopwatch.moment()));
            if limiter.unread.load(Ordering::Relaxed) <= MAX_STALLED_BYTES {
                limiter.is_sweeping.store(false, Ordering::Relaxed);
                return;
            }
        }
    }

    pub(in crate::server::connection) fn remove_unread(&self, bytes: usize) {
        self.unread.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Closes connections until the unread responses of the others have at most `max` bytes. If `now` is set,
    /// closes only connections of clients that have read nothing for a while.
    pub(super) fn close_unread(&self, max: usize, now: Option<Moment>) {
        let mut connections = self.lock();
        let is_late =
            |state: &ConnectionState| now.is_none_or(|now| now.since(state.taken_at()) >= STALLED_AFTER);
        let unread = |state: &ConnectionState| if is_late(state) { state.unread_bytes() } else { 0 };
        while connections.states.values().map(|state| state.unread_bytes()).sum::<usize>() > max {
            if !connections.close_largest(ConnectionClosure::UnreadResponses, None, unread) {
                return;
            }
        }
    }
}
