//! Issues and administers keys.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::{
    Caller, Expiry, IssuedKey, KeyRecord, KeyUpdate, ListRequest, ListedPage, ListedRecord, NewKey,
    Precondition, RotateRequest, RotatedKey, ServiceError,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, Clock, Entropy, InvalidField, KeyFilter, KeyFormat, KeyHash, KeyId,
    KeyIdentity, KeyPrefix, OwnerId, RequestDigest, Revision, RevokeReason, Rotation, Scope, ScopeSet,
    SecretKey, Timestamp,
};
use crate::repository::{
    AuditTrail, Backend, ErrorKind, EventPageRequest, KeyRepository, ListedEvent, ListedKey, PageRequest,
    RepositoryError, UsageStore,
    pages::{self, Stride},
};
use crate::telemetry::error_chain;

/// Maximum number of attempts of a change that conflicts with concurrent ones, if the caller expects no
/// revision.
const MAX_ATTEMPTS: usize = 16;
/// Maximum time for which the response to a completed change waits for the key's last use.
const USAGE_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum number of secrets to draw until one belongs to the required shard. One of 64 does on average, so
/// the limit is never reached in practice.
const MAX_DRAWS: usize = 10_000;
/// Maximum number of keys that one page looks at although the filter excludes them.
const MAX_HIDDEN: usize = 1_000;
/// Approximate number of bytes that a listing reads per step.
const LIST_STEP_BYTES: usize = 128 * 1024;

type Result<T> = std::result::Result<T, ServiceError>;

