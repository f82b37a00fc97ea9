//! Keys in Redis, through fred: a server, a Sentinel set or a Cluster.
//!
//! Keys are distributed over 64 shards by the first byte of their hash ([`keyspace`]). All data of a key is
//! in its shard, and a shard is in one hash slot. So every change is one atomic script, even on a cluster,
//! and a lookup by hash is one command. Listings of all keys, of an owner's keys and of events, and the
//! change feed, read every shard and merge the results.

mod check;
mod connection;
mod error;
mod feed;
mod keyspace;
mod list;
mod options;
mod permissions;
mod record;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use fred::clients::Client;
use fred::interfaces::{HashesInterface as _, KeysInterface as _};
use fred::types::SetOptions;
use fred::types::scripts::Script;
use futures_util::future::{join_all, try_join_all};
use futures_util::stream::BoxStream;
use prost::bytes::Bytes;

use self::connection::Connection;
use self::keyspace::{Keyspace, Shard};
use super::stored::{corrupt, timestamp};
use super::{
    AuditTrail, BackendIdentity, ChangeFeed, Changes, EventPageRequest, FeedPosition, KeyRepository,
    KeyStream, ListedEvent, ListedKey, PageRequest, RecentChanges, Result, UsageStore, defaults, pages,
};
use crate::domain::{
    ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, RequestDigest, Revision,
    RevokeReason, Rotation, Timestamp,
};

pub use self::options::RedisOptions;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::record::parse as parse_record;

/// Stores keys in Redis. Clones share its connections.
#[derive(Clone, Debug)]
pub struct RedisRepository {
    connection: Connection,
    keyspace: Keyspace,
    options: Arc<RedisOptions>,
    scripts: Arc<Scripts>,
}

#[derive(Debug)]
struct Scripts {
    change: Script,
    /// The script `change` with the flag for changes that have to succeed even when the server's memory is
    /// full: revocations and deletions.
    urgent: Script,
    usage: Script,
    count: Script,
}

/// Returns the number of stored events of a shard and the number of all events it ever had, at one moment.
/// `KEYS`: events, head.
const COUNT: &str =
    "return { redis.call('XLEN', KEYS[1]), tonumber(redis.call('HGET', KEYS[2], 'events') or '0') }";

impl RedisRepository {
    /// Connects to the server of `url`: `redis://…`, `redis-sentinel://…`, `redis-cluster://…`, each with
    /// `rediss-` for TLS, or `redis+unix://…`. Checks the server's settings and the user's permissions.
    ///
    /// # Errors
    /// - [`ErrorKind::Unusable`](super::ErrorKind::Unusable) if the URL can't be used, if the server is too
    ///   old, if its user lacks a permission, or if [`strict`](RedisOptions::strict) is set and the server
    ///   may lose keys.
    /// - [`ErrorKind::Unavailable`](super::ErrorKind::Unavailable) if the server can't be reached or is a
    ///   replica.
    ///
    /// Errors contain no part of the URL.
    pub async fn open(url: &str, options: RedisOptions) -> Result<Self> {
        let connection = Connection::open(url, &options).await?;
        let oldest = check::servers(&connection, &options).await?;
        let keyspace = Keyspace::new(&options.key_prefix);
        // Boxed, because the checks are large and run once.
        Box::pin(permissions::check(&connection, &keyspace)).await?;
        let change = include_str!("redis/change.lua");
        // Servers before Redis 7.0 don't support the flag.
        let flags = if oldest >= (7, 0) { "#!lua flags=allow-oom\n" } else { "" };
        let scripts = Scripts {
            change: Script::from_lua(change),
            urgent: Script::from_lua(format!("{flags}{change}")),
            usage: Script::from_lua(include_str!("redis/usage.lua")),
            count: Script::from_lua(COUNT),
        };
        Ok(Self { connection, keyspace, options: Arc::new(options), scripts: Arc::new(scripts) })
    }

    async fn find(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.stored(hash).await?.map(|stored| record::parse_of(hash, &stored)).transpose()
    }

    /// Reads the string at `name`.
    async fn read_text(&self, name: String) -> Result<Option<String>> {
        let read = |client: Client| {
            let name = name.clone();
            async move { client.get(name).await }
        };
        self.connection.read(read).await
    }

