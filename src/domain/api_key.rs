//! The record of a key.

use super::{
    ChangeId, ChangedField, Description, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revision,
    RevokeReason, ScopeSet, Timestamp,
};

/// The stored record of a key: all data of the key except its secret and its last use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The public identifier. Never changes.
    pub id: KeyId,
    /// The digest of the key string. Never changes.
    pub hash: KeyHash,
    /// The prefix of the key string. Never changes.
    pub prefix: KeyPrefix,
    /// A label for people.
    pub name: KeyName,
    /// The purpose of the key, for people.
    pub description: Description,
    /// The owner: the party that the key acts for. Never changes.
    pub owner_id: OwnerId,
    /// The scopes that the key grants.
    pub scopes: ScopeSet,
    /// Arbitrary data that the owner attached to the key.
    pub metadata: Metadata,
    /// The time at which the key was created. Never changes.
    pub created_at: Timestamp,
    /// The time of the key's last change.
    pub updated_at: Timestamp,
    /// The instant from which on the key is rejected. `None` means that the key never expires.
    pub expires_at: Option<Timestamp>,
    /// The revocation, or `None` if the key was not revoked. Never changes once it is set.
    pub revocation: Option<Revocation>,
    /// The key that this one replaced, or `None` if this key was not made by a rotation. Never changes.
    pub rotated_from: Option<KeyId>,
    /// The successor of this key, or `None` if the key was not rotated. Never changes once it is set. The key
    /// then expires at the end of the overlap at the latest.
    pub replaced_by: Option<KeyId>,
    /// The revision of the key's last change. Only the repository sets it.
    pub revision: Revision,
    /// The nonce of the key's last change, equal to the nonce in that change's event. Only the repository
    /// sets it. [`ChangeId::UNKNOWN_NONCE`] if it was not stored.
    pub nonce: u64,
}

/// The time and the reason of a revocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The instant of the first revocation. Later ones don't change it.
    pub at: Timestamp,
    /// The reason that the first revocation gave.
    pub reason: RevokeReason,
}

/// The state of a key at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// Neither revoked nor expired.
    Active,
    /// Revoked, whether expired or not.
    Revoked,
    /// Not revoked, and the expiry was reached.
    Expired,
}

