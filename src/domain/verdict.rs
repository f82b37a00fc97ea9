//! The verdict on a key.

use super::{ApiKey, KeyState, ScopeMatch, ScopeSet, Timestamp};

/// Whether a key may be used. An undecided validation is an error, never a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The key may be used.
    Allowed,
    /// The key must not be used.
    Denied(Denial),
}

/// The reason why a key is denied. If several apply, it is the first in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denial {
    /// The string does not have the form of a key of this server.
    Malformed,
    /// The key does not exist.
    NotFound,
    /// The key was revoked.
    Revoked,
    /// The key's expiry was reached.
    Expired,
    /// A required scope is missing.
    InsufficientScope,
}

impl Denial {
    /// Returns the value of a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotFound => "not_found",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

/// Returns the verdict on a key that was found: revoked, expired, insufficient scope or allowed, the first
/// that applies at `now`.
#[must_use]
pub fn judge(key: &ApiKey, required: &ScopeSet, scope_match: ScopeMatch, now: Timestamp) -> Verdict {
    match key.state(now) {
        KeyState::Revoked => Verdict::Denied(Denial::Revoked),
        KeyState::Expired => Verdict::Denied(Denial::Expired),
        KeyState::Active if !key.scopes.satisfy(required, scope_match) => {
            Verdict::Denied(Denial::InsufficientScope)
        }
        KeyState::Active => Verdict::Allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::RevokeReason;
    use crate::domain::api_key::tests::{at, key};

    #[test]
    fn the_first_reason_that_applies_is_given() {
        let missing = ScopeSet::parse("scopes", ["admin"]).unwrap();
        let judge_at = |key: &ApiKey, now| judge(key, &missing, ScopeMatch::All, at(now));

        let mut key = ApiKey { expires_at: Some(at(10)), ..key() };
        assert_eq!(judge_at(&key, 9), Verdict::Denied(Denial::InsufficientScope));
        assert_eq!(judge_at(&key, 10), Verdict::Denied(Denial::Expired));
        key = key.revoked(RevokeReason::default(), at(5)).unwrap();
        assert_eq!(judge_at(&key, 10), Verdict::Denied(Denial::Revoked));
    }

    #[test]
    fn a_key_with_the_scopes_is_allowed() {
        let read = ScopeSet::parse("scopes", ["read"]).unwrap();
        assert_eq!(judge(&key(), &read, ScopeMatch::All, at(0)), Verdict::Allowed);
    }
}
