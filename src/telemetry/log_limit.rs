//! Fewer lines of a kind that others can cause at will.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{BootClock, Moment, Stopwatch as _};

/// How many lines a second are written.
const MAX_PER_SECOND: u64 = 10;

/// Lets the first lines of each second through, and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    second: AtomicU64,
    lines: AtomicU64,
    left_out: AtomicU64,
}

impl LogLimit {
    /// One for a kind of lines.
    #[must_use]
    pub const fn new() -> Self {
        Self { second: AtomicU64::new(0), lines: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Whether a line may be written now, and how many were left out since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(BootClock.moment().since(Moment::START))
    }

    fn admit_at(&self, now: Duration) -> Option<u64> {
        // Threads that meet at the turn of a second write a line too many: this is no bound on anything but noise.
        if self.second.swap(now.as_secs(), Ordering::Relaxed) != now.as_secs() {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < MAX_PER_SECOND {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_lines_some_are_written_and_the_others_counted() {
        let limit = LogLimit::new();
        let admitted = |seconds| {
            (0..25).filter_map(|_| limit.admit_at(Duration::from_secs(seconds))).collect::<Vec<_>>()
        };
        assert_eq!(admitted(1), [0; 10]);
        assert_eq!(admitted(2), [15, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
