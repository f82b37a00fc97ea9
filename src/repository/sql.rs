//! Keys in a SQL database, through SeaORM: SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! Every change is one transaction ([`change::Change`]). It first takes the next revision from the row of
//! `revision_head`, which it locks until it commits, so the order of revisions is the order of commits. It
//! writes the record and its event together. Reads use a pool of their own, so that they never wait for a
//! writer.

mod change;
mod error;
#[cfg(feature = "conformance")]
#[cfg(feature = "test-support")]
mod explain;
mod feed;
mod lookup;
mod mysql;
mod options;
mod place;
mod pool;
mod postgres;
mod query;
mod row;
mod schema;
mod sqlite;
mod tables;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use sea_orm::sea_query::SelectStatement;
use sea_orm::{ConnectionTrait as _, FromQueryResult as _, StatementBuilder, TryGetable};
use uuid::Uuid;

use self::change::{Change, read_head};
use self::error::{Remedy, from_db, remedy};
use self::lookup::LookupStatements;
use self::place::{Place, Pool, Purpose};
use self::row::KeyRow;
use self::tables::Tables;
use self::write::Write;
use super::stored::timestamp;
use super::{
    AuditTrail, ChangeFeed, Changes, ErrorKind, EventPageRequest, FeedPosition, KeyRepository, KeyStream,
    ListedEvent, ListedKey, PageRequest, RecentChanges, RepositoryError, Result, StoreIdentity, UsageStore,
    pages,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};

use crate::telemetry::error_chain;

pub use self::options::{PoolOptions, SqlOptions};

/// Maximum number of ids per statement, below SQLite's limit of 500 rows in a list.
const BATCH: usize = 400;
/// Maximum number of attempts of a change that the database rolled back because of a conflict.
const MAX_ATTEMPTS: usize = 5;

/// Stores keys in a SQL database. Clones share its connections.
#[derive(Clone, Debug)]
pub struct SqlRepository {
    reader: Pool,
    /// A single connection on SQLite, which supports one writer at a time.
    writer: Pool,
    /// The pool for listings, which may belong to a replica.
    lister: Pool,
    tables: Arc<Tables>,
    lookups: Arc<LookupStatements>,
    options: Arc<SqlOptions>,
    place: Place,
}

impl SqlRepository {
    /// Opens the database of `url`: `sqlite://FILE`, `postgres://…` or `mysql://…` (also for MariaDB).
    /// [`SqlRepository::migrate`] creates its tables.
    ///
    /// # Errors
    /// - [`ErrorKind::Refused`] if the URL can't be used.
    /// - [`ErrorKind::Unavailable`] if the database can't be reached.
    /// - [`ErrorKind::Corrupt`] if a file is not a database.
    ///
    /// Errors contain no part of the URL.
    pub async fn open(url: &str, options: SqlOptions) -> Result<Self> {
        Self::open_place(Place::parse(url)?, options).await
    }

    /// Opens the SQLite database in the file `path`. The file is created with mode 0600 if it does not exist.
    /// Its folder has to exist.
    ///
    /// # Errors
    /// The errors of [`SqlRepository::open`].
    pub async fn open_sqlite(path: &Path, options: SqlOptions) -> Result<Self> {
        let file = sqlite::DatabaseFile::create(path.to_owned())?;
        Self::open_place(Place::Sqlite(Arc::new(file)), options).await
    }

    async fn open_place(place: Place, options: SqlOptions) -> Result<Self> {
        place.probe(&options).await?;
        let writer = place.pool(Purpose::Changes, &options).await?;
        let reader = place.pool(Purpose::Reads, &options).await?;
        let tables = Tables::new(&options.names, reader.connection.get_database_backend());
        let lookups = LookupStatements::new(&tables);
        Ok(Self {
            lister: reader.clone(),
            reader,
            writer,
            tables: Arc::new(tables),
            lookups: Arc::new(lookups),
            options: Arc::new(options),
            place,
        })
    }

