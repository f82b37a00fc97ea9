//! The keys of a SQL database.

use async_trait::async_trait;
use sea_orm::{ConnectionTrait as _, FromQueryResult as _};
use uuid::Uuid;

use super::error::from_db;
use super::row::{self, KeyRow};
use super::transaction::read_head;
use super::{SqlRepository, feed, lookup, operations, query};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation,
};
use crate::repository::{
    BackendIdentity, ErrorKind, KeyRepository, KeyStream, ListedKey, PageRequest, RepositoryError, Result,
    pages,
};

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for SqlRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        let found = self.find_many(std::slice::from_ref(hash)).await?;
        found.into_iter().next().unwrap_or(Ok(None))
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        let mut found = Vec::new();
        for hashes in hashes.chunks(lookup::MAX_HASHES) {
            found.extend(self.find_many(hashes).await?);
        }
        Ok(found)
    }

    fn supports_batching(&self) -> bool {
        true
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        let select = query::key_by_id(&self.tables, id);
        let row = self.read(|pool| {
            let select = &select;
            async move { pool.connection.query_one(select).await.map_err(from_db) }
        });
        let Some(row) = row.await? else {
            return Ok(None);
        };
        KeyRow::from_query_result(&row, "").map_err(from_db)?.into_key().map(Some)
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.write(operations::Create(key), context).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        self.write(operations::CreateMany(keys), context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.write(operations::Update { key, expected }, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.write(operations::Delete { id, expected: None }, context).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        self.write(operations::Delete { id, expected: Some(expected) }, context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        pages::stream_by_owner(self.clone(), owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        self.write(operations::Revoke { id, reason }, context).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        self.write(operations::Rotate(rotation), context).await
    }

    fn can_rotate(&self, _: &KeyHash, _: &KeyHash) -> bool {
        true
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let select = query::page(&self.tables, request);
        let rows = self.read_from(&self.lister, |pool| {
            let select = &select;
            async move { pool.query_limited(select).await }
        });
        let rows = rows.await?;
        rows.iter().map(row::listed_key).collect()
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        let select = query::key_of_request(&self.tables, request);
        let found: Option<Uuid> = self.read_value(&select).await?;
        Ok(found.map(KeyId::from_uuid))
    }

    fn can_create_for(&self, _: &RequestDigest, _: &KeyHash) -> bool {
        true
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        let select = query::identity(&self.tables);
        if let Some(identity) = self.read_value(&select).await? {
            return Ok(Some(BackendIdentity(identity)));
        }
        // Several replicas may do this at once. Only the first identity is stored.
        let drawn = BackendIdentity::draw(self.options.entropy.as_ref())?;
        self.write_once(&query::insert_identity(&self.tables, drawn.0)?).await?;
        Ok(self.read_value(&select).await?.map(BackendIdentity))
    }

    async fn check_changes(&self) -> Result<()> {
        if self.read(|pool| async move { feed::is_writable(&pool.connection).await }).await? {
            return Ok(());
        }
        Err(RepositoryError::new(ErrorKind::Unavailable, "the database is read-only"))
    }

    async fn ping(&self) -> Result<()> {
        self.database.check()?;
        self.read(|pool| async move {
            // Read the keys, too, because row-level security can hide only them.
            let any = query::any_key(&self.tables);
            pool.connection.query_one(&any).await.map_err(from_db)?;
            read_head(&pool.connection, &self.tables).await.map(drop)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        let mut outcome = Ok(());
        for pool in [&self.reader, &self.writer, &self.lister] {
            outcome = outcome.and(pool.connection.close_by_ref().await.map_err(from_db));
        }
        outcome
    }
}
