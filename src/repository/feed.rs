//! Positions in the audit trail and in the change feed.

use crate::domain::{KeyEvent, KeyId, OwnerId, Revision};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedPosition {
    revision: Revision,
    nonce: u64,
}

impl FeedPosition {
    /// Before all events there ever were.
    #[must_use]
    pub fn beginning() -> Self {
        Self { revision: Revision::NONE, nonce: 0 }
    }

    /// Behind `event`.
    #[must_use]
    pub fn of(event: &KeyEvent) -> Self {
        Self { revision: event.revision, nonce: event.nonce }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn is_beginning(&self) -> bool {
        self.revision == Revision::NONE
    }
}

/// Events of the change feed, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// The events.
    pub events: Vec<KeyEvent>,
    /// Where to read on.
    pub position: FeedPosition,
}