    /// Reads listings (pages of keys and of events, and streams) from the replica of `url`. The replica may
    /// lag behind, and may be unreachable at startup. Everything else, in particular validation, uses the
    /// primary.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] if the URL can't be used or the replica is another kind of database. Errors
    /// contain no part of the URL.
    pub async fn with_replica(self, url: &str) -> Result<Self> {
        let replica = Place::parse(url)?;
        match replica.probe(&self.options).await {
            // Startup must not depend on the replica. It only serves listings, which fail until it is
            // available.
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                tracing::warn!(error = %error_chain(&error), "can't reach the read replica for listings (store.replica_url)");
            }
            reached => reached?,
        }
        let lister = replica.pool(Purpose::Reads, &self.options).await?;
        if lister.connection.get_database_backend() != self.tables.backend {
            return Err(RepositoryError::new(
                ErrorKind::Refused,
                "store.replica_url: the replica is a different kind of database than the primary",
            ));
        }
        Ok(Self { lister, ..self })
    }

    async fn within_deadline<T>(
        &self,
        pool: &Pool,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let mut call = pin!(call);
        match tokio::time::timeout(self.options.timeout, &mut call).await {
            Ok(outcome) => {
                if let Err(error) = &outcome
                    && self.place.distrusts_connection_after(error)
                {
                    pool.health.replace_all();
                }
                match outcome {
                    Err(error) => Err(pool.explain(error, &self.options).await),
                    outcome => outcome,
                }
            }
            Err(elapsed) => {
                // Mark the pool before the call is dropped and returns its connection.
                pool.health.suspect();
                Err(RepositoryError::new(ErrorKind::Timeout, elapsed))
            }
        }
    }

    /// Runs a read, and repeats it once if its connection was lost.
    async fn read<T, F>(&self, read: impl Fn(Pool) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        self.read_from(&self.reader, read).await
    }

    async fn read_from<T, F>(&self, pool: &Pool, read: impl Fn(Pool) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        self.place.check()?;
        self.within_deadline(pool, async {
            match read(pool.clone()).await {
                Err(error) if remedy(&error) == Remedy::Distrust => {
                    pool.health.suspect();
                    read(pool.clone()).await
                }
                outcome => outcome,
            }
        })
        .await
    }

    /// Runs a read that only a primary can answer. `None` from `read` means that the server rejects changes.
    async fn read_primary<T, F>(&self, read: impl Fn(Pool) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<Option<T>>> + Send,
    {
        self.read(read).await?.ok_or_else(|| {
            if self.reader.health.leave_server() {
                self.writer.health.replace_all();
            }
            RepositoryError::new(ErrorKind::Unavailable, "the database server is read-only")
        })
    }

    async fn find_many(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        self.read(|pool| lookup::find(pool, &self.tables, &self.lookups, hashes)).await
    }

    /// Makes a change. Retries it if the database rolled it back because of a conflict, or if the server
    /// rejects writes.
    async fn write<W: Write>(&self, write: W, context: &ChangeContext) -> Result<W::Output> {
        self.within_deadline(&self.writer, async {
            for _ in 1..MAX_ATTEMPTS {
                match self.try_write(&write, context).await {
                    Err(error) => match remedy(&error) {
                        Remedy::Retry => {}
                        Remedy::Reconnect if self.writer.health.leave_server() => {
                            self.reader.health.replace_all();
                        }
                        Remedy::Distrust => {
                            self.writer.health.suspect();
                            return Err(error);
                        }
                        Remedy::Reconnect | Remedy::None => return Err(error),
                    },
                    outcome => return outcome,
                }
            }
            self.try_write(&write, context).await
        })
        .await
    }

    /// Runs a statement that does not change a key.
    async fn write_once(&self, statement: &impl StatementBuilder) -> Result<()> {
        self.within_deadline(&self.writer, async {
            self.place.check()?;
            self.writer.connection.execute(statement).await.map_err(from_db).map(drop)
        })
        .await
    }

    /// Reads the first column of at most one row.
    async fn read_value<T: TryGetable + Send>(&self, select: &SelectStatement) -> Result<Option<T>> {
        let row = self.read(|pool| async move { pool.connection.query_one(select).await.map_err(from_db) });
        row.await?.map(|row| row.try_get_by_index(0)).transpose().map_err(from_db)
    }

    async fn try_write<W: Write>(&self, write: &W, context: &ChangeContext) -> Result<W::Output> {
        self.place.check().map_err(RepositoryError::unapplied)?;
        let change = self.begin().await.map_err(RepositoryError::unapplied)?;
        let outcome = write.run(change, context).await;
        outcome.map_err(|error| match remedy(&error) {
            // The server rejected the change or rolled it back.
            Remedy::Retry | Remedy::Reconnect => error.unapplied(),
            Remedy::Distrust | Remedy::None => error,
        })
    }

    /// Begins a change, and retries on another connection if the first one was dead. Nothing of the change
    /// was sent by then.
    async fn begin(&self) -> Result<Change> {
        let begin = || {
            let (tables, entropy) = (Arc::clone(&self.tables), Arc::clone(&self.options.entropy));
            Change::begin(&self.writer.connection, tables, entropy)
        };
        for _ in 1..MAX_ATTEMPTS {
            match begin().await {
                Err(error) if remedy(&error) == Remedy::Distrust => self.writer.health.suspect(),
                outcome => return outcome,
            }
        }
        begin().await
    }
}

