//! The change feed, the audit trail and the last uses of a SQL database.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use sea_orm::ConnectionTrait as _;

use super::error::from_db;
use super::{SqlRepository, feed, postgres, query};
use crate::domain::{KeyId, Timestamp};
use crate::repository::stored::timestamp;
use crate::repository::{
    AuditTrail, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition, ListedEvent, RecentChanges,
    RepositoryError, Result, UsageStore,
};

/// Maximum number of ids per statement, below SQLite's limit of 500 rows in a list.
const BATCH: usize = 400;

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeFeed for SqlRepository {
    fn partitions(&self) -> u8 {
        1
    }

    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        if let Err(replaced) = self.database.check() {
            // Events of the other file must not be applied any more.
            return Err(RepositoryError::new(ErrorKind::PositionLost, replaced));
        }
        let tables = &self.tables;
        self.read_primary(|pool| async move {
            feed::of_the_primary(&pool, tables, async |primary| {
                feed::changes(primary, tables, after, limit).await
            })
            .await
        })
        .await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        let tables = &self.tables;
        self.read_primary(|pool| async move {
            feed::of_the_primary(&pool, tables, async |primary| {
                feed::recent_changes(primary, tables, limit).await
            })
            .await
        })
        .await
    }

    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        let channel = self.tables.channel.clone()?;
        Some(postgres::wake_ups(self.listening_server()?, &self.options, channel))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditTrail for SqlRepository {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.read_from(&self.lister, |pool| async move { feed::page(&pool, &self.tables, request).await })
            .await
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        let mut pruned = 0;
        loop {
            let batch = feed::prune_batch(&self.writer, &self.tables, before);
            match self.within_deadline(&self.writer, batch).await? {
                None | Some(0) => break,
                Some(deleted) => pruned += deleted,
            }
        }
        Ok(pruned)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl UsageStore for SqlRepository {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        for batch in usage.chunks(BATCH) {
            let statement = query::record_usage(&self.tables, batch)?;
            self.write_once(&statement).await?;
        }
        Ok(())
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let mut last_used = HashMap::new();
        for batch in ids.chunks(BATCH) {
            let select = query::usage(&self.tables, batch);
            let rows = self.read(|pool| {
                let select = &select;
                async move { pool.connection.query_all(select).await.map_err(from_db) }
            });
            for row in rows.await? {
                let id = KeyId::from_uuid(row.try_get_by_index(0).map_err(from_db)?);
                let used_at = row.try_get_by_index(1).map_err(from_db)?;
                last_used.insert(id, timestamp("last_used_at", used_at)?);
            }
        }
        Ok(ids.iter().map(|id| last_used.get(id).copied()).collect())
    }
}
