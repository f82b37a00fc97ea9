//! Pages and items of listings: keys, and events of the audit trail.

use crate::domain::{ApiKey, KeyEvent, KeyId, OwnerId, Revision, Timestamp};

/// Selects a page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Selects keys of this owner. `None` selects keys of all owners.
    pub owner_id: Option<OwnerId>,
    /// The position after which the page begins. `None` begins with the newest key.
    pub after: Option<PagePosition>,
    /// Maximum number of keys.
    pub limit: usize,
}

impl PageRequest {
    /// Returns whether the page may contain `key`: it has the owner, and comes after the position.
    #[must_use]
    pub fn selects(&self, key: &ApiKey) -> bool {
        self.owner_id.as_ref().is_none_or(|owner| *owner == key.owner_id)
            && self.after.is_none_or(|after| after.precedes(PagePosition::of(key)))
    }
}

/// A position in a listing, directly after the key with this creation time and id. The key need not exist any
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePosition {
    /// The key's creation time.
    pub created_at: Timestamp,
    /// The key's id.
    pub id: KeyId,
}

impl PagePosition {
    /// Returns the position directly after `key`.
    #[must_use]
    pub fn of(key: &ApiKey) -> Self {
        Self { created_at: key.created_at, id: key.id }
    }

    /// Returns whether `other` comes after this position in a listing, newest first.
    #[must_use]
    pub fn precedes(&self, other: Self) -> bool {
        (other.created_at, other.id) < (self.created_at, self.id)
    }
}

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

impl EventPageRequest {
    /// Returns whether the page may contain `event`: it has the key and the owner, and comes after the
    /// position, newest first.
    #[must_use]
    pub fn selects(&self, event: &KeyEvent) -> bool {
        self.key_id.is_none_or(|id| id == event.key_id)
            && self.owner_id.as_ref().is_none_or(|owner| *owner == event.owner_id)
            && self.after.is_none_or(|after| EventPosition::of(event) < after)
    }
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
            Self::Unreadable(position) => Listed::Unreadable(position),
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