impl fmt::Display for SqlRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sql({})", self.place)
    }
}

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
        self.write(write::Create(key), context).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        self.write(write::CreateMany(keys), context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.write(write::Update { key, expected }, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.write(write::Delete { id, expected: None }, context).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        self.write(write::Delete { id, expected: Some(expected) }, context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        pages::stream_by_owner(self.clone(), owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        self.write(write::Revoke { id, reason }, context).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        self.write(write::Rotate(rotation), context).await
    }

    fn can_rotate(&self, _: &KeyHash, _: &KeyHash) -> bool {
        true
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        let select = query::page(&self.tables, request);
        let rows = self.read_from(&self.lister, |pool| {
            let select = &select;
            async move { pool.connection.query_all(select).await.map_err(from_db) }
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

    async fn identity(&self) -> Result<Option<StoreIdentity>> {
        let select = query::identity(&self.tables);
        if let Some(identity) = self.read_value(&select).await? {
            return Ok(Some(StoreIdentity(identity)));
        }
        // Several replicas may do this at once. Only the first identity is stored.
        let drawn = StoreIdentity::draw(self.options.entropy.as_ref())?;
        self.write_once(&query::insert_identity(&self.tables, drawn.0)?).await?;
        Ok(self.read_value(&select).await?.map(StoreIdentity))
    }

    async fn check_changes(&self) -> Result<()> {
        if self.read(|pool| async move { feed::is_writable(&pool.connection).await }).await? {
            return Ok(());
        }
        Err(RepositoryError::new(ErrorKind::Unavailable, "the database is read-only"))
    }

    async fn ping(&self) -> Result<()> {
        self.place.check()?;
        self.read(|pool| async move {
            // Read the keys, too, because row-level security can hide only them.
            let any = query::any_key(&self.tables);
            pool.connection.query_one(&any).await.map_err(from_db)?;
            read_head(&pool.connection, &self.tables).await.map(drop)
        })
        .await
    }

    async fn close(&self) -> Result<()> {
        for pool in [&self.reader, &self.writer, &self.lister] {
            pool.connection.close_by_ref().await.map_err(from_db)?;
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeFeed for SqlRepository {
    fn partitions(&self) -> u8 {
        1
    }

    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        if let Err(replaced) = self.place.check() {
            // Events of the other file must not be applied any more.
            return Err(RepositoryError::new(ErrorKind::PositionLost, replaced));
        }
        let tables = &self.tables;
        self.read_primary(|pool| async move {
            feed::of_the_primary(&pool.connection, async |primary| {
                feed::changes(primary, tables, after, limit).await
            })
            .await
        })
        .await
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        let tables = &self.tables;
        self.read_primary(|pool| async move {
            feed::of_the_primary(&pool.connection, async |primary| {
                feed::recent_changes(primary, tables, limit).await
            })
            .await
        })
        .await
    }

    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        match &self.place {
            Place::Postgres(server) => {
                Some(postgres::wakes(server, &self.options, self.tables.channel.clone()?))
            }
            Place::Sqlite(_) | Place::MySql(_) => None,
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditTrail for SqlRepository {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.read_from(&self.lister, |pool| async move {
            feed::page(&pool.connection, &self.tables, request).await
        })
        .await
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        let mut pruned = 0;
        loop {
            let batch = feed::prune_batch(&self.writer.connection, &self.tables, before);
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
