//! Changes the attributes of keys.

use super::expiry::check_future;
use super::{KeyStoreService, MAX_ATTEMPTS, Result, check_grantable, conflict};
use crate::domain::{ApiKey, KeyId, Revision, Scope, ScopeSet, Timestamp};
use crate::repository::ErrorKind;
use crate::service::{Caller, KeyRecord, KeyUpdate, Precondition};

impl KeyStoreService {
    /// Changes the attributes in `update`, if `expected` is unset or equals the current revision. If the key
    /// already has these values, returns it unchanged and writes no event.
    ///
    /// # Errors
    /// Returns [`ErrorKind::Conflict`] if the key has another revision than `expected`, or if concurrent
    /// changes prevented all attempts.
    pub async fn update(
        &self,
        id: KeyId,
        update: KeyUpdate,
        expected: Option<Revision>,
        caller: &Caller,
    ) -> Result<KeyRecord> {
        for _ in 0..MAX_ATTEMPTS {
            let key = self.find(id).await?;
            let now = self.clock.now();
            let next = apply(&update, &key, now, caller)?;
            if key.changed_fields(&next).is_empty() {
                if expected.is_some_and(|expected| expected != key.revision) {
                    return Err(conflict());
                }
                return Ok(self.changed_record(key).await);
            }
            let updated =
                self.repository.update(next, expected.unwrap_or(key.revision), &caller.context(now)).await;
            match updated {
                Ok(key) => return Ok(self.changed_record(key).await),
                Err(error) if error.kind() == ErrorKind::Conflict && expected.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(conflict())
    }
}

/// Returns `key` with the values of `update`.
fn apply(update: &KeyUpdate, key: &ApiKey, now: Timestamp, caller: &Caller) -> Result<ApiKey> {
    let mut next = ApiKey { updated_at: now, ..key.clone() };
    let KeyUpdate { name, description, scopes, metadata, expires_at } = update.clone();
    next.name = name.unwrap_or(next.name);
    next.description = description.unwrap_or(next.description);
    next.metadata = metadata.unwrap_or(next.metadata);
    if let Some(scopes) = scopes {
        // Scopes that the key already has are not granted by this call.
        let granted = scopes.iter().filter(|scope| !key.scopes.contains(scope)).map(Scope::as_str);
        check_grantable(caller, &ScopeSet::parse("key.scopes", granted)?)?;
        next.scopes = scopes;
    }
    if let Some(expires_at) = expires_at {
        check_future("key.expire_time", expires_at, now)?;
        let is_longer = expires_at.is_none_or(|end| key.expires_at.is_some_and(|old_end| end > old_end));
        if is_longer && expires_at != key.expires_at {
            if let Some(successor) = key.replaced_by {
                return Err(Precondition::ReplacedKeyExtended(successor).into());
            }
            // Extending or reactivating a key grants its scopes for longer.
            check_grantable(caller, &next.scopes)?;
        }
        next.expires_at = expires_at;
    }
    Ok(next)
}