    /// Reads a record in its stored form.
    async fn stored(&self, hash: &KeyHash) -> Result<Option<Bytes>> {
        let stored = self.connection.read_primary(vec![self.keyspace.record(hash)]).await?;
        Ok(stored.into_iter().next().flatten())
    }

    /// Reads the identity of this installation. If it is unset, draws one and stores it.
    async fn read_or_write_identity(&self) -> Result<BackendIdentity> {
        let name = self.keyspace.identity();
        let mut stored = self.read_text(name.clone()).await?;
        if stored.is_none() {
            let drawn = BackendIdentity::draw(self.options.entropy.as_ref())?.0.to_string();
            let write = |client: Client| {
                let (name, drawn) = (name.clone(), drawn.clone());
                async move {
                    client.set::<Option<String>, _, _>(name, drawn, None, Some(SetOptions::NX), false).await
                }
            };
            self.connection.read(write).await?;
            // Another replica may have stored its own first.
            stored = self.read_text(name).await?.or(Some(drawn));
        }
        let identity = stored.and_then(|stored| stored.parse().ok());
        identity.map(BackendIdentity).ok_or_else(|| corrupt("an identity that is not a UUID"))
    }

    /// Reads the records of `hashes`. Uses one command, or on a cluster one per shard. Returns the outcome of
    /// each command with the positions of its hashes.
    async fn records(&self, hashes: &[KeyHash]) -> Vec<(Vec<usize>, Result<Vec<Option<Bytes>>>)> {
        let mut by_node: BTreeMap<Option<Shard>, Vec<usize>> = BTreeMap::new();
        for (position, hash) in hashes.iter().enumerate() {
            let shard = self.connection.is_clustered().then(|| Shard::of_hash(hash));
            by_node.entry(shard).or_default().push(position);
        }
        let asked = by_node.into_values().map(|positions| async move {
            let names: Vec<_> =
                positions.iter().map(|&position| self.keyspace.record(&hashes[position])).collect();
            (positions, self.connection.read_primary(names).await)
        });
        join_all(asked).await
    }

    /// Calls `ask` for each shard with the positions of its ids in `ids`.
    async fn by_shard<F>(&self, ids: &[KeyId], ask: impl Fn(Shard, Vec<usize>) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let mut shards: BTreeMap<Shard, Vec<usize>> = BTreeMap::new();
        for (at, id) in ids.iter().enumerate() {
            shards.entry(Shard::of_id(*id)).or_default().push(at);
        }
        try_join_all(shards.into_iter().map(|(shard, positions)| ask(shard, positions))).await.map(drop)
    }
}

