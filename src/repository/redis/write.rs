//! Changes of keys. Each is one script on one shard.

use fred::types::{Key, Value};
use prost::bytes::Bytes;

use super::RedisRepository;
use super::keyspace::{Keyspace, Shard};
use super::record::{self, Index};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, KeyEvent, KeyHash, KeyId, OwnerId,
    RequestDigest, Revision, RevokeReason, Rotation, Timestamp,
};
use crate::repository::stored::corrupt;
use crate::repository::{ErrorKind, REQUEST_RETENTION, RepositoryError, Result, StoredEvent, StoredKey};

/// Maximum number of attempts of a change that conflicts with others.
const MAX_ATTEMPTS: usize = 64;
/// Maximum number of uses per script. A running script blocks all other commands.
pub(super) const USAGE_BATCH: usize = 200;

/// One step of a change.
struct Step<'k> {
    operation: Operation<'k>,
    event: String,
}

impl Step<'_> {
    /// Returns the id of the key that the step creates.
    fn created(&self) -> Option<KeyId> {
        match &self.operation {
            Operation::Create(key) => Some(key.id),
            Operation::Replace(..) | Operation::Delete(..) => None,
        }
    }

    /// Returns whether the step has to succeed even if the server's memory is full.
    fn is_urgent(&self) -> bool {
        match &self.operation {
            Operation::Create(_) => false,
            Operation::Replace(key, _) => key.revocation.is_some(),
            Operation::Delete(..) => true,
        }
    }

    /// Returns the names and the values of the step, in the order in which `change.lua` reads them.
    fn parameters(&self, names: &Keyspace, shard: Shard) -> Result<([Key; 4], [Value; 8])> {
        let index = match &self.operation {
            Operation::Create(key) | Operation::Replace(key, _) => Index::of(key),
            Operation::Delete(_, index, _) => (*index).clone(),
        };
        let (word, id, expected, body) = match &self.operation {
            Operation::Create(key) => ("create", key.id, Bytes::new(), StoredKey::new(key).to_json()?),
            Operation::Replace(key, Beginning(expected)) => {
                ("replace", key.id, expected.clone(), StoredKey::new(key).to_json()?)
            }
            Operation::Delete(id, _, expected) => {
                let expected = expected.map_or_else(Bytes::new, |expected| Beginning::of(expected).0);
                ("delete", *id, expected, String::new())
            }
        };
        let is_revoked = matches!(&self.operation, Operation::Create(key) if key.revocation.is_some());
        let touched = [
            names.record(&index.hash),
            names.id(id),
            names.owner(shard, &index.owner_id),
            names.revoked(&index.hash),
        ];
        let values = [
            Value::from(word),
            Value::Bytes(expected),
            Value::from(body),
            Value::Bytes(index.member.as_bytes().to_vec().into()),
            Value::from(index.to_text()),
            Value::from(id.to_string()),
            Value::from(self.event.as_str()),
            flag(is_revoked),
        ];
        Ok((touched.map(Key::from), values))
    }
}

/// Returns a flag as the scripts read it.
fn flag(is_set: bool) -> Value {
    Value::from(if is_set { "1" } else { "" })
}