/// Issues keys and administers them.
#[derive(Clone, Debug)]
pub struct KeyStoreService {
    pub(super) repository: Arc<dyn KeyRepository>,
    audit: Option<Arc<dyn AuditTrail>>,
    pub(super) usage: Option<Arc<dyn UsageStore>>,
    format: Arc<KeyFormat>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl KeyStoreService {
    /// Creates a service that administers the keys of `backend`.
    pub fn new(
        backend: &Backend,
        format: Arc<KeyFormat>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        let (repository, audit) = (Arc::clone(&backend.keys), backend.audit.clone());
        Self { repository, audit, usage: backend.usage.clone(), format, clock, entropy }
    }

    /// Creates a key.
    ///
    /// # Errors
    /// Returns [`ServiceError::AlreadyApplied`] if an earlier request with the same id created a key.
    pub async fn create(&self, new: NewKey, caller: &Caller) -> Result<IssuedKey> {
        let request = new.request_id.as_ref().map(|id| caller.creation(id));
        self.check_not_applied(request.as_ref()).await?;
        check_grantable(caller, &new.scopes)?;
        let prefix = match &new.prefix {
            None => self.format.default_prefix().clone(),
            Some(prefix) => self.format.issued_prefix(prefix)?.clone(),
        };
        let now = self.clock.now();
        let expires_at = resolve(new.expiry, now)?;
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

    /// Returns a key.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id.
    pub async fn get(&self, id: KeyId) -> Result<KeyRecord> {
        let key = self.find(id).await?;
        let usage = self.last_uses(&[id]).await?;
        Ok(self.record(key, usage))
    }

    /// Reads a page of keys, newest first, of at most `request.limit` keys and about `max_bytes`. It looks at
    /// a bounded number of keys, so a page can have fewer keys, or none, although more follow.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] if the backend can't list the requested keys, or another error if it
    /// failed.
    pub async fn list(&self, request: &ListRequest, max_bytes: usize) -> Result<ListedPage> {
        let mut stride = Stride::new(LIST_STEP_BYTES);
        let mut step = PageRequest { owner_id: request.owner_id.clone(), after: request.after, limit: 0 };
        // One more than requested shows whether more keys follow.
        let wanted = request.limit + 1;
        let (mut listed, mut bytes, mut looked_at, mut is_over) = (Vec::new(), 0, 0, false);
        while !is_over && listed.len() < wanted && bytes < max_bytes && looked_at < wanted + MAX_HIDDEN {
            // Without a filter, every key that is read counts, so only the missing ones are read.
            let missing = wanted - listed.len();
            step.limit = if request.filter.is_all() { stride.rows().min(missing) } else { stride.rows() };
            let mut page = self.repository.list_page(&step).await?;
            let found = page.len();
            stride.fit(&mut page);
            looked_at += page.len();
            is_over = found < step.limit && page.len() == found;
            step.after = page.last().map(ListedKey::position).or(step.after);
            page.retain(|listed| pages::is_shown(&request.filter, listed));
            bytes += page.iter().map(pages::size).sum::<usize>();
            listed.extend(page);
        }
        let next = if listed.len() >= wanted {
            listed.truncate(request.limit);
            listed.last().map(ListedKey::position)
        } else {
            step.after.filter(|_| !is_over)
        };
        Ok(ListedPage { records: self.listed_records(listed).await?, next })
    }

    /// Reads a page of the audit trail, newest first.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotOffered`] if the backend has no audit trail, or another error if it failed.
    pub async fn events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        let audit = self.audit.as_ref().ok_or_else(|| RepositoryError::not_offered("an audit trail"))?;
        Ok(audit.list_events(request).await?)
    }

    /// Streams the keys of one owner or of all, newest first.
    #[must_use]
    pub fn stream(
        &self,
        owner_id: Option<OwnerId>,
        filter: KeyFilter,
    ) -> BoxStream<'static, Result<ListedRecord>> {
        let keys = match owner_id {
            Some(owner) => self.repository.list_by_owner(&owner, &filter),
            None => pages::stream_pages(Arc::clone(&self.repository), None, filter),
        };
        let chunks = stream::unfold((self.clone(), keys), |(service, mut keys)| async {
            let chunk = pages::next_chunk(&mut keys).await;
            if chunk.is_empty() {
                return None;
            }
            Some((stream::iter(service.records_of_chunk(chunk).await), (service, keys)))
        });
        chunks.flatten().boxed()
    }

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
                Err(refused) => {
                    // A concurrent attempt of the same request may have rotated the key.
                    self.check_not_applied(digest.as_ref()).await?;
                    return Err(refused.into());
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

    /// Revokes a key. The operation is idempotent. Revoking a revoked key changes nothing.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id. After another error, the key may have been
    /// revoked, unless the error is [unapplied](RepositoryError::is_unapplied).
    pub async fn revoke(&self, id: KeyId, reason: RevokeReason, caller: &Caller) -> Result<KeyRecord> {
        let key = self.repository.revoke(id, reason, &caller.context(self.clock.now())).await?;
        Ok(self.changed_record(key).await)
    }

    /// Deletes a key. If `expected` is set, deletes it only at this revision.
    ///
    /// # Errors
    /// Returns [`ErrorKind::NotFound`] if no key has this id, and [`ErrorKind::Conflict`] if the key has
    /// another revision than `expected`. After another error, the key may have been deleted, unless the error
    /// is [unapplied](RepositoryError::is_unapplied).
    pub async fn delete(&self, id: KeyId, expected: Option<Revision>, caller: &Caller) -> Result<()> {
        let context = caller.context(self.clock.now());
        match expected {
            None => self.repository.delete(id, &context).await?,
            Some(expected) => self.repository.delete_unchanged(id, expected, &context).await?,
        };
        Ok(())
    }

    /// Returns the current time, by which key states are determined.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn find(&self, id: KeyId) -> Result<ApiKey> {
        let key = self.repository.get(id).await?;
        key.ok_or_else(|| ServiceError::Repository(ErrorKind::NotFound.into()))
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

    /// Returns the record of a key that was just changed. The change is committed, so an unreadable last use
    /// is left out. An error would suggest that nothing was changed, and lose the secret of a successor.
    async fn changed_record(&self, key: ApiKey) -> KeyRecord {
        let ids = [key.id];
        let usage = match tokio::time::timeout(USAGE_TIMEOUT, self.last_uses(&ids)).await {
            Ok(Ok(usage)) => usage,
            Ok(Err(error)) => {
                tracing::warn!(error = %error_chain(&error), key = %key.id, "the last use of a changed key can't be read");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(key = %key.id, "the last use of a changed key could not be read in time");
                Vec::new()
            }
        };
        self.record(key, usage)
    }

    /// Returns the last use of each of `ids`, in the same order.
    async fn last_uses(&self, ids: &[KeyId]) -> crate::repository::Result<Vec<Option<Timestamp>>> {
        match &self.usage {
            Some(usage) => usage.usage(ids).await,
            None => Ok(vec![None; ids.len()]),
        }
    }

    fn record(&self, key: ApiKey, usage: Vec<Option<Timestamp>>) -> KeyRecord {
        KeyRecord { last_used_at: usage.into_iter().next().flatten(), as_of: self.clock.now(), key }
    }

    async fn listed_records(&self, listed: Vec<ListedKey>) -> Result<Vec<ListedRecord>> {
        let ids: Vec<_> = listed.iter().map(|it| it.position().id).collect();
        let usage = self.last_uses(&ids).await?;
        let as_of = self.clock.now();
        let record =
            |(listed, last_used_at): (ListedKey, _)| listed.map(|key| KeyRecord { key, last_used_at, as_of });
        Ok(listed.into_iter().zip(usage).map(record).collect())
    }

    async fn records_of_chunk(
        &self,
        chunk: Vec<crate::repository::Result<ListedKey>>,
    ) -> Vec<Result<ListedRecord>> {
        let mut keys = Vec::with_capacity(chunk.len());
        let mut failure = None;
        for key in chunk {
            match key {
                Ok(key) => keys.push(key),
                Err(error) => failure = Some(ServiceError::from(error)),
            }
        }
        match self.listed_records(keys).await {
            Ok(records) => records.into_iter().map(Ok).chain(failure.map(Err)).collect(),
            Err(error) => vec![Err(error)],
        }
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

fn resolve(expiry: Option<Expiry>, now: Timestamp) -> Result<Option<Timestamp>> {
    match expiry {
        None => Ok(None),
        Some(Expiry::At(instant)) => {
            check_future("expire_time", Some(instant), now)?;
            Ok(Some(instant))
        }
        Some(Expiry::After(ttl)) => {
            if ttl < Duration::from_micros(1) {
                return Err(InvalidField::new("ttl", "must be more than zero").into());
            }
            let end = now.checked_add(ttl);
            Ok(Some(end.ok_or_else(|| {
                InvalidField::new("ttl", "too long; the key must expire before the year 10000")
            })?))
        }
    }
}

fn check_future(field: &str, instant: Option<Timestamp>, now: Timestamp) -> Result<()> {
    if instant.is_some_and(|instant| instant <= now) {
        return Err(InvalidField::new(field, "must be in the future; to disable a key now, revoke it").into());
    }
    Ok(())
}

pub(super) fn check_grantable(caller: &Caller, scopes: &ScopeSet) -> Result<()> {
    match caller.first_not_grantable(scopes) {
        Some(scope) => Err(ServiceError::ScopeNotGrantable(scope.clone())),
        None => Ok(()),
    }
}

fn conflict() -> ServiceError {
    ServiceError::Repository(ErrorKind::Conflict.into())
}