impl fmt::Display for RedisRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.connection)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl KeyRepository for RedisRepository {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.find(hash).await
    }

    async fn get_many_by_hash(&self, hashes: &[KeyHash]) -> Result<Vec<Result<Option<ApiKey>>>> {
        let mut found: Vec<_> = hashes.iter().map(|_| Ok(None)).collect();
        for (positions, stored) in self.records(hashes).await {
            match stored {
                Ok(stored) => {
                    for (position, stored) in positions.into_iter().zip(stored) {
                        let parse = |stored: Bytes| record::parse_of(&hashes[position], &stored);
                        found[position] = stored.map(parse).transpose();
                    }
                }
                // The failure of one shard must not affect the others.
                Err(error) => {
                    for position in positions {
                        found[position] = Err(error.clone());
                    }
                }
            }
        }
        Ok(found)
    }

    /// Returns false on a cluster. A batch completes only when its slowest shard has answered, so a hanging
    /// shard would delay lookups of the others.
    fn supports_batching(&self) -> bool {
        !self.connection.is_clustered()
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        let Some(index) = self.index_of(id).await? else {
            return Ok(None);
        };
        // Between the two reads, the key may have been deleted and its hash used by another key.
        Ok(self.find(&index.hash).await?.filter(|key| key.id == id))
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.create_key(key, context).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        let created = keys.into_iter().map(|key| async move {
            match self.create_key(key, context).await {
                Err(error) if !defaults::is_of_one_key(error.kind()) => Err(error),
                outcome => Ok(outcome),
            }
        });
        try_join_all(created).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.update_key(key, expected, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.delete_key(id, None, context).await
    }

    async fn delete_unchanged(
        &self,
        id: KeyId,
        expected: Revision,
        context: &ChangeContext,
    ) -> Result<ChangeId> {
        self.delete_key(id, Some(expected), context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        pages::stream_by_owner(self.clone(), owner, filter)
    }

    async fn revoke(&self, id: KeyId, reason: RevokeReason, context: &ChangeContext) -> Result<ApiKey> {
        self.revoke_key(id, reason, context).await
    }

    async fn rotate(&self, rotation: Rotation, context: &ChangeContext) -> Result<Rotation> {
        self.rotate_key(rotation, context).await
    }

    fn can_rotate(&self, old: &KeyHash, successor: &KeyHash) -> bool {
        Shard::of_hash(old) == Shard::of_hash(successor)
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Vec<ListedKey>> {
        self.page_of_keys(request).await
    }

    async fn key_of_request(&self, request: &RequestDigest) -> Result<Option<KeyId>> {
        self.made_by(request).await
    }

    fn can_create_for(&self, request: &RequestDigest, hash: &KeyHash) -> bool {
        Shard::of_request(request) == Shard::of_hash(hash)
    }

    async fn identity(&self) -> Result<Option<BackendIdentity>> {
        self.read_or_write_identity().await.map(Some)
    }

    async fn check_changes(&self) -> Result<()> {
        check::memory(&self.connection).await
    }

    async fn ping(&self) -> Result<()> {
        self.connection.check_role().await?;
        // Looks up a key that can't exist. On a cluster this uses the node of its slot.
        self.find(&KeyHash::from_bytes([0; KeyHash::BYTES])).await.map(drop)
    }

    async fn close(&self) -> Result<()> {
        self.connection.close().await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ChangeFeed for RedisRepository {
    async fn changes(&self, after: Option<&FeedPosition>, limit: usize) -> Result<Changes> {
        self.changes_after(after, limit).await
    }

    fn partitions(&self) -> u8 {
        keyspace::SHARDS
    }

    async fn recent_changes(&self, limit: usize) -> Result<RecentChanges> {
        self.newest_changes(limit).await
    }

    fn wake_ups(&self) -> Option<BoxStream<'static, ()>> {
        Some(self.connection.wake_ups(self.keyspace.channel()))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl AuditTrail for RedisRepository {
    async fn list_events(&self, request: &EventPageRequest) -> Result<Vec<ListedEvent>> {
        self.page_of_events(request).await
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        self.prune_events_before(before).await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl UsageStore for RedisRepository {
    async fn record_usage(&self, usage: &[(KeyId, Timestamp)]) -> Result<()> {
        let ids: Vec<_> = usage.iter().map(|(id, _)| *id).collect();
        self.by_shard(&ids, |shard, positions| async move {
            for batch in positions.chunks(write::USAGE_BATCH) {
                let batch: Vec<_> = batch.iter().filter_map(|&at| usage.get(at).copied()).collect();
                self.record_usage_of(shard, &batch).await?;
            }
            Ok(())
        })
        .await
    }

    async fn usage(&self, ids: &[KeyId]) -> Result<Vec<Option<Timestamp>>> {
        let known = std::sync::Mutex::new(vec![None; ids.len()]);
        let known_ref = &known;
        self.by_shard(ids, |shard, positions| async move {
            let fields: Vec<String> =
                positions.iter().filter_map(|&at| ids.get(at)).map(ToString::to_string).collect();
            let name = self.keyspace.usage(shard);
            let read = |client: Client| {
                let (name, fields) = (name.clone(), fields.clone());
                async move { client.hmget(name, fields).await }
            };
            let used: Vec<Option<i64>> = self.connection.read(read).await?;
            let mut known = known_ref.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (at, used) in positions.into_iter().zip(used) {
                if let Some(slot) = known.get_mut(at) {
                    *slot = used.map(|at| timestamp("last_used_at", at)).transpose()?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(known.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
