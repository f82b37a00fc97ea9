//! Revision numbers of changes.

use std::fmt;

/// Orders the changes of one key. Each change is assigned a larger revision than the one before, even if the
/// key was deleted and created again in between.
///
/// The revision is also the key's etag. Revisions of different keys need not be comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// The revision of a key before the repository assigned one.
    pub const NONE: Self = Self(0);
    /// The upper bound. It is never assigned.
    pub const MAX: Self = Self(i64::MAX);

    /// Returns the revision with this number, for example one that was stored.
    #[must_use]
    pub fn new(number: i64) -> Self {
        Self(number)
    }

    /// Returns the number.
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
