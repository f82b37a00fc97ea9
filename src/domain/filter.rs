//! Which keys a listing shows.

use super::{ApiKey, KeyPrefix, KeyState, Timestamp};

/// Narrows a listing. The default shows all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFilter {
    /// Keys in one of these states at `as_of`.
    pub states: StateSet,
    /// Keys with this prefix; `None`: with any.
    pub prefix: Option<KeyPrefix>,
    /// The instant at which states are judged.
    pub as_of: Timestamp,
}

impl KeyFilter {
    /// Returns whether the filter shows every key.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.prefix.is_none() && self.states.is_all()
    }

    /// All keys.
    #[must_use]
    pub fn all(as_of: Timestamp) -> Self {
        Self { states: StateSet::all(), prefix: None, as_of }
    }

    /// Whether a listing shows `key`.
    #[must_use]
    pub fn matches(&self, key: &ApiKey) -> bool {
        self.states.contains(key.state(self.as_of)) && self.prefix.as_ref().is_none_or(|it| *it == key.prefix)
    }
}

/// A set of states, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSet {
    active: bool,
    revoked: bool,
    expired: bool,
}

impl StateSet {
    /// Every state.
    #[must_use]
    pub fn all() -> Self {
        Self { active: true, revoked: true, expired: true }
    }

    /// Those of `states`; every one if there are none.
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

    /// Whether `state` is among them.
    #[must_use]
    pub fn contains(self, state: KeyState) -> bool {
        match state {
            KeyState::Active => self.active,
            KeyState::Revoked => self.revoked,
            KeyState::Expired => self.expired,
        }
    }

    /// Whether all states are among them.
    #[must_use]
    pub fn is_all(self) -> bool {
        self == Self::all()
    }
}
