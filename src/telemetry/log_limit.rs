//! Limits log entries that clients can cause at will.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{BootClock, Moment, Stopwatch as _};

/// Admits the first entries of each period, and counts the others.
#[derive(Debug)]
pub(crate) struct LogLimit {
    period: Duration,
    max: u64,
    /// Number of the current period.
    current: AtomicU64,
    written: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    /// Creates a limit of ten entries per second.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self::per(Duration::from_secs(1), 10)
    }

    /// Creates a limit of `max` entries per `period`.
    #[must_use]
    pub(crate) const fn per(period: Duration, max: u64) -> Self {
        Self {
            period,
            max,
            current: AtomicU64::new(0),
            written: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Returns the number of entries that were suppressed since the last admitted one, or `None` if an entry
    /// may not be written now.
    pub(crate) fn admit(&self) -> Option<u64> {
        self.admit_at(BootClock.moment().since(Moment::START))
    }

    fn admit_at(&self, now: Duration) -> Option<u64> {
        let period = u64::try_from(now.as_nanos() / self.period.as_nanos().max(1)).unwrap_or(u64::MAX);
        // Threads that race at the beginning of a period may write an extra entry, which is harmless.
        if self.current.swap(period, Ordering::Relaxed) != period {
            self.written.store(0, Ordering::Relaxed);
        }
        if self.written.fetch_add(1, Ordering::Relaxed) < self.max {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_above_the_limit_are_suppressed_and_counted() {
        let limit = LogLimit::new();
        let admitted = |seconds| {
            (0..25).filter_map(|_| limit.admit_at(Duration::from_secs(seconds))).collect::<Vec<_>>()
        };
        assert_eq!(admitted(1), [0; 10]);
        assert_eq!(admitted(2), [15, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
