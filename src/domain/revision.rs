//! The number of a change.

use std::fmt;

/// Orders the changes of one key: each draws a larger one, also after the key was deleted and made again.
///
/// It is the key's etag at the same time. Revisions of different keys need not be comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// What a key has before a repository gave it a revision.
    pub const NONE: Self = Self(0);
    /// Larger than any that is drawn.
    pub const MAX: Self = Self(i64::MAX);

    /// A revision that was stored.
    #[must_use]
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
