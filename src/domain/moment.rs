//! Monotonic time, for measuring ages.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An instant in nanoseconds since the start of this machine. Moments of different machines, or from before
/// and after a restart, are not comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The start of the machine.
    pub const START: Self = Self(0);
    /// The largest moment. It is never reached.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns the moment that is `nanos` nanoseconds after the start of the machine.
    #[must_use]
    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the number of nanoseconds since the start of the machine.
    #[must_use]
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the moment that is `duration` later, at most [`Moment::NEVER`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// Returns the moment that is `duration` earlier, at least [`Moment::START`].
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// Returns the time from `earlier` to this moment. Zero if `earlier` is later than this moment.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A source of the current [`Moment`]. Unlike a [`Clock`](super::Clock), a stopwatch can't be set and never
/// goes back. It also advances while the machine is suspended.
pub trait Stopwatch: Send + Sync + Debug {
    /// Returns the current moment.
    fn moment(&self) -> Moment;
}

/// The operating system's `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Stopwatch for BootClock {
    fn moment(&self) -> Moment {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        let below = Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
        Moment::START.after(seconds + below)
    }
}

/// A stopwatch that only moves when it is advanced. For tests.
#[derive(Debug, Default)]
pub struct ManualStopwatch(AtomicU64);

impl ManualStopwatch {
    /// Moves the stopwatch forward by `by`.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(nanos(by), Ordering::SeqCst);
    }
}

impl Stopwatch for ManualStopwatch {
    fn moment(&self) -> Moment {
        Moment(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_leave_the_range() {
        let moment = Moment::START.after(Duration::from_secs(1));
        assert_eq!(moment.before(Duration::from_secs(2)), Moment::START);
        assert_eq!(moment.after(Duration::MAX), Moment::NEVER);
        assert_eq!(Moment::START.since(moment), Duration::ZERO);
        assert_eq!(moment.since(Moment::START), Duration::from_secs(1));
    }

    #[test]
    fn the_boot_clock_is_monotonic() {
        let first = BootClock.moment();
        assert!(first > Moment::START);
        assert!(BootClock.moment() >= first);
    }
}