/// The operation of a step.
enum Operation<'k> {
    Create(&'k ApiKey),
    /// Replaces the record that begins with these bytes.
    Replace(&'k ApiKey, Beginning),
    Delete(KeyId, &'k Index, Option<Revision>),
}

/// The first bytes of a stored record.
struct Beginning(Bytes);

impl Beginning {
    /// Returns the first bytes of a record with this revision.
    fn of(revision: Revision) -> Self {
        Self(format!("{} ", revision.get()).into())
    }
}

impl RedisRepository {
    /// Reads the index entry of an id. `None` if the key does not exist.
    pub(super) async fn index_of(&self, id: KeyId) -> Result<Option<Index>> {
        let stored: Option<String> = self.read_text(self.keyspace.id(id)).await?;
        stored.map(|stored| Index::parse(&stored)).transpose()
    }

    pub(super) async fn create_key(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let key = ApiKey { nonce: self.nonce()?, ..key };
        let careful = ChangeContext { may_revive: false, ..context.clone() };
        let revision = match self.try_create(&key, &[], &careful).await {
            // Try without the permission to revive first, so that the event records a revival only if there
            // is one.
            Err(error) if error.kind() == ErrorKind::RevokedHash && context.may_revive => {
                self.try_create(&key, &[ChangedField::Revocation], context).await?
            }
            outcome => outcome?,
        };
        Ok(ApiKey { revision, ..key })
    }

    async fn try_create(
        &self,
        key: &ApiKey,
        fields: &[ChangedField],
        context: &ChangeContext,
    ) -> Result<Revision> {
        let event = event(ChangeKind::Created, of(key), fields, context, key.nonce)?;
        let steps = [Step { operation: Operation::Create(key), event }];
        let [revision] = self.change(Shard::of_hash(&key.hash), &steps, context).await?;
        Ok(revision)
    }

    /// Returns the id of the key that `request` created.
    pub(super) async fn made_by(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let id: Option<String> = self.read_text(self.keyspace.request(request)).await?;
        id.map(|id| KeyId::parse("id", &id).map_err(|_| corrupt("malformed key id of an earlier request")))
            .transpose()
    }

    pub(super) async fn update_key(
        &self,
        key: ApiKey,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let stored = self.current(key.id, expected).await?;
        stored.check_update(&key)?;
        self.replace(&stored, key, ChangeKind::Updated, context).await
    }

    pub(super) async fn revoke_key(
        &self,
        id: KeyId,
        reason: RevokeReason,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        for _ in 0..MAX_ATTEMPTS {
            let stored = match self.existing(id).await {
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    match self.revoke_unreadable(id, &reason, context).await {
                        Err(error) if error.kind() == ErrorKind::Conflict => continue,
                        outcome => return outcome,
                    }
                }
                stored => stored?,
            };
            let Some(revoked) = stored.revoked(reason.clone(), context.now) else {
                return Ok(stored);
            };
            match self.replace(&stored, revoked, ChangeKind::Revoked, context).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                outcome => return outcome,
            }
        }
        Err(ErrorKind::Conflict.into())
    }

    /// Replaces an unreadable record by a revoked one, with the values from the index and the readable values
    /// of the record.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if the record was changed meanwhile, so that it may be readable.
    async fn revoke_unreadable(
        &self,
        id: KeyId,
        reason: &RevokeReason,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let index = self.index_of(id).await?.ok_or(ErrorKind::NotFound)?;
        let stored = self.stored(&index.hash).await?.ok_or(ErrorKind::NotFound)?;
        if record::parse(&stored).is_ok() {
            return Err(ErrorKind::Conflict.into());
        }
        let key = record::salvage(&stored, index.revoked_key(id, reason, context.now)?);
        let key = ApiKey { nonce: self.nonce()?, ..key };
        let event = event(ChangeKind::Revoked, of(&key), &[ChangedField::Revocation], context, key.nonce)?;
        let operation = Operation::Replace(&key, Beginning(stored));
        let [revision] = self.change(Shard::of_id(id), &[Step { operation, event }], context).await?;
        Ok(ApiKey { revision, ..key })
    }

    /// Deletes a key. If `expected` is set, only with this revision.
    pub(super) async fn delete_key(
        &self,
        id: KeyId,
        expected: Option<Revision>,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        for _ in 0..MAX_ATTEMPTS {
            let index = self.index_of(id).await?.ok_or(ErrorKind::NotFound)?;
            let nonce = self.nonce()?;
            let subject = (id, &index.hash, &index.owner_id);
            let event = event(ChangeKind::Deleted, subject, &[], context, nonce)?;
            let operation = Operation::Delete(id, &index, expected);
            match self.change(Shard::of_id(id), &[Step { operation, event }], context).await {
                Err(error) if error.kind() == ErrorKind::Conflict && expected.is_none() => {}
                outcome => return outcome.map(|[revision]| ChangeId::new(revision, nonce)),
            }
        }
        Err(ErrorKind::Conflict.into())
    }

    pub(super) async fn rotate_key(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let Rotation { replaced, successor } = rotation;
        if Shard::of_hash(&replaced.hash) != Shard::of_hash(&successor.hash) {
            return Err(RepositoryError::new(ErrorKind::Internal, "the successor belongs to another shard"));
        }
        let expected = replaced.revision;
        let stored = self.current(replaced.id, expected).await?;
        stored.check_update(&replaced)?;
        let fields = stored.changed_fields(&replaced);
        let replaced = ApiKey { nonce: self.nonce()?, ..replaced };
        let successor = ApiKey { nonce: self.nonce()?, ..successor };
        let steps = [
            Step {
                operation: Operation::Replace(&replaced, Beginning::of(expected)),
                event: event(ChangeKind::Rotated, of(&replaced), &fields, context, replaced.nonce)?,
            },
            Step {
                operation: Operation::Create(&successor),
                event: event(ChangeKind::Created, of(&successor), &[], context, successor.nonce)?,
            },
        ];
        let [old, new] = self.change(Shard::of_hash(&replaced.hash), &steps, context).await?;
        drop(steps);
        Ok(Rotation {
            replaced: ApiKey { revision: old, ..replaced },
            successor: ApiKey { revision: new, ..successor },
        })
    }

    /// Records uses of keys in one shard.
    pub(super) async fn record_usage_of(&self, shard: Shard, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let mut keys = vec![Key::from(self.keyspace.usage(shard))];
        let mut arguments = Vec::new();
        for (id, used_at) in usage {
            keys.push(self.keyspace.id(*id).into());
            arguments.push(Value::from(id.to_string()));
            arguments.push(Value::from(used_at.as_micros()));
        }
        self.connection.note(&self.scripts.usage, keys, arguments).await
    }

    async fn existing(&self, id: KeyId) -> Result<ApiKey> {
        let index = self.index_of(id).await?.ok_or(ErrorKind::NotFound)?;
        let key = self.find(&index.hash).await?.filter(|key| key.id == id);
        key.ok_or_else(|| ErrorKind::NotFound.into())
    }

    async fn current(&self, id: KeyId, expected: Revision) -> Result<ApiKey> {
        let stored = self.existing(id).await?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        Ok(stored)
    }

    /// Replaces `stored` by `next`, if `stored` is still the current record.
    async fn replace(
        &self,
        stored: &ApiKey,
        next: ApiKey,
        kind: ChangeKind,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let next = ApiKey { nonce: self.nonce()?, ..next };
        let event = event(kind, of(&next), &stored.changed_fields(&next), context, next.nonce)?;
        let operation = Operation::Replace(&next, Beginning::of(stored.revision));
        let [revision] =
            self.change(Shard::of_hash(&next.hash), &[Step { operation, event }], context).await?;
        Ok(ApiKey { revision, ..next })
    }

    /// Makes all of `steps` or none, and returns the revision of each.
    async fn change<const N: usize>(
        &self,
        shard: Shard,
        steps: &[Step<'_>; N],
        context: &ChangeContext,
    ) -> Result<[Revision; N]> {
        let names = &self.keyspace;
        let created = steps.iter().find_map(Step::created);
        // A change that creates no key has no request to store, but the script needs a name.
        let request = context.request.filter(|_| created.is_some());
        let request_name = request.map_or_else(|| names.head(shard), |request| names.request(&request));
        let mut keys: Vec<Key> =
            [names.head(shard), names.events(shard), names.all(shard), names.usage(shard), request_name]
                .map(Key::from)
                .into();
        let mut arguments = vec![
            Value::from(self.options.max_events_per_shard.to_string()),
            Value::from(names.channel()),
            Value::from(request.and(created).map_or_else(String::new, |id| id.to_string())),
            Value::from(REQUEST_RETENTION.as_millis().to_string()),
            flag(context.may_revive),
        ];
        for step in steps {
            let (names, values) = step.parameters(names, shard)?;
            keys.extend(names);
            arguments.extend(values);
        }
        let is_urgent = steps.iter().all(Step::is_urgent);
        let script = if is_urgent { &self.scripts.urgent } else { &self.scripts.change };
        let answer: Vec<String> = self.connection.change(shard, script, keys, arguments).await?;
        match answer.first().map(String::as_str) {
            Some("exists") => return Err(ErrorKind::AlreadyExists.into()),
            Some("revoked") => return Err(ErrorKind::RevokedHash.into()),
            Some("missing") => return Err(ErrorKind::NotFound.into()),
            Some("conflict") => return Err(ErrorKind::Conflict.into()),
            _ => {}
        }
        let revisions: Vec<_> =
            answer.iter().map(|text| record::parse_revision(text)).collect::<Result<_>>()?;
        revisions.try_into().map_err(|_| corrupt("too few revisions in the result of a change"))
    }

    fn nonce(&self) -> Result<u64> {
        Ok(ChangeId::draw_nonce(self.options.entropy.as_ref())?)
    }
}

fn event(
    kind: ChangeKind,
    key: (KeyId, &KeyHash, &OwnerId),
    fields: &[ChangedField],
    context: &ChangeContext,
    nonce: u64,
) -> Result<String> {
    let (key_id, hash, owner_id) = key;
    let event = KeyEvent {
        // The script assigns the revision, which is not part of the document.
        revision: Revision::NONE,
        nonce,
        key_id,
        hash: *hash,
        owner_id: owner_id.clone(),
        kind,
        changed_fields: fields.to_vec(),
        actor: context.actor.clone(),
        request_id: context.request_id.clone(),
        at: context.now,
    };
    StoredEvent::new(&event).to_json()
}

/// Returns the data of the key that an event contains.
fn of(key: &ApiKey) -> (KeyId, &KeyHash, &OwnerId) {
    (key.id, &key.hash, &key.owner_id)
}
