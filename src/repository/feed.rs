//! Positions in the audit trail and in the change feed.

use std::collections::BTreeMap;

use super::PagePosition;
use crate::domain::{ApiKey, ChangeId, KeyEvent, KeyId, OwnerId, Revision};

/// Selects a page of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPageRequest {
    /// Selects events of this key. `None` selects events of all keys.
    pub key_id: Option<KeyId>,
    /// Selects events of this owner's keys. `None` selects events of all owners.
    pub owner_id: Option<OwnerId>,
    /// The position after which the page begins. `None` begins with the newest event.
    pub after: Option<EventPosition>,
    /// Maximum number of events.
    pub limit: usize,
}

/// A position in the audit trail, directly after this event. The event need not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPosition {
    /// The event's revision.
    pub revision: Revision,
    /// The id of the event's key.
    pub key_id: KeyId,
}

impl EventPosition {
    /// Returns the position directly after `event`.
    #[must_use]
    pub fn of(event: &KeyEvent) -> Self {
        Self { revision: event.revision, key_id: event.key_id }
    }
}

/// A position in the change feed, with one cursor per partition. Positions are only valid for the backend
/// that returned them.
///
/// A backend that does not distribute its keys over partitions has only partition 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition(BTreeMap<u8, Mark>);

/// Returns the partition of a key whose hash begins with `byte`, in a feed with `parts` partitions: see
/// [`ChangeFeed::partitions`](super::ChangeFeed::partitions).
pub(crate) fn part_of(byte: u8, parts: usize) -> usize {
    usize::from(byte) % parts
}

/// Encoded length of a [`Mark`] in bytes: the partition, the variant, and two numbers of 8 bytes.
const MARK_BYTES: usize = 18;
const MARK_EVENT: u8 = 1;
const MARK_START: u8 = 2;

impl Mark {
    /// Returns whether all events after a [`Mark::Start`] with `missing` are still stored. This applies to
    /// backends with one counter for all events. `first` is the oldest stored event, and `head` is the
    /// revision of the newest event ever.
    pub(super) fn is_whole_after(missing: u64, first: Option<Revision>, head: Revision) -> bool {
        let expected = i64::try_from(missing).ok().map(Revision::new);
        match first {
            Some(first) => expected.is_some_and(|missing| first.get() - 1 <= missing.get()),
            None => expected == Some(head),
        }
    }
}

/// The cursor in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// The cursor is after this event.
    Event { revision: Revision, nonce: u64 },
    /// The cursor is before all events that were stored when the partition was first read. `missing` events
    /// had been trimmed by then. In a backend with one counter for all events, that is also the revision of
    /// the last of them.
    Start { missing: u64 },
}

impl Mark {
    fn of(change: ChangeId) -> Self {
        Self::Event { revision: change.revision, nonce: change.nonce }
    }

    /// Returns whether `change` may be the event of this cursor. An event that can't be read has no nonce to
    /// compare.
    pub(super) fn is(self, change: ChangeId) -> bool {
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
        Self(BTreeMap::from([(0, Mark::of(change))]))
    }

    /// Encodes the position as bytes, for readers that continue later.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (&part, mark) in &self.0 {
            let (kind, first, second) = match *mark {
                Mark::Event { revision, nonce } => {
                    (MARK_EVENT, revision.get().to_be_bytes(), nonce.to_be_bytes())
                }
                Mark::Start { missing } => (MARK_START, missing.to_be_bytes(), [0; 8]),
            };
            bytes.extend([part, kind]);
            bytes.extend(first);
            bytes.extend(second);
        }
        bytes
    }

    /// Decodes bytes that [`to_bytes`](Self::to_bytes) returned. `None` if the encoding is invalid.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entries, []) = bytes.as_chunks::<MARK_BYTES>() else { return None };
        let mut marks = BTreeMap::new();
        for [part, kind, rest @ ..] in entries {
            let (first, second) = rest.split_first_chunk::<8>()?;
            let mark = match *kind {
                MARK_EVENT => Mark::Event {
                    revision: Revision::new(i64::from_be_bytes(*first)),
                    nonce: u64::from_be_bytes(second.try_into().ok()?),
                },
                MARK_START => Mark::Start { missing: u64::from_be_bytes(*first) },
                _ => return None,
            };
            let is_possible = !matches!(mark, Mark::Event { revision, .. } if revision < Revision::NONE);
            if !is_possible || marks.insert(*part, mark).is_some() {
                return None;
            }
        }
        Some(Self(marks))
    }

    /// Returns the last change of the partition `part` before this position. All events up to it are before
    /// this position. [`ChangeId::NONE`] if the partition was not read yet.
    #[must_use]
    pub fn last_change(&self, part: u8) -> ChangeId {
        match self.mark(part) {
            Mark::Event { revision, nonce } => ChangeId::new(revision, nonce),
            Mark::Start { .. } => ChangeId::NONE,
        }
    }

    /// Returns the position after all events up to `head`, none of which is stored any more, in a backend
    /// with one partition.
    fn after_missing(head: Revision) -> Self {
        Self(BTreeMap::from([(0, Mark::Start { missing: u64::try_from(head.get()).unwrap_or(0) })]))
    }

    /// Returns the cursor in the partition `shard`.
    pub(super) fn mark(&self, shard: u8) -> Mark {
        self.0.get(&shard).copied().unwrap_or(Mark::Start { missing: 0 })
    }

    /// Sets the cursor in the partition `shard` before the oldest stored event. `missing` events were trimmed
    /// before.
    pub(super) fn start(&mut self, shard: u8, missing: u64) {
        self.0.insert(shard, Mark::Start { missing });
    }

    /// Moves the cursor in `partition` after `change`.
    pub fn advance(&mut self, partition: u8, change: ChangeId) {
        self.0.insert(partition, Mark::of(change));
    }

    /// Moves the cursor of each partition to the one in `other` if that is further.
    pub(crate) fn advance_to(&mut self, other: &Self) {
        for (&partition, &mark) in &other.0 {
            let is_further = match (self.mark(partition), mark) {
                (Mark::Event { revision: own, .. }, Mark::Event { revision, .. }) => revision > own,
                (Mark::Start { .. }, Mark::Event { .. }) => true,
                (_, Mark::Start { .. }) => !self.0.contains_key(&partition),
            };
            if is_further {
                self.0.insert(partition, mark);
            }
        }
    }

    /// Returns whether the event with `revision` in `partition` lies before the position.
    pub(crate) fn includes(&self, partition: u8, revision: Revision) -> bool {
        matches!(self.mark(partition), Mark::Event { revision: last, .. } if last >= revision)
    }
}

