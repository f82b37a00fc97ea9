//! Issues keys: creates them, and rotates them to successors. Both are safe to retry with a `request_id`.

use super::expiry::resolve;
use super::{KeyStoreService, MAX_ATTEMPTS, Result, check_grantable, conflict};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, InvalidFields, KeyHash, KeyId, KeyIdentity, KeyPrefix, RequestDigest,
    Revision, Rotation, SecretKey, Timestamp, Violations,
};
use crate::repository::{ErrorKind, RepositoryError};
use crate::service::{Caller, Expiry, IssuedKey, KeyRecord, NewKey, RotateRequest, RotatedKey, ServiceError};

/// Maximum number of secrets to draw until one belongs to the required shard. One of 64 does on average, so
/// the limit is never reached in practice.
const MAX_DRAWS: usize = 10_000;

impl KeyStoreService {
    /// Creates a key.
    ///
    /// # Errors
    /// Returns [`ServiceError::AlreadyApplied`] if an earlier request with the same id created a key.
    pub async fn create(&self, new: NewKey, caller: &Caller) -> Result<IssuedKey> {
        let request = new.request_id.as_ref().map(|id| caller.creation(id));
        self.check_not_applied(request.as_ref()).await?;
        check_grantable(caller, &new.scopes)?;
        let now = self.clock.now();
        let (prefix, expires_at) = self.terms(new.prefix.as_deref(), new.expiry, now)?;
        let is_fit = |hash: &KeyHash| request.is_none_or(|it| self.repository.can_create_for(&it, hash));
        let (KeyIdentity { id, hash, prefix }, secret) = self.draw_fitting(&prefix, now, is_fit)?;
        let key = ApiKey {
            id,
            hash,
            prefix,
            name: new.name,
            description: new.description,
            owner_id: new.owner_id,
            scopes: new.scopes,
            metadata: new.metadata,
            created_at: now,
            updated_at: now,
            expires_at,
            revocation: None,
            rotated_from: None,
            replaced_by: None,
            revision: Revision::NONE,
            nonce: ChangeId::UNKNOWN_NONCE,
        };
        let context = ChangeContext { request, ..caller.context(now) };
        let key = match self.repository.create(key, &context).await {
            Err(error) => return Err(self.of_retry(error, request.as_ref()).await),
            Ok(key) => key,
        };
        Ok(IssuedKey { record: KeyRecord { key, last_used_at: None, as_of: now }, secret })
    }

    /// Returns the prefix and the time of expiry that a caller requests for a new key.
    ///
    /// # Errors
    /// Keys are not issued with this prefix, or the expiry is not valid at `now`.
    pub(crate) fn terms(
        &self,
        prefix: Option<&str>,
        expiry: Option<Expiry>,
        now: Timestamp,
    ) -> std::result::Result<(KeyPrefix, Option<Timestamp>), InvalidFields> {
        let mut violations = Violations::default();
        let prefix = match prefix {
            None => Some(self.format.default_prefix()),
            Some(prefix) => violations.take(self.format.issued_prefix(prefix)),
        };
        let expires_at = violations.take(resolve(expiry, now));
        violations.finish(prefix.cloned().zip(expires_at))
    }

    /// Replaces a key with a successor.
    ///
    /// # Errors
    /// Returns [`ServiceError::AlreadyApplied`] if an earlier request with the same id rotated the key.
    pub async fn rotate(&self, id: KeyId, request: RotateRequest, caller: &Caller) -> Result<RotatedKey> {
        let digest = request.request_id.as_ref().map(|it| caller.rotation(id, it));
        self.check_not_applied(digest.as_ref()).await?;
        for _ in 0..MAX_ATTEMPTS {
            let old = self.find(id).await?;
            check_grantable(caller, &old.scopes)?;
            let now = self.clock.now();
            let expires_at = resolve(request.expiry, now)?;
            let (identity, secret) = self.draw_successor(&old, now)?;
            let rotation = match Rotation::plan(&old, identity, request.overlap, expires_at, now) {
                Ok(rotation) => rotation,
                Err(rejection) => {
                    // A concurrent attempt of the same request may have rotated the key.
                    self.check_not_applied(digest.as_ref()).await?;
                    return Err(rejection.into());
                }
            };
            let context = ChangeContext { request: digest, ..caller.context(now) };
            match self.repository.rotate(rotation, &context).await {
                Ok(Rotation { replaced, successor }) => {
                    let record = KeyRecord { key: successor, last_used_at: None, as_of: now };
                    let replaced = self.changed_record(replaced).await;
                    return Ok(RotatedKey { issued: IssuedKey { record, secret }, replaced });
                }
                // Another request changed the key, or an earlier attempt of this one rotated it.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    self.check_not_applied(digest.as_ref()).await?;
                }
                Err(error) => return Err(self.of_retry(error, digest.as_ref()).await),
            }
        }
        Err(conflict())
    }

    /// Returns [`ServiceError::AlreadyApplied`] if an earlier attempt of `request` was applied.
    async fn check_not_applied(&self, request: Option<&RequestDigest>) -> Result<()> {
        let Some(request) = request else { return Ok(()) };
        match self.repository.key_of_request(request).await? {
            None => Ok(()),
            Some(id) => Err(ServiceError::AlreadyApplied(id)),
        }
    }

    /// Converts `error`, which may be caused by an earlier attempt of `request` that has just completed.
    async fn of_retry(&self, error: RepositoryError, request: Option<&RequestDigest>) -> ServiceError {
        if error.kind() == ErrorKind::AlreadyExists
            && let Err(applied @ ServiceError::AlreadyApplied(_)) = self.check_not_applied(request).await
        {
            return applied;
        }
        error.into()
    }

    /// Generates a secret and the identity that belongs to it.
    fn draw(&self, prefix: KeyPrefix, now: Timestamp) -> Result<(KeyIdentity, SecretKey)> {
        let secret = SecretKey::generate(&prefix, self.entropy.as_ref())?;
        let hash = secret.hash();
        let id = KeyId::generate(now, &hash, self.entropy.as_ref())?;
        Ok((KeyIdentity { id, hash, prefix }, secret))
    }

    /// Generates a secret and its identity until the hash is one that the backend can store with the related
    /// records.
    fn draw_fitting(
        &self,
        prefix: &KeyPrefix,
        now: Timestamp,
        is_fit: impl Fn(&KeyHash) -> bool,
    ) -> Result<(KeyIdentity, SecretKey)> {
        for _ in 0..MAX_DRAWS {
            let (identity, secret) = self.draw(prefix.clone(), now)?;
            if is_fit(&identity.hash) {
                return Ok((identity, secret));
            }
        }
        let problem = "found no random key that belongs to the shard of its predecessor";
        Err(RepositoryError::new(ErrorKind::Internal, problem).into())
    }

    /// Generates a successor of `old` that the backend can store together with it.
    fn draw_successor(&self, old: &ApiKey, now: Timestamp) -> Result<(KeyIdentity, SecretKey)> {
        let is_fit = |hash: &KeyHash| self.repository.can_rotate(&old.hash, hash);
        self.draw_fitting(&self.successor_prefix(old), now, is_fit)
    }

    /// Returns the prefix of the old key, or the default if keys are no longer issued with that prefix.
    fn successor_prefix(&self, old: &ApiKey) -> KeyPrefix {
        self.format.issued_prefix(old.prefix.as_str()).unwrap_or(self.format.default_prefix()).clone()
    }
}
