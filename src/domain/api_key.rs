//! The record of a key.

use super::{
    ChangeId, ChangedField, Description, KeyHash, KeyId, KeyName, KeyPrefix, Metadata, OwnerId, Revision,
    RevokeReason, ScopeSet, Timestamp,
};

/// All that is known of a key but its secret and its last use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// The key's public name. Never changes.
    pub id: KeyId,
    /// The digest of the key string. Never changes.
    pub hash: KeyHash,
    /// What the key string begins with. Never changes.
    pub prefix: KeyPrefix,
    /// A label for people.
    pub name: KeyName,
    /// What the key is for.
    pub description: Description,
    /// Whom the key acts for. Never changes.
    pub owner_id: OwnerId,
    /// What the key may do.
    pub scopes: ScopeSet,
    /// Free data of the owner.
    pub metadata: Metadata,
    /// When the key was made. Never changes.
    pub created_at: Timestamp,
    /// When the key was last changed.
    pub updated_at: Timestamp,
    /// From this instant on the key is refused.
    pub expires_at: Option<Timestamp>,
    /// Set once and for all when the key is revoked.
    pub revocation: Option<Revocation>,
    /// The key that this one replaced. Never changes.
    pub rotated_from: Option<KeyId>,
    /// The key that replaced this one, set once; `expires_at` is then the end of the overlap, or earlier.
    pub replaced_by: Option<KeyId>,
    /// The revision of the key's last change. Set by the repository alone.
    pub revision: Revision,
    /// The nonce of the key's last change, the same as in the event of that change. Set by the repository alone;
    /// [`ChangeId::UNKNOWN_NONCE`] if it was not stored.
    pub nonce: u64,
}

/// When and why a key was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The instant of the first revocation.
    pub at: Timestamp,
    /// The reason given then.
    pub reason: RevokeReason,
}

/// What a key is at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// Neither revoked nor expired.
    Active,
    /// Revoked, whether expired or not.
    Revoked,
    /// Not revoked, and its expiry was reached.
    Expired,
}

/// A part of a key that an update must leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an update can't change the {0} of a key")]
pub struct ImmutableField(pub &'static str);

impl ApiKey {
    /// Returns how many bytes of memory the key takes, about.
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

    /// What the key is at `now`. Exactly at `expires_at` it is expired.
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

    /// This key, revoked at `now`; `None` if it was revoked before.
    #[must_use]
    pub fn revoked(&self, reason: RevokeReason, now: Timestamp) -> Option<Self> {
        if self.revocation.is_some() {
            return None;
        }
        Some(Self { revocation: Some(Revocation { at: now, reason }), updated_at: now, ..self.clone() })
    }

    /// Checks that `next` may take the place of this record: every repository does so before it stores an update.
    ///
    /// # Errors
    /// `next` differs in a part that never changes, brings a revoked key back, or undoes a rotation.
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

    /// What differs in `next`, for the audit trail.
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

    /// An active key, made at 0, that never expires.
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
    fn an_update_can_not_undo_what_is_final() {
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
    fn changes_are_named() {
        let key = key();
        let revoked = key.revoked(RevokeReason::default(), at(1)).unwrap();
        assert_eq!(key.changed_fields(&revoked), [ChangedField::Revocation]);
        assert_eq!(key.changed_fields(&key), []);
    }
}
