//! The change feed: its events and its positions.

mod position;

use super::listing::Listed;
use crate::domain::{ChangeId, KeyEvent, Revision};

pub(in crate::repository) use position::Cursor;
pub use position::FeedPosition;

/// The number of the partition in a feed with one partition.
const ONLY_PARTITION: u8 = 0;

/// Returns the partition of a key whose hash begins with `byte`, in a feed with `partitions` partitions: see
/// [`ChangeFeed::partitions`](super::ChangeFeed::partitions).
pub(crate) fn partition_of(byte: u8, partitions: usize) -> usize {
    usize::from(byte) % partitions
}

/// A stored event of the feed. The revision of an event is readable even if the rest is not.
pub type FeedItem = Listed<KeyEvent, Revision>;

impl FeedItem {
    /// Returns the identity of the event's change. The nonce of an unreadable event is unknown.
    #[must_use]
    pub fn change(&self) -> ChangeId {
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
    for (partition, item) in items {
        match item {
            Listed::Read(event) => events.push(event),
            Listed::Unreadable(revision) => unreadable.push(UnreadableEvent { partition, revision }),
        }
    }
    (events, unreadable)
}

/// An event that can't be read. It is therefore unknown which key was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableEvent {
    /// The event's partition of the feed.
    pub partition: u8,
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
    /// Returns the changes after a position in a feed with one partition. `items` are the stored events that
    /// follow the position, in their order. Without any, the position does not change.
    ///
    /// ```
    /// # use keyvouch::domain::{ChangeId, Revision};
    /// # use keyvouch::repository::{Changes, FeedPosition, Listed};
    /// let after = FeedPosition::of(ChangeId::new(Revision::new(7), 1));
    /// assert_eq!(Changes::of(Some(&after), Vec::new()).position, after);
    /// // An event that can't be read.
    /// let changes = Changes::of(Some(&after), vec![Listed::Unreadable(Revision::new(8))]);
    /// assert_eq!(changes.position.last_change(0).revision, Revision::new(8));
    /// ```
    #[must_use]
    pub fn of(after: Option<&FeedPosition>, items: Vec<FeedItem>) -> Self {
        let position = match items.last() {
            Some(last) => FeedPosition::of(last.change()),
            None => after.cloned().unwrap_or_default(),
        };
        let (events, unreadable) = split(items.into_iter().map(|item| (ONLY_PARTITION, item)));
        Self { events, unreadable, position, unanswered: Vec::new() }
    }

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
    /// Returns the end of a feed with one partition. `items` are its newest stored events, oldest first. `head`
    /// is the last revision that was assigned, even if its event is not stored any more.
    #[must_use]
    pub fn of(items: Vec<FeedItem>, head: Revision) -> Self {
        let position = match items.last() {
            Some(last) => FeedPosition::of(last.change()),
            None => FeedPosition::after_missing(head),
        };
        let (events, unreadable) = split(items.into_iter().map(|item| (ONLY_PARTITION, item)));
        Self { events, unreadable, position }
    }
}
