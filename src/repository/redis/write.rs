//! The changes of keys: each is one script on one shard.

use fred::types::{Key, Value};

use super::RedisRepository;
use super::error::from_fred;
use super::keyspace::Shard;
use super::record::{self, Index, corrupt};
use super::stored_event::StoredEvent;
use crate::domain::{
    ApiKey, ChangeContext, ChangeKind, ChangedField, KeyHash, KeyId, OwnerId, Revision, RevokeReason,
    Rotation, Timestamp,
};
use crate::repository::{ErrorKind, RepositoryError, Result};
use fred::interfaces::KeysInterface as _;

/// How often a change that lost against another one is tried anew.
const MAX_ATTEMPTS: usize = 64;
/// How many uses one script records: a script holds up all others.
pub(super) const USAGE_BATCH: usize = 200;

/// A part of a change.
struct Step<'k> {
    what: What<'k>,
    event: String,
}

enum What<'k> {
    Create(&'k ApiKey),
    Replace(&'k ApiKey, Revision),
    Delete(KeyId, &'k Index, Option<Revision>),
}

impl RedisRepository {
    /// What the id of a key leads to.
    pub(super) async fn index_of(&self, id: KeyId) -> Result<Option<Index>> {
        let stored: Option<String> =
            self.connection.reads().get(self.keyspace.id(id)).await.map_err(from_fred)?;
        stored.map(|stored| Index::parse(&stored)).transpose()
    }

    pub(super) async fn create_key(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let event = self.event(ChangeKind::Created, of(&key), &[], context)?;
        let steps = [Step { what: What::Create(&key), event }];
        let [revision] = self.change(Shard::of_hash(&key.hash), &steps).await?;
        Ok(ApiKey { revision, ..key })
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
            let stored = self.existing(id).await?;
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

    /// Deletes a key: of whatever revision, or of `expected` alone.
    pub(super) async fn delete_key(
        &self,
        id: KeyId,
        expected: Option<Revision>,
        context: &ChangeContext,
    ) -> Result<Revision> {
        for _ in 0..MAX_ATTEMPTS {
            let index = self.index_of(id).await?.ok_or(ErrorKind::NotFound)?;
            let event = self.event(ChangeKind::Deleted, (id, &index.hash, &index.owner_id), &[], context)?;
            let what = What::Delete(id, &index, expected);
            match self.change(Shard::of_id(id), &[Step { what, event }]).await {
                Err(error) if error.kind() == ErrorKind::Conflict && expected.is_none() => {}
                outcome => return outcome.map(|[revision]| revision),
            }
        }
        Err(ErrorKind::Conflict.into())
    }

    pub(super) async fn rotate_key(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        let Rotation { replaced, successor } = rotation;
        if Shard::of_hash(&replaced.hash) != Shard::of_hash(&successor.hash) {
            return Err(RepositoryError::new(ErrorKind::Internal, "a successor for another shard"));
        }
        let expected = replaced.revision;
        let stored = self.current(replaced.id, expected).await?;
        stored.check_update(&replaced)?;
        let fields = stored.changed_fields(&replaced);
        let steps = [
            Step {
                what: What::Replace(&replaced, expected),
                event: self.event(ChangeKind::Rotated, of(&replaced), &fields, context)?,
            },
            Step {
                what: What::Create(&successor),
                event: self.event(ChangeKind::Created, of(&successor), &[], context)?,
            },
        ];
        let [old, new] = self.change(Shard::of_hash(&replaced.hash), &steps).await?;
        drop(steps);
        Ok(Rotation {
            replaced: ApiKey { revision: old, ..replaced },
            successor: ApiKey { revision: new, ..successor },
        })
    }

    /// Records uses of keys of one shard.
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

    /// Stores `next` over `stored`, if that is still there.
    async fn replace(
        &self,
        stored: &ApiKey,
        next: ApiKey,
        kind: ChangeKind,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let event = self.event(kind, of(&next), &stored.changed_fields(&next), context)?;
        let what = What::Replace(&next, stored.revision);
        let [revision] = self.change(Shard::of_hash(&next.hash), &[Step { what, event }]).await?;
        Ok(ApiKey { revision, ..next })
    }

    /// Does all of `steps` or nothing; returns the revision of each.
    async fn change<const N: usize>(&self, shard: Shard, steps: &[Step<'_>; N]) -> Result<[Revision; N]> {
        let names = &self.keyspace;
        let mut keys: Vec<Key> =
            [names.head(shard), names.events(shard), names.all(shard), names.usage(shard)]
                .map(Key::from)
                .into();
        let mut arguments =
            vec![Value::from(self.options.max_events_per_shard.to_string()), Value::from(names.channel())];
        for Step { what, event } in steps {
            let index = match what {
                What::Create(key) | What::Replace(key, _) => Index::of(key),
                What::Delete(_, index, _) => (*index).clone(),
            };
            let (word, id, expected, body) = match what {
                What::Create(key) => ("create", key.id, String::new(), record::body(key)?),
                What::Replace(key, expected) => {
                    ("replace", key.id, expected.get().to_string(), record::body(key)?)
                }
                What::Delete(id, _, expected) => {
                    let expected = expected.map_or_else(String::new, |expected| expected.get().to_string());
                    ("delete", *id, expected, String::new())
                }
            };
            let touched = [names.record(&index.hash), names.id(id), names.owner(shard, &index.owner_id)];
            keys.extend(touched.map(Key::from));
            arguments.extend([
                Value::from(word),
                Value::from(expected),
                Value::from(body),
                Value::Bytes(index.member.as_bytes().to_vec().into()),
                Value::from(index.to_text()),
                Value::from(id.to_string()),
                Value::from(event.as_str()),
            ]);
        }
        let answer: Vec<String> =
            self.connection.change(shard, &self.scripts.change, keys, arguments).await?;
        match answer.first().map(String::as_str) {
            Some("exists") => return Err(ErrorKind::AlreadyExists.into()),
            Some("missing") => return Err(ErrorKind::NotFound.into()),
            Some("conflict") => return Err(ErrorKind::Conflict.into()),
            _ => {}
        }
        let revisions: Vec<_> =
            answer.iter().map(|text| record::parse_revision(text)).collect::<Result<_>>()?;
        revisions.try_into().map_err(|_| corrupt("a change that was answered with too few revisions"))
    }

    fn event(
        &self,
        kind: ChangeKind,
        key: (KeyId, &KeyHash, &OwnerId),
        fields: &[ChangedField],
        context: &ChangeContext,
    ) -> Result<String> {
        let mut nonce = [0; 8];
        let internal = |error| RepositoryError::new(ErrorKind::Internal, error);
        self.options.entropy.fill(&mut nonce).map_err(internal)?;
        let event = StoredEvent::new(kind, key, fields, context, u64::from_ne_bytes(nonce));
        serde_json::to_string(&event).map_err(|error| RepositoryError::new(ErrorKind::Internal, error))
    }
}

/// What an event says of the key itself.
fn of(key: &ApiKey) -> (KeyId, &KeyHash, &OwnerId) {
    (key.id, &key.hash, &key.owner_id)
}
