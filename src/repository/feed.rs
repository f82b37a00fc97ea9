//! Positions in the audit trail and in the change feed.

use std::collections::BTreeMap;

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
///
/// A store that spreads its keys over shards has a place in each; one that does not has shard 0 alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedPosition(BTreeMap<u8, Mark>);

/// How far a shard was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Through this event.
    Event { revision: Revision, nonce: u64 },
    /// Nothing yet of what was there when it was first asked; so many events before that were let go already.
    Start { missing: u64 },
}

impl Mark {
    fn of(event: &KeyEvent) -> Self {
        Self::Event { revision: event.revision, nonce: event.nonce }
    }
}

impl FeedPosition {
    /// Before all events there ever were.
    #[must_use]
    pub fn beginning() -> Self {
        Self::default()
    }

    /// Behind `event`, in a store without shards.
    pub(super) fn of(event: &KeyEvent) -> Self {
        Self(BTreeMap::from([(0, Mark::of(event))]))
    }

    /// The place in `shard`.
    pub(super) fn mark(&self, shard: u8) -> Mark {
        self.0.get(&shard).copied().unwrap_or(Mark::Start { missing: 0 })
    }

    /// Begins with what there is in `shard`, of which `missing` events were let go.
    pub(super) fn start(&mut self, shard: u8, missing: u64) {
        self.0.insert(shard, Mark::Start { missing });
    }

    /// Goes on behind `event` of `shard`.
    pub(super) fn advance(&mut self, shard: u8, event: &KeyEvent) {
        self.0.insert(shard, Mark::of(event));
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
