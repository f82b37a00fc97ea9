//! Keys in a SQL database, through SeaORM. This release speaks to SQLite.
//!
//! Every change is one transaction ([`change::Change`]) that first takes the next number of `revision_head` and holds it
//! to its commit, so the order of revisions is the order of commits; it writes the record and its event together.
//! Reads go through a pool of their own, so that they never wait for a writer.

mod change;
mod convert;
mod entity;
mod error;
mod query;
mod schema;
mod sqlite;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseConnection, EntityTrait as _, QueryFilter as _,
};

use self::change::Change;
use self::convert::{from_row, uuid_of};
use self::entity::{api_key, api_key_usage};
use self::error::from_db;
use self::sqlite::DatabaseFile;
use super::{ErrorKind, KeyRepository, KeyStream, PageRequest, RepositoryError, Result, pages};
use crate::domain::{
    ApiKey, ChangeContext, ChangeKind, Entropy, KeyFilter, KeyHash, KeyId, OwnerId, Revision, RevokeReason,
    Rotation, SystemEntropy, Timestamp,
};

/// How many ids one statement names: well below the 32,766 parameters that SQLite takes.
const BATCH: usize = 500;

/// How a [`SqlRepository`] behaves.
#[derive(Clone, Debug)]
pub struct SqlOptions {
    /// How long a call may take, waiting for a connection included.
    pub timeout: Duration,
    /// Where the nonces of events come from.
    pub entropy: Arc<dyn Entropy>,
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), entropy: Arc::new(SystemEntropy) }
    }
}

/// Keys in a SQL database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct SqlRepository {
    /// For reads.
    reader: DatabaseConnection,
    /// For writes; on SQLite one connection, since the database takes one writer at a time.
    writer: DatabaseConnection,
    options: SqlOptions,
    /// The file behind the connections.
    file: Arc<DatabaseFile>,
}

impl SqlRepository {
    /// The names of the migrations that the database lacks, oldest first. Changes nothing.
    pub async fn pending_migrations(&self) -> Result<Vec<String>> {
        self.within_deadline(schema::pending(&self.reader)).await
    }

    /// Applies all pending migrations and returns their names. It may take as long as it needs.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        schema::migrate(&self.writer).await
    }

    /// Closes the connections. Calls that come afterwards fail with [`ErrorKind::Unavailable`].
    pub async fn close(&self) -> Result<()> {
        self.reader.close_by_ref().await.map_err(from_db)?;
        self.writer.close_by_ref().await.map_err(from_db)
    }

    async fn within_deadline<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        match tokio::time::timeout(self.options.timeout, call).await {
            Ok(outcome) => outcome,
            Err(elapsed) => Err(RepositoryError::new(ErrorKind::Timeout, elapsed)),
        }
    }

    async fn begin(&self) -> Result<Change> {
        self.file.check()?;
        Change::begin(&self.writer, Arc::clone(&self.options.entropy)).await
    }
}

impl fmt::Display for SqlRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sql({})", self.file)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for SqlRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let row = api_key::Entity::find()
            .filter(api_key::Column::Hash.eq(hash.as_bytes().to_vec()))
            .one(&self.reader);
        self.within_deadline(async { row.await.map_err(from_db)?.map(from_row).transpose() }).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        let row = api_key::Entity::find_by_id(uuid_of(id)).one(&self.reader);
        self.within_deadline(async { row.await.map_err(from_db)?.map(from_row).transpose() }).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.within_deadline(async {
            let mut change = self.begin().await?;
            let created = change.insert(key).await?;
            change.record(ChangeKind::Created, convert::to_row(&created)?, &[], context).await?;
            change.commit().await?;
            Ok(created)
        })
        .await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.within_deadline(async {
            let change = self.begin().await?;
            let (updated, fields) = change.replace(key, expected).await?;
            change.record(ChangeKind::Updated, convert::to_row(&updated)?, &fields, context).await?;
            change.commit().await?;
            Ok(updated)
        })
        .await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<Revision> {
        self.within_deadline(async {
            let change = self.begin().await?;
            let deleted = change.remove(id).await?;
            change.record(ChangeKind::Deleted, deleted, &[], context).await?;
            change.commit().await
        })
        .await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        pages::stream_by_owner(self.clone(), owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        self.within_deadline(async {
            let change = self.begin().await?;
            let key = change.find(id).await?;
            // Left without a commit, the change is rolled back and no revision is used up.
            let Some(revoked) = key.revoked(reason, context.now) else {
                return Ok(key);
            };
            let (revoked, fields) = change.replace(revoked, key.revision).await?;
            change.record(ChangeKind::Revoked, convert::to_row(&revoked)?, &fields, context).await?;
            change.commit().await?;
            Ok(revoked)
        })
        .await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        self.within_deadline(async {
            let mut change = self.begin().await?;
            let expected = rotation.replaced.revision;
            let (replaced, fields) = change.replace(rotation.replaced, expected).await?;
            change.record(ChangeKind::Rotated, convert::to_row(&replaced)?, &fields, context).await?;
            change.next_revision().await?;
            let successor = change.insert(rotation.successor).await?;
            change.record(ChangeKind::Created, convert::to_row(&successor)?, &[], context).await?;
            change.commit().await?;
            Ok(Rotation { replaced, successor })
        })
        .await
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ApiKey>> {
        let rows = query::page(request).all(&self.reader);
        self.within_deadline(async { rows.await.map_err(from_db)?.into_iter().map(from_row).collect() }).await
    }

    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        for batch in usage.chunks(BATCH) {
            let statement = query::record_usage(batch)?;
            self.within_deadline(async { self.writer.execute(&statement).await.map_err(from_db) }).await?;
        }
        Ok(())
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let mut last_used = std::collections::HashMap::new();
        for batch in ids.chunks(BATCH) {
            let rows = api_key_usage::Entity::find()
                .filter(api_key_usage::Column::KeyId.is_in(batch.iter().copied().map(uuid_of)))
                .all(&self.reader);
            for row in self.within_deadline(async { rows.await.map_err(from_db) }).await? {
                last_used.insert(KeyId::from_uuid(row.key_id), convert::timestamp(row.last_used_at)?);
            }
        }
        Ok(ids.iter().map(|id| last_used.get(id).copied()).collect())
    }

    async fn ping(&self) -> Result<()> {
        self.file.check()?;
        self.within_deadline(async { query::head(&self.reader).await.map(drop) }).await
    }
}
