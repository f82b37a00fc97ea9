//! The rotation of a key: its replacement by a successor.

use std::time::Duration;

use super::{
    ApiKey, ChangeId, KeyHash, KeyId, KeyPrefix, KeyState, Revision, Revocation, RevokeReason, Timestamp,
};

/// Maximum time for which a replaced key may stay valid: 30 days.
pub const MAX_OVERLAP: Duration = Duration::from_hours(30 * 24);

/// The two records that result from a rotation. Repositories store both or neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The old key after the rotation. It is linked to its successor, and it is either revoked or expires at
    /// the end of the overlap at the latest.
    pub replaced: ApiKey,
    /// The new key.
    pub successor: ApiKey,
}

/// The attributes that make a key unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyIdentity {
    /// The id of the key.
    pub id: KeyId,
    /// The digest of the key string.
    pub hash: KeyHash,
    /// The prefix of the key string.
    pub prefix: KeyPrefix,
}

/// The reason why a key can't be rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationRefused {
    /// The key was revoked.
    #[error("a revoked key can't be rotated; create a new one")]
    Revoked,
    /// The key has expired.
    #[error("an expired key can't be rotated; create a new one")]
    Expired,
    /// The key already has this successor.
    #[error("the key was rotated before; rotate its successor {0}")]
    Replaced(KeyId),
}

impl Rotation {
    /// Plans the rotation of `old` at `now`. The successor has the identity `identity`, and all other
    /// attributes of `old`. It expires at `expires_at`. If that is `None`, it gets the same lifetime as
    /// `old`. If `overlap` is zero, the old key is revoked. Otherwise it expires after `overlap` at the
    /// latest.
    ///
    /// # Errors
    /// `old` was rotated before, was revoked, or has expired.
    pub fn plan(
        old: &ApiKey,
        identity: KeyIdentity,
        overlap: Duration,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Self, RotationRefused> {
        // This check comes first, because a rotation without an overlap also revokes the old key. Advice to
        // create a new key would be wrong then.
        if let Some(successor) = old.replaced_by {
            return Err(RotationRefused::Replaced(successor));
        }
        match old.state(now) {
            KeyState::Revoked => return Err(RotationRefused::Revoked),
            KeyState::Expired => return Err(RotationRefused::Expired),
            KeyState::Active => {}
        }

        let KeyIdentity { id, hash, prefix } = identity;
        let mut replaced = ApiKey { replaced_by: Some(id), updated_at: now, ..old.clone() };
        if overlap.is_zero() {
            replaced.revocation = Some(Revocation { at: now, reason: RevokeReason::default() });
        } else {
            let end = now.checked_add(overlap).unwrap_or(Timestamp::MAX);
            replaced.expires_at = Some(old.expires_at.map_or(end, |expires_at| expires_at.min(end)));
        }
        let successor = ApiKey {
            id,
            hash,
            prefix,
            created_at: now,
            updated_at: now,
            expires_at: expires_at.or_else(|| same_lifetime(old, now)),
            rotated_from: Some(old.id),
            revision: Revision::NONE,
            nonce: ChangeId::UNKNOWN_NONCE,
            ..old.clone()
        };
        Ok(Self { replaced, successor })
    }
}

/// Returns the expiry at which a key created at `now` has the same lifetime as `old`. `None` if `old` never
/// expires.
fn same_lifetime(old: &ApiKey, now: Timestamp) -> Option<Timestamp> {
    let lifetime = old.expires_at?.since(old.created_at);
    Some(now.checked_add(lifetime).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SystemEntropy;
    use crate::domain::api_key::tests::{at, key};

    fn plan(old: &ApiKey, overlap: u64, now: i64) -> Result<Rotation, RotationRefused> {
        let hash = KeyHash::of("next");
        let id = KeyId::generate(at(now), &hash, &SystemEntropy).unwrap();
        let identity = KeyIdentity { id, hash, prefix: old.prefix.clone() };
        Rotation::plan(old, identity, Duration::from_micros(overlap), None, at(now))
    }

    #[test]
    fn the_successor_has_the_attributes_and_the_lifetime_of_the_old_key() {
        let old = ApiKey { expires_at: Some(at(100)), ..key() };
        let Rotation { replaced, successor } = plan(&old, 10, 50).unwrap();
        assert_eq!(successor.expires_at, Some(at(150)));
        assert_eq!(successor.rotated_from, Some(old.id));
        assert_eq!((successor.scopes, successor.owner_id), (old.scopes.clone(), old.owner_id.clone()));
        assert_eq!(replaced.replaced_by, Some(successor.id));
        assert_eq!(replaced.expires_at, Some(at(60)));
        assert_eq!(replaced.revocation, None);
    }

    #[test]
    fn the_overlap_never_prolongs_the_old_key() {
        let old = ApiKey { expires_at: Some(at(100)), ..key() };
        assert_eq!(plan(&old, 80, 50).unwrap().replaced.expires_at, Some(at(100)));
    }

    #[test]
    fn without_overlap_the_old_key_is_revoked() {
        let Rotation { replaced, successor } = plan(&key(), 0, 5).unwrap();
        assert_eq!(replaced.state(at(5)), KeyState::Revoked);
        assert_eq!(successor.state(Timestamp::MAX), KeyState::Active);
    }

    #[test]
    fn revoked_and_expired_keys_can_not_be_rotated() {
        let revoked = key().revoked(RevokeReason::default(), at(1)).unwrap();
        assert_eq!(plan(&revoked, 0, 2), Err(RotationRefused::Revoked));
        let expired = ApiKey { expires_at: Some(at(2)), ..key() };
        assert_eq!(plan(&expired, 0, 2), Err(RotationRefused::Expired));
        for overlap in [0, 10] {
            let Rotation { replaced, successor } = plan(&key(), overlap, 1).unwrap();
            assert_eq!(plan(&replaced, 10, 2), Err(RotationRefused::Replaced(successor.id)), "{overlap}");
        }
    }
}
