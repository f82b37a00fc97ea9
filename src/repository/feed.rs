//! Positions in the audit trail and in the change feed.

use std::collections::BTreeMap;

use super::PagePosition;
use crate::domain::{ApiKey, ChangeId, KeyEvent, KeyId, OwnerId, Revision};

/// Which page of the audit trail to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPageRequest {
    /// Only events of this key.
    pub key_id: Option<KeyId>,
    /// Only events of keys of this owner.
    pub owner_id: Option<OwnerId>,
    /// Read on after this event; `None`: from the newest.
    pub after: Option<EventPosition>,
    /// How many events at most.
    pub limit: usize,
}

/// A place in the audit trail: right behind this event, which need not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventPosition {
    /// The event's revision.
    pub revision: Revision,
    /// The event's key.
    pub key_id: KeyId,
}

impl EventPosition {
    /// The place right behind `event`.
    #[must_use]
    pub fn of(event: &KeyEvent) -> Self {
        Self { revision: event.revision, key_id: event.key_id }
    }
}

/// A place in the change feed. Only the store that made it knows what it means.
///
/// A store that spreads its keys over shards has a place in each; one that does not has shard 0 alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition(BTreeMap<u8, Mark>);

/// Which of `parts` parts of a feed tells of a key whose hash begins with `byte`: see
/// [`KeyRepository::feed_parts`](super::KeyRepository::feed_parts).
pub(crate) fn part_of(byte: u8, parts: usize) -> usize {
    usize::from(byte) % parts
}

/// How a mark is written: the part, what it is, and two numbers.
const MARK_BYTES: usize = 18;
const MARK_EVENT: u8 = 1;
const MARK_START: u8 = 2;

impl Mark {
    /// Whether all events behind a [`Mark::Start`] of `missing` are there: where one counter numbers all of them, `first` is
    /// the oldest that is kept and `head` the newest of all.
    pub(super) fn is_whole_after(missing: u64, first: Option<Revision>, head: Revision) -> bool {
        let expected = i64::try_from(missing).ok().map(Revision::new);
        match first {
            Some(first) => expected.is_some_and(|missing| first.get() - 1 <= missing.get()),
            None => expected == Some(head),
        }
    }
}

/// How far a shard was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Through this event.
    Event { revision: Revision, nonce: u64 },
    /// Nothing yet of what was there when it was first asked; so many events before that were let go already. Where one
    /// counter numbers all events, that is also the revision of the last of those.
    Start { missing: u64 },
}

impl Mark {
    fn of(change: ChangeId) -> Self {
        Self::Event { revision: change.revision, nonce: change.nonce }
    }

    /// Returns whether the event of `change` may be the one of this mark. An event that can't be read has no nonce to
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
    /// Before all events there ever were.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// Returns the position behind `change`, in a feed with one partition.
    #[must_use]
    pub fn of(change: ChangeId) -> Self {
        Self(BTreeMap::from([(0, Mark::of(change))]))
    }

    /// The place as bytes, for whoever comes back to it later.
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

    /// Reads what [`to_bytes`](Self::to_bytes) gave; `None` if it is something else.
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

    /// Returns the last change of `part` before this place: all events up to it are before this place.
    #[must_use]
    pub fn last_change(&self, part: u8) -> ChangeId {
        match self.mark(part) {
            Mark::Event { revision, nonce } => ChangeId::new(revision, nonce),
            Mark::Start { .. } => ChangeId::NONE,
        }
    }

    /// Behind events up to `head` that are all gone, in a store without shards.
    fn after_missing(head: Revision) -> Self {
        Self(BTreeMap::from([(0, Mark::Start { missing: u64::try_from(head.get()).unwrap_or(0) })]))
    }

    /// The place in `shard`.
    pub(super) fn mark(&self, shard: u8) -> Mark {
        self.0.get(&shard).copied().unwrap_or(Mark::Start { missing: 0 })
    }

    /// Begins with what there is in `shard`, of which `missing` events were let go.
    pub(super) fn start(&mut self, shard: u8, missing: u64) {
        self.0.insert(shard, Mark::Start { missing });
    }

    /// Moves the position behind `change` of `partition`.
    pub fn advance(&mut self, partition: u8, change: ChangeId) {
        self.0.insert(partition, Mark::of(change));
    }

    /// Moves the position to `other` in each partition in which that is further.
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

/// An item of a listing or of the feed: what was read, or where something is that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed<T, P> {
    /// The record or event.
    Read(T),
    /// Something is stored at this place that breaks a rule of the domain.
    Unreadable(P),
}

/// An item of a listing of keys.
pub type ListedKey = Listed<ApiKey, PagePosition>;
/// An item of a listing of events.
pub type ListedEvent = Listed<KeyEvent, EventPosition>;

impl<T, P> Listed<T, P> {
    /// Returns what was read; `None` if it could not be.
    pub fn read(self) -> Option<T> {
        match self {
            Self::Read(item) => Some(item),
            Self::Unreadable(_) => None,
        }
    }

    /// Returns the same with `f` of what was read.
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Listed<U, P> {
        match self {
            Self::Read(item) => Listed::Read(f(item)),
            Self::Unreadable(place) => Listed::Unreadable(place),
        }
    }
}

impl ListedKey {
    /// Returns the place right behind this item.
    #[must_use]
    pub fn position(&self) -> PagePosition {
        match self {
            Self::Read(key) => PagePosition::of(key),
            Self::Unreadable(position) => *position,
        }
    }
}

impl ListedEvent {
    /// Returns the place right behind this item.
    #[must_use]
    pub fn position(&self) -> EventPosition {
        match self {
            Self::Read(event) => EventPosition::of(event),
            Self::Unreadable(position) => *position,
        }
    }
}

/// An event as the feed has it; one that can't be read has a revision all the same.
pub(super) type FeedItem = Listed<KeyEvent, Revision>;

impl FeedItem {
    /// Returns the change that it tells of.
    pub(super) fn change(&self) -> ChangeId {
        match self {
            Self::Read(event) => event.change(),
            Self::Unreadable(revision) => ChangeId::of_revision(*revision),
        }
    }
}

/// Returns the events that could be read, and those that could not. Each item comes with the part of the feed that has it.
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

/// An event that can't be read, so that it isn't known which key it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableEvent {
    /// The part of the feed that has it.
    pub part: u8,
    /// The change that it should tell of; its nonce is not known.
    pub revision: Revision,
}

/// Events of the change feed, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The events.
    pub events: Vec<KeyEvent>,
    /// Events that can't be read, which lie between or behind the others. Any key of their part may have changed.
    pub unreadable: Vec<UnreadableEvent>,
    /// Where to read on.
    pub position: FeedPosition,
    /// The parts of the feed that could not be asked. Nothing is missing: they are read on from where they were.
    pub unanswered: Vec<u8>,
}

/// The end of the change feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentChanges {
    /// The newest events, those of a key in their order.
    pub events: Vec<KeyEvent>,
    /// Events among them that can't be read. Any key of their part may have changed.
    pub unreadable: Vec<UnreadableEvent>,
    /// Behind the newest of all.
    pub position: FeedPosition,
}

impl RecentChanges {
    /// The newest events of a store without shards, at most `limit`, oldest first; `head` is the newest revision.
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
        // A partition in which the other one has seen nothing stays.
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
