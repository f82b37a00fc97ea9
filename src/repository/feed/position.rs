//! Positions in the change feed.

use std::collections::BTreeMap;

use crate::domain::{ChangeId, Revision};

/// A position in the change feed, with one cursor per partition. Positions are only valid for the backend
/// that returned them.
///
/// A backend that does not distribute its keys over partitions has only partition 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition(BTreeMap<u8, Cursor>);

/// Encoded length of a [`Cursor`] in bytes: the partition, the variant, and two numbers of 8 bytes.
const CURSOR_BYTES: usize = 18;
/// The variant of [`Cursor::Event`].
const EVENT: u8 = 1;
/// The variant of [`Cursor::Start`].
const START: u8 = 2;

impl Cursor {
    /// Returns whether all events after a [`Cursor::Start`] with `missing` are still stored. This applies to
    /// backends with one counter for all events. `first` is the oldest stored event, and `head` is the
    /// revision of the newest event ever.
    pub(in crate::repository) fn is_whole_after(
        missing: u64,
        first: Option<Revision>,
        head: Revision,
    ) -> bool {
        let expected = i64::try_from(missing).ok().map(Revision::new);
        match first {
            Some(first) => expected.is_some_and(|missing| first.get() - 1 <= missing.get()),
            None => expected == Some(head),
        }
    }
}

/// The cursor in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::repository) enum Cursor {
    /// The cursor is after this event.
    Event { revision: Revision, nonce: u64 },
    /// The cursor is before all events that were stored when the partition was first read. `missing` events
    /// had been trimmed by then. In a backend with one counter for all events, that is also the revision of
    /// the last of them.
    Start { missing: u64 },
}

impl Cursor {
    fn of(change: ChangeId) -> Self {
        Self::Event { revision: change.revision, nonce: change.nonce }
    }

    /// Returns whether `change` may be the event of this cursor. An event that can't be read has no nonce to
    /// compare.
    pub(in crate::repository) fn is(self, change: ChangeId) -> bool {
        match self {
            Self::Event { revision, nonce } => {
                revision == change.revision && !change.contradicts(ChangeId::new(revision, nonce))
            }
            Self::Start { .. } => false,
        }
    }
}

impl FeedPosition {
    /// Returns the position before all events ever made.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// Returns the position after `change`, in a feed with one partition.
    #[must_use]
    pub fn of(change: ChangeId) -> Self {
        Self(BTreeMap::from([(0, Cursor::of(change))]))
    }

