//! Instants with the precision of the domain.

use std::time::Duration;

/// An instant in UTC, in whole microseconds since the Unix epoch. It is the same on every backend.
///
/// The range is that of `google.protobuf.Timestamp`: the years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_135_596_800 * MICROS_PER_SECOND);
    /// The last microsecond of the year 9999.
    pub const MAX: Self = Self(253_402_300_800 * MICROS_PER_SECOND - 1);

    /// Returns the instant at `micros` microseconds since the Unix epoch. `None` if it is outside of the
    /// range.
    #[must_use]
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&micros).then_some(Self(micros))
    }

    /// Returns the number of microseconds since the Unix epoch.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the number of whole milliseconds since the Unix epoch. 0 for instants before it.
    #[must_use]
    pub fn as_unix_millis(self) -> u64 {
        u64::try_from(self.0 / 1_000).unwrap_or(0)
    }

    /// Returns the instant that is `duration` earlier, in whole microseconds. `None` if it is before
    /// [`Timestamp::MIN`].
    #[must_use]
    pub fn checked_sub(self, duration: Duration) -> Option<Self> {
        let micros = i64::try_from(duration.as_micros()).ok()?;
        Self::from_micros(self.as_micros().checked_sub(micros)?)
    }

    /// Returns the instant that is `duration` later, in whole microseconds. `None` if it is after
    /// [`Timestamp::MAX`].
    #[must_use]
    pub fn checked_add(self, duration: Duration) -> Option<Self> {
        let micros = i64::try_from(duration.as_micros()).ok()?;
        Self::from_micros(self.0.checked_add(micros)?)
    }

    /// Returns the time from `earlier` to this instant. Zero if `earlier` is later than this instant.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

const MICROS_PER_SECOND: i64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_that_of_the_protobuf_timestamp() {
        assert_eq!(Timestamp::from_micros(Timestamp::MAX.as_micros()), Some(Timestamp::MAX));
        assert_eq!(Timestamp::from_micros(Timestamp::MAX.as_micros() + 1), None);
        assert_eq!(Timestamp::from_micros(Timestamp::MIN.as_micros() - 1), None);
    }

    #[test]
    fn sums_beyond_the_range_are_rejected() {
        assert_eq!(Timestamp::MAX.checked_add(Duration::from_micros(1)), None);
        assert_eq!(Timestamp::MIN.checked_add(Duration::MAX), None);
    }

    #[test]
    fn time_since_a_later_time_is_zero() {
        let early = Timestamp(1);
        let late = Timestamp(5);
        assert_eq!(late.since(early), Duration::from_micros(4));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
