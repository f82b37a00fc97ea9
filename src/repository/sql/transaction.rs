//! The transaction of a change, with its revisions.

use std::collections::HashSet;
use std::sync::Arc;

use sea_orm::sea_query::SelectStatement;
use sea_orm::{
    ConnectionTrait as _, DatabaseTransaction, FromQueryResult as _, QueryResult, Statement, StatementBuilder,
};

use super::error::from_db;
use super::pool::Pool;
use super::query;
use super::row::{KeyRow, KeyStub, NewEvent};
use super::tables::Tables;
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, ChangeKind, ChangedField, Entropy, KeyHash, KeyId, Revision,
    RevokeReason, Timestamp,
};
use crate::repository::{ErrorKind, REQUEST_RETENTION, RepositoryError, Result};

/// A transaction that locks the row of `revision_head` until it ends. It is rolled back if it is dropped
/// without [`ChangeTransaction::commit`].
pub(super) struct ChangeTransaction {
    transaction: DatabaseTransaction,
    revision: Revision,
    tables: Arc<Tables>,
    entropy: Arc<dyn Entropy>,
}

impl ChangeTransaction {
    /// Begins a change and takes the next revision. Waits for all earlier writers.
    pub(super) async fn begin(writer: &Pool, tables: Arc<Tables>, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let transaction = writer.begin_changes().await?;
        let mut change = Self { transaction, revision: Revision::NONE, tables, entropy };
        change.next_revision().await?;
        Ok(change)
    }

    /// Takes another revision, for the next record of this change.
    pub(super) async fn next_revision(&mut self) -> Result<()> {
        self.advance(1).await
    }

    async fn advance(&mut self, count: i64) -> Result<()> {
        let updated = self.execute(&query::advance_head(&self.tables, count)).await?;
        if updated != 1 {
            return Err(RepositoryError::new(ErrorKind::Corrupt, "revision_head must have exactly one row"));
        }
        self.revision = read_head(&self.transaction, &self.tables).await?;
        Ok(())
    }

    pub(super) async fn find(&self, id: KeyId) -> Result<ApiKey> {
        let row = self.row(&query::key_by_id(&self.tables, id)).await?;
        KeyRow::from_query_result(&row, "").map_err(from_db)?.into_key()
    }

    /// Reads the identifying columns of a record, which may be readable even if the rest is not.
    async fn find_stub(&self, id: KeyId) -> Result<KeyStub> {
        let row = self.row(&query::key_stub(&self.tables, id)).await?;
        KeyStub::read(&row)
    }

    async fn row(&self, select: &SelectStatement) -> Result<QueryResult> {
        let found = self.transaction.query_one(select).await.map_err(from_db)?;
        found.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Stores a new key and its event.
    pub(super) async fn insert(&mut self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let key = ApiKey { revision: self.revision, nonce: self.nonce()?, ..key };
        let revoked = self.revoked_hashes(std::slice::from_ref(&key)).await?;
        let fields = Self::revive(&key, &revoked, context)?;
        if let Some(request) = context.request {
            let forgotten = context.now.checked_sub(REQUEST_RETENTION).unwrap_or(Timestamp::MIN);
            self.execute(&query::delete_requests(&self.tables, forgotten)).await?;
            self.execute(&query::insert_request(&self.tables, &request, &key, context.now)?).await?;
        }
        if !fields.is_empty() {
            self.execute(&query::forget_revoked(&self.tables, &key.hash)).await?;
        }
        self.execute(&query::insert_keys(&self.tables, std::slice::from_ref(&key))?).await?;
        self.record(&[event_of(&key, ChangeKind::Created, fields, context)]).await?;
        Ok(key)
    }

    /// Returns the hashes among `keys` that belonged to keys that were revoked and deleted.
    async fn revoked_hashes(&self, keys: &[ApiKey]) -> Result<HashSet<KeyHash>> {
        let select = query::revoked_among(&self.tables, keys);
        let rows = self.transaction.query_all(&select).await.map_err(from_db)?;
        let mut revoked = HashSet::new();
        for row in rows {
            let hash: Vec<u8> = row.try_get_by_index(0).map_err(from_db)?;
            revoked.extend(KeyHash::from_slice(&hash));
        }
        Ok(revoked)
    }

    /// Returns the fields that the creation of `key` changes in addition, which is the revocation if it
    /// revives a revoked hash.
    fn revive(
        key: &ApiKey,
        revoked: &HashSet<KeyHash>,
        context: &ChangeContext,
    ) -> Result<&'static [ChangedField]> {
        if key.revocation.is_some() || !revoked.contains(&key.hash) {
            return Ok(&[]);
        }
        if context.may_revive { Ok(&[ChangedField::Revocation]) } else { Err(ErrorKind::RevokedHash.into()) }
    }