/// A field of a key that an update must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an update can't change the {0} of a key")]
pub struct ImmutableField(pub &'static str);

impl ApiKey {
    /// Returns the approximate memory size of the key in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        // The overhead of the maps per item was measured.
        let scopes: usize = self.scopes.iter().map(|scope| scope.as_str().len() + 24).sum();
        let metadata = self.metadata.as_map().iter();
        let metadata: usize = metadata.map(|(name, value)| name.len() + value.len() + 64).sum();
        let texts = self.name.as_str().len() + self.description.as_str().len() + self.owner_id.as_str().len();
        size_of::<Self>() + texts + scopes + metadata
    }

    /// Returns the key's last change.
    #[must_use]
    pub fn last_change(&self) -> ChangeId {
        ChangeId::new(self.revision, self.nonce)
    }

    /// Returns the state of the key at `now`. The expiry is inclusive: at exactly `expires_at`, the key is
    /// expired.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.revocation.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|expires_at| now >= expires_at) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }

    /// Returns this key, revoked at `now`. `None` if the key was revoked before.
    #[must_use]
    pub fn revoked(&self, reason: RevokeReason, now: Timestamp) -> Option<Self> {
        if self.revocation.is_some() {
            return None;
        }
        Some(Self { revocation: Some(Revocation { at: now, reason }), updated_at: now, ..self.clone() })
    }

    /// Checks that `next` is a valid update of this record. Every repository checks this before it stores an
    /// update.
    ///
    /// # Errors
    /// Returns the field in question if `next` differs in a field that never changes, removes or alters a
    /// revocation, or removes or alters the successor of a rotated key.
    pub fn check_update(&self, next: &Self) -> Result<(), ImmutableField> {
        let parts = [
            ("id", self.id == next.id),
            ("hash", self.hash == next.hash),
            ("prefix", self.prefix == next.prefix),
            ("owner", self.owner_id == next.owner_id),
            ("creation time", self.created_at == next.created_at),
            ("predecessor", self.rotated_from == next.rotated_from),
            ("revocation", self.revocation.is_none() || self.revocation == next.revocation),
            ("successor", self.replaced_by.is_none() || self.replaced_by == next.replaced_by),
        ];
        match parts.into_iter().find(|(_, is_kept)| !is_kept) {
            Some((part, _)) => Err(ImmutableField(part)),
            None => Ok(()),
        }
    }

    /// Returns the fields that differ in `next`, for the audit trail.
    #[must_use]
    pub fn changed_fields(&self, next: &Self) -> Vec<ChangedField> {
        let fields = [
            (ChangedField::Name, self.name != next.name),
            (ChangedField::Description, self.description != next.description),
            (ChangedField::Scopes, self.scopes != next.scopes),
            (ChangedField::Metadata, self.metadata != next.metadata),
            (ChangedField::ExpiresAt, self.expires_at != next.expires_at),
            (ChangedField::Revocation, self.revocation != next.revocation),
            (ChangedField::ReplacedBy, self.replaced_by != next.replaced_by),
        ];
        fields.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::SystemEntropy;

    pub(in crate::domain) fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros).unwrap()
    }

    /// Returns an active key, created at 0, that never expires.
    pub(crate) fn key() -> ApiKey {
        let hash = KeyHash::of("secret");
        ApiKey {
            id: KeyId::generate(at(0), &hash, &SystemEntropy).unwrap(),
            hash,
            prefix: KeyPrefix::parse("prefix", "kv_").unwrap(),
            name: KeyName::parse("name", "name").unwrap(),
            description: Description::default(),
            owner_id: OwnerId::parse("owner_id", "owner").unwrap(),
            scopes: ScopeSet::parse("scopes", ["read", "write"]).unwrap(),
            metadata: Metadata::default(),
            created_at: at(0),
            updated_at: at(0),
            expires_at: None,
            revocation: None,
            rotated_from: None,
            replaced_by: None,
            revision: Revision::new(1),
            nonce: 1,
        }
    }

    #[test]
    fn revocation_comes_before_expiry_and_expiry_is_inclusive() {
        let mut key = key();
        assert_eq!(key.state(Timestamp::MAX), KeyState::Active);
        key.expires_at = Some(at(10));
        assert_eq!(key.state(at(9)), KeyState::Active);
        assert_eq!(key.state(at(10)), KeyState::Expired);
        let key = key.revoked(RevokeReason::default(), at(20)).unwrap();
        assert_eq!(key.state(at(30)), KeyState::Revoked);
    }

    #[test]
    fn a_second_revocation_changes_nothing() {
        let revoked = key().revoked(RevokeReason::default(), at(1)).unwrap();
        assert_eq!(revoked.revoked(RevokeReason::default(), at(2)), None);
    }

    #[test]
    fn updates_can_not_change_immutable_fields() {
        let key = key();
        let revoked = key.revoked(RevokeReason::default(), at(1)).unwrap();
        assert_eq!(key.check_update(&revoked), Ok(()));
        assert_eq!(revoked.check_update(&key), Err(ImmutableField("revocation")));
        let other_owner = ApiKey { owner_id: OwnerId::parse("o", "Owner").unwrap(), ..key.clone() };
        assert_eq!(key.check_update(&other_owner), Err(ImmutableField("owner")));
        let replaced = ApiKey { replaced_by: Some(key.id), ..key.clone() };
        assert_eq!(replaced.check_update(&key), Err(ImmutableField("successor")));
    }

    #[test]
    fn changed_fields_are_listed() {
        let key = key();
        let revoked = key.revoked(RevokeReason::default(), at(1)).unwrap();
        assert_eq!(key.changed_fields(&revoked), [ChangedField::Revocation]);
        assert_eq!(key.changed_fields(&key), []);
    }
}
