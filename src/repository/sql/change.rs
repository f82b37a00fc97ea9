//! One change: a transaction with a revision of its own.

use std::sync::Arc;

use sea_orm::sea_query::ExprTrait as _;
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, DatabaseConnection, DatabaseTransaction,
    EntityTrait as _, IntoActiveModel as _, QueryFilter as _, SqliteTransactionMode, TransactionOptions,
    TransactionTrait as _,
};

use super::convert::{from_row, to_row, to_write, uuid_of};
use super::entity::{api_key, key_event, revision_head};
use super::error::from_db;
use super::query;
use crate::domain::{ApiKey, ChangeContext, ChangeKind, ChangedField, Entropy, KeyId, Revision};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// A transaction that holds the row of `revision_head` to its end. Dropped without [`Change::commit`], it is rolled back.
pub(super) struct Change {
    transaction: DatabaseTransaction,
    revision: Revision,
    entropy: Arc<dyn Entropy>,
}

/// A transaction that takes SQLite's write lock at once: a deferred one can fail when it turns from reading to writing.
pub(super) fn immediate() -> TransactionOptions {
    TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    }
}

impl Change {
    /// Begins a change and takes the next revision, behind all other writers.
    pub(super) async fn begin(writer: &DatabaseConnection, entropy: Arc<dyn Entropy>) -> Result<Self> {
        let transaction = writer.begin_with_options(immediate()).await.map_err(from_db)?;
        let mut change = Self { transaction, revision: Revision::NONE, entropy };
        change.next_revision().await?;
        Ok(change)
    }

    /// Takes another revision, for the next record of this change.
    pub(super) async fn next_revision(&mut self) -> Result<()> {
        let next = revision_head::Column::Revision.into_expr().add(1);
        let updated = revision_head::Entity::update_many()
            .col_expr(revision_head::Column::Revision, next)
            .exec(&self.transaction)
            .await
            .map_err(from_db)?;
        if updated.rows_affected != 1 {
            return Err(RepositoryError::new(ErrorKind::Corrupt, "revision_head must have exactly one row"));
        }
        self.revision = query::head(&self.transaction).await?;
        Ok(())
    }

    pub(super) async fn find(&self, id: KeyId) -> Result<ApiKey> {
        from_row(self.find_row(id).await?)
    }

    async fn find_row(&self, id: KeyId) -> Result<api_key::Model> {
        let row = api_key::Entity::find_by_id(uuid_of(id)).one(&self.transaction).await.map_err(from_db)?;
        Ok(row.ok_or(ErrorKind::NotFound)?)
    }

    /// Stores a new key.
    pub(super) async fn insert(&mut self, key: ApiKey) -> Result<ApiKey> {
        let key = ApiKey { revision: self.revision, ..key };
        let row = to_row(&key)?.into_active_model();
        api_key::Entity::insert(row).exec_without_returning(&self.transaction).await.map_err(from_db)?;
        Ok(key)
    }

    /// Stores `key` over the record with its id, if that has the revision `expected`; says what differs.
    pub(super) async fn replace(
        &self,
        key: ApiKey,
        expected: Revision,
    ) -> Result<(ApiKey, Vec<ChangedField>)> {
        let stored = self.find(key.id).await?;
        if stored.revision != expected {
            return Err(ErrorKind::Conflict.into());
        }
        stored.check_update(&key)?;
        let key = ApiKey { revision: self.revision, ..key };
        to_write(to_row(&key)?).update(&self.transaction).await.map_err(from_db)?;
        let fields = stored.changed_fields(&key);
        Ok((key, fields))
    }

    /// Removes the key, and its usage by the foreign key; returns its row with the revision of its removal. The row need
    /// not make a key any more: what is corrupt can be deleted.
    pub(super) async fn remove(&self, id: KeyId) -> Result<api_key::Model> {
        let row = self.find_row(id).await?;
        api_key::Entity::delete_many()
            .filter(api_key::Column::Id.eq(uuid_of(id)))
            .exec(&self.transaction)
            .await
            .map_err(from_db)?;
        Ok(api_key::Model { revision: self.revision.get(), ..row })
    }

    /// Writes the event of the change of `row`, under its revision.
    pub(super) async fn record(
        &self,
        kind: ChangeKind,
        row: api_key::Model,
        fields: &[ChangedField],
        context: &ChangeContext,
    ) -> Result<()> {
        let mut nonce = [0; 8];
        let drawn = self.entropy.fill(&mut nonce);
        drawn.map_err(|error| RepositoryError::new(ErrorKind::Internal, error))?;
        let fields: Vec<_> = fields.iter().map(|field| field.as_str()).collect();
        let event = key_event::ActiveModel {
            revision: Set(row.revision),
            nonce: Set(i64::from_ne_bytes(nonce)),
            key_id: Set(row.id),
            hash: Set(row.hash),
            owner_id: Set(row.owner_id),
            kind: Set(kind.as_str().to_owned()),
            changed_fields: Set(fields.join(",")),
            actor: Set(context.actor.clone()),
            request_id: Set(context.request_id.clone()),
            created_at: Set(context.now.as_micros()),
        };
        let written = key_event::Entity::insert(event).exec_without_returning(&self.transaction).await;
        written.map_err(from_db).map(drop)
    }

    /// Makes the change last; returns its last revision.
    pub(super) async fn commit(self) -> Result<Revision> {
        self.transaction.commit().await.map_err(from_db)?;
        Ok(self.revision)
    }
}