    /// Encodes the position as bytes, for readers that continue later.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (&partition, cursor) in &self.0 {
            let (kind, first, second) = match *cursor {
                Cursor::Event { revision, nonce } => {
                    (EVENT, revision.get().to_be_bytes(), nonce.to_be_bytes())
                }
                Cursor::Start { missing } => (START, missing.to_be_bytes(), [0; 8]),
            };
            bytes.extend([partition, kind]);
            bytes.extend(first);
            bytes.extend(second);
        }
        bytes
    }

    /// Decodes bytes that [`to_bytes`](Self::to_bytes) returned. `None` if the encoding is invalid.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entries, []) = bytes.as_chunks::<CURSOR_BYTES>() else { return None };
        let mut cursors = BTreeMap::new();
        for [partition, kind, rest @ ..] in entries {
            let (first, second) = rest.split_first_chunk::<8>()?;
            let cursor = match *kind {
                EVENT => Cursor::Event {
                    revision: Revision::new(i64::from_be_bytes(*first)),
                    nonce: u64::from_be_bytes(second.try_into().ok()?),
                },
                START => Cursor::Start { missing: u64::from_be_bytes(*first) },
                _ => return None,
            };
            let is_possible = !matches!(cursor, Cursor::Event { revision, .. } if revision < Revision::NONE);
            if !is_possible || cursors.insert(*partition, cursor).is_some() {
                return None;
            }
        }
        Some(Self(cursors))
    }

    /// Returns the last change of `partition` before this position. All events up to it are before
    /// this position. [`ChangeId::NONE`] if the partition was not read yet.
    #[must_use]
    pub fn last_change(&self, partition: u8) -> ChangeId {
        match self.cursor(partition) {
            Cursor::Event { revision, nonce } => ChangeId::new(revision, nonce),
            Cursor::Start { .. } => ChangeId::NONE,
        }
    }

    /// Returns the position after all events up to `head`, none of which is stored any more, in a backend
    /// with one partition.
    pub(super) fn after_missing(head: Revision) -> Self {
        Self(BTreeMap::from([(0, Cursor::Start { missing: u64::try_from(head.get()).unwrap_or(0) })]))
    }

    /// Returns the cursor in `partition`.
    pub(in crate::repository) fn cursor(&self, partition: u8) -> Cursor {
        self.0.get(&partition).copied().unwrap_or(Cursor::Start { missing: 0 })
    }

    /// Sets the cursor in `partition` before the oldest stored event. `missing` events were trimmed
    /// before.
    pub(in crate::repository) fn start(&mut self, partition: u8, missing: u64) {
        self.0.insert(partition, Cursor::Start { missing });
    }

    /// Moves the cursor in `partition` after `change`.
    pub fn advance(&mut self, partition: u8, change: ChangeId) {
        self.0.insert(partition, Cursor::of(change));
    }

    /// Moves the cursor of each partition to the one in `other` if that is further.
    pub(crate) fn advance_to(&mut self, other: &Self) {
        for (&partition, &cursor) in &other.0 {
            let is_further = match (self.cursor(partition), cursor) {
                (Cursor::Event { revision: own, .. }, Cursor::Event { revision, .. }) => revision > own,
                (Cursor::Start { .. }, Cursor::Event { .. }) => true,
                (_, Cursor::Start { .. }) => !self.0.contains_key(&partition),
            };
            if is_further {
                self.0.insert(partition, cursor);
            }
        }
    }

    /// Returns whether the event with `revision` in `partition` lies before the position.
    pub(crate) fn includes(&self, partition: u8, revision: Revision) -> bool {
        matches!(self.cursor(partition), Cursor::Event { revision: last, .. } if last >= revision)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change(revision: i64) -> ChangeId {
        ChangeId::new(Revision::new(revision), 7)
    }

    #[test]
    fn a_position_includes_the_events_of_its_partition_up_to_its_own() {
        let mut position = FeedPosition::of(change(5));
        position.start(1, 0);
        for (partition, revision, expected) in
            [(0, 4, true), (0, 5, true), (0, 6, false), (1, 1, false), (2, 1, false)]
        {
            assert_eq!(
                position.includes(partition, Revision::new(revision)),
                expected,
                "{partition} {revision}"
            );
        }
    }

    #[test]
    fn a_position_advances_in_each_partition_and_never_goes_back() {
        let mut position = FeedPosition::of(change(5));
        position.start(1, 3);
        let mut other = FeedPosition::of(change(4));
        other.advance(1, change(9));
        other.start(2, 1);
        position.advance_to(&other);
        let mut expected = FeedPosition::of(change(5));
        expected.advance(1, change(9));
        expected.start(2, 1);
        assert_eq!(position, expected);
        // A partition that `other` has not read yet does not move back.
        let mut begun = FeedPosition::beginning();
        begun.start(1, 0);
        position.advance_to(&begun);
        assert_eq!(position, expected);
    }

    proptest! {
        #[test]
        fn positions_survive_the_round_trip(cursors in prop::collection::btree_map(any::<u8>(), (any::<bool>(), 0..=i64::MAX, any::<u64>()), 0..70)) {
            let position = FeedPosition(cursors.into_iter().map(|(partition, (is_event, revision, number))| {
                let revision = Revision::new(revision);
                let cursor = if is_event { Cursor::Event { revision, nonce: number } } else { Cursor::Start { missing: number } };
                (partition, cursor)
            }).collect());
            prop_assert_eq!(FeedPosition::from_bytes(&position.to_bytes()), Some(position));
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(position) = FeedPosition::from_bytes(&bytes) {
                prop_assert_eq!(FeedPosition::from_bytes(&position.to_bytes()), Some(position));
            }
        }
    }
}