    /// Stores the keys whose id and hash are not in use, and their events. Other writers can't use an id or a
    /// hash meanwhile, because they wait for this change.
    pub(super) async fn insert_many(
        &mut self,
        keys: Vec<ApiKey>,
        context: &ChangeContext,
    ) -> Result<Vec<Result<ApiKey>>> {
        let (mut ids, mut hashes) = self.taken(&keys).await?;
        let revoked = self.revoked_hashes(&keys).await?;
        let mut outcomes = Vec::new();
        let mut fresh = Vec::new();
        let mut fields = Vec::new();
        for key in keys {
            let is_taken = ids.contains(&key.id) || hashes.contains(&key.hash);
            let changed = if is_taken {
                Err(ErrorKind::AlreadyExists.into())
            } else {
                Self::revive(&key, &revoked, context)
            };
            outcomes.push(match changed {
                Ok(changed) => {
                    ids.insert(key.id);
                    hashes.insert(key.hash);
                    let key = ApiKey { nonce: self.nonce()?, ..key };
                    fresh.push(key.clone());
                    fields.push(changed);
                    Ok(key)
                }
                Err(error) => Err(error),
            });
        }
        let first = self.revision.get();
        match i64::try_from(fresh.len()) {
            Ok(0) => return Ok(outcomes),
            Ok(1) => {}
            Ok(count) => self.advance(count - 1).await?,
            Err(error) => return Err(RepositoryError::new(ErrorKind::Internal, error)),
        }
        let stored = outcomes.iter_mut().flatten();
        for ((revision, key), stored) in (first..).zip(&mut fresh).zip(stored) {
            key.revision = Revision::new(revision);
            stored.revision = key.revision;
        }
        for (key, changed) in fresh.iter().zip(&fields) {
            if !changed.is_empty() {
                self.execute(&query::forget_revoked(&self.tables, &key.hash)).await?;
            }
        }
        self.execute(&query::insert_keys(&self.tables, &fresh)?).await?;
        let created = fresh.iter().zip(fields);
        let events: Vec<_> =
            created.map(|(key, changed)| event_of(key, ChangeKind::Created, changed, context)).collect();
        self.record(&events).await?;
        Ok(outcomes)
    }

    async fn taken(&self, keys: &[ApiKey]) -> Result<(HashSet<KeyId>, HashSet<KeyHash>)> {
        let (mut ids, mut hashes) = (HashSet::new(), HashSet::new());
        for select in query::taken(&self.tables, keys) {
            for row in self.transaction.query_all(&select).await.map_err(from_db)? {
                ids.insert(KeyId::from_uuid(row.try_get_by_index(0).map_err(from_db)?));
                let hash: Vec<u8> = row.try_get_by_index(1).map_err(from_db)?;
                // A hash of another length can't conflict with any key.
                hashes.extend(KeyHash::from_slice(&hash));
            }
        }
        Ok((ids, hashes))
    }

    /// Replaces the record with the key's id if it has the revision `expected`, and stores the event.
    pub(super) async fn replace(
        &self,
        key: ApiKey,
        expected: Revision,
        kind: ChangeKind,
        context: &ChangeContext,
    ) -> Result<ApiKey> {
        let stored = self.find(key.id).await?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(&key)?;
        let key = ApiKey { revision: self.revision, nonce: self.nonce()?, ..key };
        self.execute(&query::replace_key(&self.tables, &key)?).await?;
        let fields = stored.changed_fields(&key);
        self.record(&[event_of(&key, kind, &fields, context)]).await?;
        Ok(key)
    }

