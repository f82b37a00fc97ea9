//! Filters of listings.

use super::{ApiKey, KeyPrefix, KeyState, Timestamp};

/// Selects the keys that a listing returns. All conditions have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFilter {
    /// Selects keys that are in one of these states at `as_of`.
    pub states: StateSet,
    /// Selects keys with this prefix. `None` selects keys with any prefix.
    pub prefix: Option<KeyPrefix>,
    /// The instant at which states are judged.
    pub as_of: Timestamp,
}

impl KeyFilter {
    /// Returns whether the filter selects every key.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.prefix.is_none() && self.states.is_all()
    }

    /// Returns a filter that selects all keys.
    #[must_use]
    pub fn all(as_of: Timestamp) -> Self {
        Self { states: StateSet::all(), prefix: None, as_of }
    }

    /// Returns whether a listing with this filter returns `key`.
    #[must_use]
    pub fn matches(&self, key: &ApiKey) -> bool {
        self.states.contains(key.state(self.as_of)) && self.prefix.as_ref().is_none_or(|it| *it == key.prefix)
    }
}

/// A set of key states, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSet {
    active: bool,
    revoked: bool,
    expired: bool,
}

impl StateSet {
    /// Returns the set of all states.
    #[must_use]
    pub fn all() -> Self {
        Self { active: true, revoked: true, expired: true }
    }

    /// Returns the set of `states`. If `states` is empty, returns the set of all states.
    #[must_use]
    pub fn any_of(states: &[KeyState]) -> Self {
        if states.is_empty() {
            return Self::all();
        }
        let has = |state| states.contains(&state);
        Self {
            active: has(KeyState::Active),
            revoked: has(KeyState::Revoked),
            expired: has(KeyState::Expired),
        }
    }

    /// Returns whether the set contains `state`.
    #[must_use]
    pub fn contains(self, state: KeyState) -> bool {
        match state {
            KeyState::Active => self.active,
            KeyState::Revoked => self.revoked,
            KeyState::Expired => self.expired,
        }
    }

    /// Returns whether the set contains every state.
    #[must_use]
    pub fn is_all(self) -> bool {
        self == Self::all()
    }
}