/// An item of a listing or of the feed: the value that was read, or the position of a value that can't be
/// read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed<T, P> {
    /// The record or event.
    Read(T),
    /// The position of a stored value that is invalid in the domain.
    Unreadable(P),
}

/// An item of a listing of keys.
pub type ListedKey = Listed<ApiKey, PagePosition>;
/// An item of a listing of events.
pub type ListedEvent = Listed<KeyEvent, EventPosition>;

impl<T, P> Listed<T, P> {
    /// Returns the value, or `None` if it could not be read.
    pub fn read(self) -> Option<T> {
        match self {
            Self::Read(item) => Some(item),
            Self::Unreadable(_) => None,
        }
    }

    /// Applies `f` to a value that was read.
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Listed<U, P> {
        match self {
            Self::Read(item) => Listed::Read(f(item)),
            Self::Unreadable(place) => Listed::Unreadable(place),
        }
    }
}

impl ListedKey {
    /// Returns the position directly after this item.
    #[must_use]
    pub fn position(&self) -> PagePosition {
        match self {
            Self::Read(key) => PagePosition::of(key),
            Self::Unreadable(position) => *position,
        }
    }
}

impl ListedEvent {
    /// Returns the position directly after this item.
    #[must_use]
    pub fn position(&self) -> EventPosition {
        match self {
            Self::Read(event) => EventPosition::of(event),
            Self::Unreadable(position) => *position,
        }
    }
}

/// An event of the feed. The revision of an event is readable even if the rest is not.
pub(super) type FeedItem = Listed<KeyEvent, Revision>;

impl FeedItem {
    /// Returns the identity of the event's change. The nonce of an unreadable event is unknown.
    pub(super) fn change(&self) -> ChangeId {
        match self {
            Self::Read(event) => event.change(),
            Self::Unreadable(revision) => ChangeId::of_revision(*revision),
        }
    }
}

/// Separates events that could be read from those that could not. Each item is paired with its partition of
/// the feed.
pub(super) fn split(
    items: impl IntoIterator<Item = (u8, FeedItem)>,
) -> (Vec<KeyEvent>, Vec<UnreadableEvent>) {
    let (mut events, mut unreadable) = (Vec::new(), Vec::new());
    for (part, item) in items {
        match item {
            Listed::Read(event) => events.push(event),
            Listed::Unreadable(revision) => unreadable.push(UnreadableEvent { part, revision }),
        }
    }
    (events, unreadable)
}

/// An event that can't be read. It is therefore unknown which key was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableEvent {
    /// The event's partition of the feed.
    pub part: u8,
    /// The revision of the event's change. Its nonce is unknown.
    pub revision: Revision,
}

/// Events of the change feed, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The events.
    pub events: Vec<KeyEvent>,
    /// Events that can't be read, at any positions among or after the others. Any key of their partition may
    /// have changed.
    pub unreadable: Vec<UnreadableEvent>,
    /// The position after these events, from which to continue.
    pub position: FeedPosition,
    /// The partitions that could not be read. No events are skipped, because the next read continues at their
    /// previous cursors.
    pub unanswered: Vec<u8>,
}

impl Changes {
    /// Returns whether there may be more events after these, which were read with this `limit`.
    pub(crate) fn is_full(&self, limit: usize) -> bool {
        self.events.len() + self.unreadable.len() >= limit
    }
}

/// The end of the change feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentChanges {
    /// The newest events. Those of a key are in their order.
    pub events: Vec<KeyEvent>,
    /// Events among the newest that can't be read. Any key of their partition may have changed.
    pub unreadable: Vec<UnreadableEvent>,
    /// The position after the newest event of all.
    pub position: FeedPosition,
}

impl RecentChanges {
    /// Returns the newest events of a backend with one partition, oldest first. `head` is the newest
    /// revision.
    pub(super) fn of(items: Vec<FeedItem>, head: Revision) -> Self {
        let position = match items.last() {
            Some(last) => FeedPosition::of(last.change()),
            None => FeedPosition::after_missing(head),
        };
        let (events, unreadable) = split(items.into_iter().map(|item| (0, item)));
        Self { events, unreadable, position }
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
        fn a_position_makes_the_round_trip(marks in prop::collection::btree_map(any::<u8>(), (any::<bool>(), 0..=i64::MAX, any::<u64>()), 0..70)) {
            let position = FeedPosition(marks.into_iter().map(|(part, (is_event, revision, number))| {
                let revision = Revision::new(revision);
                let mark = if is_event { Mark::Event { revision, nonce: number } } else { Mark::Start { missing: number } };
                (part, mark)
            }).collect());
            prop_assert_eq!(FeedPosition::from_bytes(&position.to_bytes()), Some(position));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(position) = FeedPosition::from_bytes(&bytes) {
                prop_assert_eq!(FeedPosition::from_bytes(&position.to_bytes()), Some(position));
            }
        }
    }
}