    /// Revokes a record that can't be read, and leaves all its other columns unchanged. Returns the key with
    /// defaults in place of invalid values, and whether the record was changed.
    pub(super) async fn revoke_unreadable(
        &self,
        id: KeyId,
        reason: &RevokeReason,
        context: &ChangeContext,
    ) -> Result<(ApiKey, bool)> {
        let stub = self.find_stub(id).await?;
        if stub.revoked_at.is_some() {
            return Ok((stub.into_key(reason)?, false));
        }
        let change = ChangeId::new(self.revision, self.nonce()?);
        let revoked = KeyStub {
            revision: change.revision.get(),
            nonce: Some(change.nonce.cast_signed()),
            revoked_at: Some(context.now.as_micros()),
            ..stub
        };
        self.execute(&query::revoke_stub(&self.tables, &revoked, reason)).await?;
        let fields = [ChangedField::Revocation];
        self.record(&[event_of_stub(&revoked, change, ChangeKind::Revoked, &fields, context)]).await?;
        Ok((revoked.into_key(reason)?, true))
    }

    /// Deletes the key and its usage, and stores the event. The record need not be readable, so corrupt
    /// records can be deleted.
    pub(super) async fn remove(
        &self,
        id: KeyId,
        expected: Option<Revision>,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        let row = self.find_stub(id).await?;
        if expected.is_some_and(|expected| expected.get() != row.revision) {
            return Err(ErrorKind::Conflict.into());
        }
        if row.revoked_at.is_some() {
            self.execute(&query::remember_revoked(&self.tables, &row.hash, context.now)?).await?;
        }
        for delete in query::delete_key(&self.tables, id) {
            self.execute(&delete).await?;
        }
        let change = ChangeId::new(self.revision, self.nonce()?);
        self.record(&[event_of_stub(&row, change, ChangeKind::Deleted, &[], context)]).await?;
        Ok(change)
    }

    fn nonce(&self) -> Result<u64> {
        Ok(ChangeId::draw_nonce(self.entropy.as_ref())?)
    }

    async fn record(&self, events: &[NewEvent<'_>]) -> Result<()> {
        self.execute(&query::insert_events(&self.tables, events)?).await.map(drop)
    }

    async fn execute(&self, statement: &impl StatementBuilder) -> Result<u64> {
        Ok(self.transaction.execute(statement).await.map_err(from_db)?.rows_affected())
    }

    /// Commits the change, which is durable when this returns.
    pub(super) async fn commit(self) -> Result<()> {
        if let Some(channel) = &self.tables.channel {
            // PostgreSQL delivers the notification if and when the transaction commits.
            let notify = "SELECT pg_notify($1, '')";
            let notify =
                Statement::from_sql_and_values(self.tables.backend, notify, [channel.as_str().into()]);
            self.transaction.execute_raw(notify).await.map_err(from_db)?;
        }
        self.transaction.commit().await.map_err(from_db)
    }
}

/// Returns the event of the change that resulted in `key`.
fn event_of<'e>(
    key: &'e ApiKey,
    kind: ChangeKind,
    changed_fields: &'e [ChangedField],
    context: &'e ChangeContext,
) -> NewEvent<'e> {
    NewEvent {
        revision: key.revision,
        nonce: key.nonce,
        key_id: key.id.as_uuid(),
        hash: key.hash.as_bytes(),
        owner_id: key.owner_id.as_str(),
        kind,
        changed_fields,
        context,
    }
}

/// Returns the event of `change`, of a key that need not be readable.
fn event_of_stub<'e>(
    key: &'e KeyStub,
    change: ChangeId,
    kind: ChangeKind,
    changed_fields: &'e [ChangedField],
    context: &'e ChangeContext,
) -> NewEvent<'e> {
    NewEvent {
        revision: change.revision,
        nonce: change.nonce,
        key_id: key.id,
        hash: &key.hash,
        owner_id: &key.owner_id.0,
        kind,
        changed_fields,
        context,
    }
}

/// Returns the last revision that was assigned.
pub(super) async fn read_head(
    connection: &impl sea_orm::ConnectionTrait,
    tables: &Tables,
) -> Result<Revision> {
    let row = connection.query_one(&query::head(tables)).await.map_err(from_db)?;
    let row = row.ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "revision_head has no row"))?;
    row.try_get_by_index(0).map(Revision::new).map_err(from_db)
}
