//! One change: a transaction with revisions of its own.

use std::collections::HashSet;
use std::sync::Arc;

use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, FromQueryResult as _,
    SqliteTransactionMode, Statement, StatementBuilder, TransactionOptions, TransactionTrait as _,
};

use super::error::from_db;
use super::query;
use super::row::{KeyRow, NewEvent};
use super::tables::Tables;
use crate::domain::{ApiKey, ChangeContext, ChangeKind, ChangedField, Entropy, KeyHash, KeyId, Revision};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// A transaction that holds the row of `revision_head` to its end. Dropped without [`Change::commit`], it is rolled back.
pub(super) struct Change {
    transaction: DatabaseTransaction,
    revision: Revision,
    tables: Arc<Tables>,
    entropy: Arc<dyn Entropy>,
}

impl Change {
    /// Begins a change and takes the next revision, behind all other writers.
    pub(super) async fn begin(
        writer: &DatabaseConnection,
        tables: Arc<Tables>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self> {
        // A deferred transaction of SQLite can fail when it turns from reading to writing.
        let immediate = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let transaction = writer.begin_with_options(immediate).await.map_err(from_db)?;
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
        self.find_row(id).await?.into_key()
    }

    async fn find_row(&self, id: KeyId) -> Result<KeyRow> {
        let found = self.transaction.query_one(&query::key_by_id(&self.tables, id)).await.map_err(from_db)?;
        let row = found.ok_or(ErrorKind::NotFound)?;
        KeyRow::from_query_result(&row, "").map_err(from_db)
    }

    /// Stores a new key and its event.
    pub(super) async fn insert(&mut self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        let key = ApiKey { revision: self.revision, ..key };
        self.execute(&query::insert_keys(&self.tables, std::slice::from_ref(&key))?).await?;
        self.record(&[self.event_of(&key, ChangeKind::Created, &[], context)?]).await?;
        Ok(key)
    }

    /// Stores those of `keys` whose id and hash are free, and their events. No other writer can take an id or a hash
    /// meanwhile: all of them stand behind this change.
    pub(super) async fn insert_many(
        &mut self,
        keys: Vec<ApiKey>,
        context: &ChangeContext,
    ) -> Result<Vec<Result<ApiKey>>> {
        let (mut ids, mut hashes) = self.taken(&keys).await?;
        let mut outcomes = Vec::new();
        let mut fresh = Vec::new();
        for key in keys {
            if !ids.insert(key.id) || !hashes.insert(key.hash) {
                outcomes.push(Err(ErrorKind::AlreadyExists.into()));
            } else {
                fresh.push(key.clone());
                outcomes.push(Ok(key));
            }
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
        self.execute(&query::insert_keys(&self.tables, &fresh)?).await?;
        let events = fresh.iter().map(|key| self.event_of(key, ChangeKind::Created, &[], context));
        self.record(&events.collect::<Result<Vec<_>>>()?).await?;
        Ok(outcomes)
    }

    async fn taken(&self, keys: &[ApiKey]) -> Result<(HashSet<KeyId>, HashSet<KeyHash>)> {
        let (mut ids, mut hashes) = (HashSet::new(), HashSet::new());
        for select in query::taken(&self.tables, keys) {
            for row in self.transaction.query_all(&select).await.map_err(from_db)? {
                ids.insert(KeyId::from_uuid(row.try_get_by_index(0).map_err(from_db)?));
                let hash: Vec<u8> = row.try_get_by_index(1).map_err(from_db)?;
                // A hash of another length is in nobody's way.
                if let Ok(hash) = hash.try_into() {
                    hashes.insert(KeyHash::from_bytes(hash));
                }
            }
        }
        Ok((ids, hashes))
    }

    /// Stores `key` over the record with its id, if that has the revision `expected`, and the event of that.
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
        let key = ApiKey { revision: self.revision, ..key };
        self.execute(&query::replace_key(&self.tables, &key)?).await?;
        let fields = stored.changed_fields(&key);
        self.record(&[self.event_of(&key, kind, &fields, context)?]).await?;
        Ok(key)
    }

    /// Removes the key and its usage, and writes the event of that. The row need not make a key any more: what is corrupt
    /// can be deleted.
    pub(super) async fn remove(
        &self,
        id: KeyId,
        expected: Option<Revision>,
        context: &ChangeContext,
    ) -> Result<()> {
        let row = self.find_row(id).await?;
        if expected.is_some_and(|expected| expected.get() != row.revision) {
            return Err(ErrorKind::Conflict.into());
        }
        for delete in query::delete_key(&self.tables, id) {
            self.execute(&delete).await?;
        }
        let event = NewEvent {
            revision: self.revision,
            nonce: self.nonce()?,
            key_id: row.id,
            hash: &row.hash,
            owner_id: &row.owner_id.0,
            kind: ChangeKind::Deleted,
            changed_fields: &[],
            context,
        };
        self.record(&[event]).await
    }

    fn event_of<'e>(
        &self,
        key: &'e ApiKey,
        kind: ChangeKind,
        changed_fields: &'e [ChangedField],
        context: &'e ChangeContext,
    ) -> Result<NewEvent<'e>> {
        Ok(NewEvent {
            revision: key.revision,
            nonce: self.nonce()?,
            key_id: key.id.as_uuid(),
            hash: key.hash.as_bytes(),
            owner_id: key.owner_id.as_str(),
            kind,
            changed_fields,
            context,
        })
    }

    fn nonce(&self) -> Result<u64> {
        let mut nonce = [0; 8];
        let drawn = self.entropy.fill(&mut nonce);
        drawn.map_err(|error| RepositoryError::new(ErrorKind::Internal, error))?;
        Ok(u64::from_ne_bytes(nonce))
    }

    async fn record(&self, events: &[NewEvent<'_>]) -> Result<()> {
        self.execute(&query::insert_events(&self.tables, events)?).await.map(drop)
    }

    async fn execute(&self, statement: &impl StatementBuilder) -> Result<u64> {
        Ok(self.transaction.execute(statement).await.map_err(from_db)?.rows_affected())
    }

    /// Makes the change last; returns its last revision.
    pub(super) async fn commit(self) -> Result<Revision> {
        if let Some(channel) = &self.tables.channel {
            // Told when the change is committed, and only then.
            let notify = "SELECT pg_notify($1, '')";
            let notify =
                Statement::from_sql_and_values(self.tables.backend, notify, [channel.as_str().into()]);
            self.transaction.execute_raw(notify).await.map_err(from_db)?;
        }
        self.transaction.commit().await.map_err(from_db)?;
        Ok(self.revision)
    }
}

/// The last revision that was given out.
pub(super) async fn read_head(
    connection: &impl sea_orm::ConnectionTrait,
    tables: &Tables,
) -> Result<Revision> {
    let row = connection.query_one(&query::head(tables)).await.map_err(from_db)?;
    let row = row.ok_or_else(|| RepositoryError::new(ErrorKind::Corrupt, "revision_head has no row"))?;
    row.try_get_by_index(0).map(Revision::new).map_err(from_db)
}
