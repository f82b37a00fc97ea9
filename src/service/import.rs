//! Imports keys that another system issued.

use std::time::Duration;

use super::key_store::check_grantable;
use super::{Caller, KeyRecord, KeyStoreService, ServiceError};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, Description, Entropy, InvalidField, KeyHash, KeyId, KeyName, KeyPrefix,
    Metadata, OwnerId, Revision, Revocation, ScopeSet, Timestamp,
};
use crate::repository::ErrorKind;
use crate::telemetry::error_chain;

/// Tolerance for timestamps in the future, in case the clock of the source system is ahead.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// A key of another system, as it should be stored.
#[derive(Clone, Debug)]
pub struct ImportedKey {
    /// An id that Keyvouch generated for this hash. `None` generates a new one.
    pub id: Option<KeyId>,
    /// The SHA-256 digest of the whole key string.
    pub hash: KeyHash,
    /// Beginning of the key string, for display.
    pub prefix: KeyPrefix,
    /// Display name.
    pub name: KeyName,
    /// Description of the key's purpose.
    pub description: Description,
    /// Owner of the key.
    pub owner_id: OwnerId,
    /// Scopes of the key.
    pub scopes: ScopeSet,
    /// Arbitrary metadata.
    pub metadata: Metadata,
    /// Creation time. `None` means now.
    pub created_at: Option<Timestamp>,
    /// Expiry, which may be in the past. `None` means that the key never expires.
    pub expires_at: Option<Timestamp>,
    /// Revocation of the key, if it was revoked.
    pub revocation: Option<Revocation>,
    /// Last use, if known.
    pub last_used_at: Option<Timestamp>,
    /// The key that this one replaced.
    pub rotated_from: Option<KeyId>,
    /// The successor that replaced this key.
    pub replaced_by: Option<KeyId>,
    /// Whether the key may be stored as active even if a key with the same hash was revoked and deleted here.
    pub may_revive: bool,
}

impl ImportedKey {
    /// Checks that the id belongs to the hash, and that no past event has a time in the future.
    ///
    /// # Errors
    /// Returns the first invalid field.
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidField> {
        if self.id.is_some_and(|id| !id.belongs_to(&self.hash)) {
            return Err(InvalidField::new(
                "key.id",
                "not an id that Keyvouch created for this hash; leave it empty",
            ));
        }
        let latest = now.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
        for (field, instant) in [
            ("key.create_time", self.created_at),
            ("key.revoke_time", self.revocation.as_ref().map(|revocation| revocation.at)),
            ("key.last_used_time", self.last_used_at),
        ] {
            if instant.is_some_and(|instant| instant > latest) {
                return Err(InvalidField::new(field, "must not be in the future"));
            }
        }
        Ok(())
    }

    fn into_key(self, now: Timestamp, entropy: &dyn Entropy) -> Result<ApiKey, ServiceError> {
        let created_at = self.created_at.unwrap_or(now);
        let id = match self.id {
            Some(id) => id,
            None => KeyId::generate(created_at, &self.hash, entropy)?,
        };
        Ok(ApiKey {
            id,
            hash: self.hash,
            prefix: self.prefix,
            name: self.name,
            description: self.description,
            owner_id: self.owner_id,
            scopes: self.scopes,
            metadata: self.metadata,
            created_at,
            updated_at: now,
            expires_at: self.expires_at,
            revocation: self.revocation,
            rotated_from: self.rotated_from,
            replaced_by: self.replaced_by,
            revision: Revision::NONE,
            nonce: ChangeId::UNKNOWN_NONCE,
        })
    }
}

impl KeyStoreService {
    /// Stores `keys`. Returns the outcome of each key, in order. A rejected key does not affect the others.
    ///
    /// # Errors
    /// Returns an error if the backend failed. It is unknown then which of the keys were stored.
    pub async fn import(
        &self,
        keys: Vec<Result<ImportedKey, InvalidField>>,
        caller: &Caller,
    ) -> Result<Vec<Result<KeyRecord, ServiceError>>, ServiceError> {
        let now = self.clock.now();
        let mut outcomes: Vec<Option<Result<KeyRecord, ServiceError>>> = Vec::new();
        // Keys that may revive a revoked hash are stored separately, because the context applies to the whole
        // call.
        let (mut plain, mut reviving) = (Vec::new(), Vec::new());
        for (index, key) in keys.into_iter().enumerate() {
            let known = key.as_ref().ok().map(|key| (key.last_used_at, key.may_revive));
            let (last_used_at, may_revive) = known.unwrap_or_default();
            outcomes.push(match self.accept(key, now, caller) {
                Ok(key) => {
                    let list = if may_revive { &mut reviving } else { &mut plain };
                    list.push((index, key, last_used_at));
                    None
                }
                Err(rejection) => Some(Err(rejection)),
            });
        }
        for (accepted, may_revive) in [(plain, false), (reviving, true)] {
            if accepted.is_empty() {
                continue;
            }
            let context = ChangeContext { may_revive, ..caller.context(now) };
            let keys = accepted.iter().map(|(_, key, _)| key.clone()).collect();
            let stored = self.repository.create_many(keys, &context).await?;
            for ((index, _, last_used_at), stored) in accepted.into_iter().zip(stored) {
                let record = stored.map(|key| KeyRecord { key, last_used_at, as_of: now });
                outcomes[index] = Some(record.map_err(ServiceError::from));
            }
            // Recorded before the next group is stored, which may fail.
            self.record_last_uses(outcomes.iter().flatten().flatten()).await;
        }
        let unanswered = || Err(ServiceError::Repository(ErrorKind::Internal.into()));
        Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(unanswered)).collect())
    }

    fn accept(
        &self,
        key: Result<ImportedKey, InvalidField>,
        now: Timestamp,
        caller: &Caller,
    ) -> Result<ApiKey, ServiceError> {
        let key = key?;
        key.check(now)?;
        check_grantable(caller, &key.scopes)?;
        key.into_key(now, self.entropy.as_ref())
    }

    /// Records the last uses of stored keys. A failure is only logged, because an error would suggest that
    /// nothing was stored.
    async fn record_last_uses(&self, records: impl Iterator<Item = &KeyRecord>) {
        let uses: Vec<_> = records.filter_map(|it| Some((it.key.id, it.last_used_at?))).collect();
        let Some(usage) = self.usage.as_ref().filter(|_| !uses.is_empty()) else { return };
        if let Err(error) = usage.record_usage(&uses).await {
            tracing::warn!(error = %error_chain(&error), "could not record the last uses of imported keys");
        }
    }
}
