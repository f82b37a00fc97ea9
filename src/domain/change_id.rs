//! The identity of a change.

use super::{Entropy, EntropyError, Revision};

/// Identifies one change of a backend by its revision and a random nonce.
///
/// A revision alone is not sufficient. After a failover that lost changes, or in a restored backup, the
/// revisions of the lost changes are used again. The changes of two epochs have different
/// nonces at every revision from the first lost change on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeId {
    /// The revision that the change was assigned.
    pub revision: Revision,
    /// The nonce that was drawn for the change. [`ChangeId::UNKNOWN_NONCE`] if it was not stored, as in
    /// releases before 0.2.
    pub nonce: u64,
}

impl ChangeId {
    /// Represents an unknown nonce. It is never drawn.
    pub const UNKNOWN_NONCE: u64 = 0;
    /// The smallest identity. It precedes every change.
    pub const NONE: Self = Self { revision: Revision::NONE, nonce: Self::UNKNOWN_NONCE };

    /// Returns the identity of the change with this revision and nonce.
    #[must_use]
    pub fn new(revision: Revision, nonce: u64) -> Self {
        Self { revision, nonce }
    }

    /// Returns the identity of a change of which only the revision is known.
    #[must_use]
    pub fn of_revision(revision: Revision) -> Self {
        Self { revision, nonce: Self::UNKNOWN_NONCE }
    }

    /// Returns whether both changes can't belong to one epoch of the backend, because they have the same
    /// revision and different nonces. An unknown nonce contradicts none.
    #[must_use]
    pub fn contradicts(self, other: Self) -> bool {
        self.revision == other.revision
            && self.nonce != other.nonce
            && self.nonce != Self::UNKNOWN_NONCE
            && other.nonce != Self::UNKNOWN_NONCE
    }

    /// Returns the later of the two changes, or `self` if they have the same revision.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.revision > self.revision { other } else { self }
    }

    /// Draws a nonce. It never equals [`ChangeId::UNKNOWN_NONCE`].
    ///
    /// # Errors
    /// The operating system returned no random bytes.
    pub fn draw_nonce(entropy: &dyn Entropy) -> Result<u64, EntropyError> {
        let mut nonce = [0; 8];
        entropy.fill(&mut nonce)?;
        Ok(u64::from_ne_bytes(nonce).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: i64, nonce: u64) -> ChangeId {
        ChangeId::new(Revision::new(revision), nonce)
    }

    #[test]
    fn changes_with_one_revision_and_two_nonces_contradict_each_other() {
        assert!(change(3, 1).contradicts(change(3, 2)));
        for (one, other) in [
            (change(3, 1), change(3, 1)),
            (change(3, 1), change(4, 2)),
            (change(3, 1), change(3, ChangeId::UNKNOWN_NONCE)),
            (change(3, ChangeId::UNKNOWN_NONCE), change(3, 2)),
        ] {
            assert!(!one.contradicts(other), "{one:?} {other:?}");
        }
    }

    #[test]
    fn of_two_changes_with_one_revision_the_first_is_kept() {
        assert_eq!(change(3, 1).later(change(3, 2)), change(3, 1));
        assert_eq!(change(3, 1).later(change(4, 2)), change(4, 2));
    }
}
