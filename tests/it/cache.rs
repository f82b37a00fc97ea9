//! Tests of the guarantees of the caches, with replicas in this process that share a backend, and with
//! faults.

use std::sync::Arc;
use std::time::Duration;

use keyvouch::cache::{Demand, Found, KeyCache as _, LoadLimits, StackOptions, Tier};
use keyvouch::conformance::cache::Subject;
use keyvouch::domain::{
    ApiKey, ChangeContext, Clock as _, KeyHash, KeyId, ManualStopwatch, OwnerId, RevokeReason, SystemClock,
    SystemEntropy,
};
use keyvouch::repository::{Backend, ErrorKind, KeyRepository, MemoryRepository, Result};

use self::doubles::{SlowLookups, Swapped, WithoutFeed};
use crate::cached::{Replica, options, redis};
use crate::databases::Kind;
use crate::redis_servers::{Redis, next_prefix, shared_url};
use crate::repository::RequiredOnly;
use crate::server::faulty::{Faulty, Mode};
use crate::support::until;

mod custom;
mod doubles;
mod loads;
mod outages;

mod moka {
    use super::*;
    keyvouch::cache_conformance!(async {
        let mut replica = Replica::start(MemoryRepository::new(), &unpolled(options())).await;
        replica.stop_following().await;
        let cache = Arc::new(replica.local.clone().unwrap());
        (Subject { cache, knowledge: Arc::clone(&replica.knowledge), keeps_negative_entries: true }, replica)
    });
}

mod redis_alone {
    use super::*;
    keyvouch::cache_conformance!(in_redis(MemoryRepository::new(), Redis::Alone));
}

mod redis_cluster {
    use super::*;
    keyvouch::cache_conformance!(in_redis(MemoryRepository::new(), Redis::Cluster));
}

mod valkey_alone {
    use super::*;
    keyvouch::cache_conformance!(in_redis(MemoryRepository::new(), Redis::Valkey));
}

mod valkey_cluster {
    use super::*;
    keyvouch::cache_conformance!(in_redis(MemoryRepository::new(), Redis::ValkeyCluster));
}

/// The backend has no feed.
mod redis_without_a_feed {
    use super::*;
    keyvouch::cache_conformance!(in_redis(RequiredOnly::default(), Redis::Alone));
}

async fn in_redis(store: impl Into<Backend>, kind: Redis) -> (Subject, Replica) {
    let options =
        StackOptions { redis: Some(redis(&shared_url(kind), &next_prefix())), ..unpolled(options()) };
    let mut replica = Replica::start(store, &options).await;
    replica.stop_following().await;
    let cache = Arc::clone(replica.redis.as_ref().unwrap());
    (Subject { cache, knowledge: Arc::clone(&replica.knowledge), keeps_negative_entries: false }, replica)
}

fn key(secret: &str) -> ApiKey {
    let hash = KeyHash::of(secret);
    let now = SystemClock.now();
    ApiKey {
        id: KeyId::generate(now, &hash, &SystemEntropy).unwrap(),
        hash,
        prefix: keyvouch::domain::KeyPrefix::parse("prefix", "kv_").unwrap(),
        name: keyvouch::domain::KeyName::parse("name", "key").unwrap(),
        description: keyvouch::domain::Description::default(),
        owner_id: OwnerId::parse("owner_id", "owner").unwrap(),
        scopes: keyvouch::domain::ScopeSet::default(),
        metadata: keyvouch::domain::Metadata::default(),
        created_at: now,
        updated_at: now,
        expires_at: None,
        revocation: None,
        rotated_from: None,
        replaced_by: None,
        revision: keyvouch::domain::Revision::NONE,
        nonce: 0,
    }
}

fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", SystemClock.now())
}

/// Returns the context of creating a key again that was revoked and deleted.
fn reviving() -> ChangeContext {
    ChangeContext { may_revive: true, ..context() }
}

impl Replica {
    async fn find_within(&self, hash: &KeyHash, max_staleness: Duration) -> Result<Found> {
        self.source.find(hash, &Demand { asked_at: self.knowledge.moment(), max_staleness }).await
    }

    pub(crate) async fn find(&self, hash: &KeyHash) -> Found {
        self.find_within(hash, Duration::from_mins(5)).await.unwrap()
    }

    pub(crate) async fn is_active(&self, hash: &KeyHash) -> bool {
        self.find(hash).await.entry.key.is_some_and(|key| key.revocation.is_none())
    }

    pub(crate) async fn create(&self, secret: &str) -> ApiKey {
        self.backend.create(key(secret), &reviving()).await.unwrap()
    }

    pub(crate) async fn revoke(&self, id: KeyId) {
        self.backend.revoke(id, RevokeReason::default(), &context()).await.unwrap();
    }

    /// Polls the feed once.
    async fn poll(&self) {
        self.feed.as_ref().unwrap().poll().await.unwrap();
    }
}

/// Returns options with which replicas never poll periodically.
fn unpolled(options: StackOptions) -> StackOptions {
    let feed = keyvouch::cache::FeedOptions { poll_interval: Duration::from_hours(1), ..options.feed };
    StackOptions { feed, ..options }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_is_seen_by_the_other_replicas() {
    let store = MemoryRepository::new();
    let quick = options();
    let (a, b) = (Replica::start(store.clone(), &quick).await, Replica::start(store, &quick).await);
    let key = a.create("secret").await;
    until("the creation to be seen", async || b.is_active(&key.hash).await).await;
    assert_eq!(b.find(&key.hash).await.tier, Tier::Local);
    a.revoke(key.id).await;
    assert!(!a.is_active(&key.hash).await, "by the replica that took it at once");
    until("the revocation to be seen", async || !b.is_active(&key.hash).await).await;
    b.backend.delete(key.id, &context()).await.unwrap();
    assert!(b.find(&key.hash).await.entry.key.is_none());
    until("the deletion to be seen", async || a.find(&key.hash).await.entry.key.is_none()).await;
    // The negative entry must not be used after the key is created again.
    let again = ApiKey { revocation: None, ..self::key("secret") };
    a.backend.create(again, &reviving()).await.unwrap();
    until("the key to be seen again", async || b.is_active(&key.hash).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_from_before_a_revocation_is_not_served_after_it() {
    let slow = SlowLookups::new(MemoryRepository::new());
    let replica = Arc::new(Replica::start(slow.clone(), &unpolled(options())).await);
    let key = replica.create("secret").await;
    replica.local.as_ref().unwrap().forget(&key.hash).await;
    slow.hold();
    let waiting = tokio::spawn({
        let replica = Arc::clone(&replica);
        async move { replica.is_active(&key.hash).await }
    });
    // The load has read the active record, and its result is withheld.
    until("the load", async || slow.held() == 1).await;
    replica.revoke(key.id).await;
    let joined = tokio::spawn({
        let replica = Arc::clone(&replica);
        async move { replica.is_active(&key.hash).await }
    });
    slow.release();
    assert!(!joined.await.unwrap(), "a call that began after the revocation");
    assert!(!waiting.await.unwrap(), "and whoever is answered after it");
    assert!(!replica.is_active(&key.hash).await, "and it was not put into the cache");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_replica_deleted_is_not_served_after_not_found() {
    let store = MemoryRepository::new();
    let options = unpolled(options());
    let (a, b) = (Replica::start(store.clone(), &options).await, Replica::start(store, &options).await);
    let key = a.create("secret").await;
    assert!(b.is_active(&key.hash).await);
    a.backend.delete(key.id, &context()).await.unwrap();
    assert!(b.is_active(&key.hash).await, "it did not poll");
    let missing = b.backend.revoke(key.id, RevokeReason::default(), &context()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(b.find(&key.hash).await.entry.key.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_feed_has_the_ttl_as_its_bound() {
    let store = Backend::from(RequiredOnly::default());
    let stopwatch = Arc::new(ManualStopwatch::default());
    stopwatch.advance(Duration::from_hours(1));
    let options = options();
    let start = || Replica::start_at(store.clone(), &options, Arc::<ManualStopwatch>::clone(&stopwatch) as _);
    let (a, b) = (start().await, start().await);
    assert!(a.feed.is_none());
    let key = a.create("secret").await;
    assert!(b.is_active(&key.hash).await);
    a.revoke(key.id).await;
    assert!(!a.is_active(&key.hash).await);
    assert!(b.is_active(&key.hash).await, "it has not heard of it");
    stopwatch.advance(Duration::from_mins(5));
    assert!(!b.is_active(&key.hash).await);
    // This replica deletes the key and creates it again.
    a.backend.delete(key.id, &context()).await.unwrap();
    assert!(a.find(&key.hash).await.entry.key.is_none());
    a.create("secret").await;
    assert!(a.is_active(&key.hash).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_the_cache_in_redis() {
    let store = Faulty::new();
    let shared = Some(redis(&shared_url(Redis::Alone), &next_prefix()));
    let options = StackOptions { redis: shared, ..options() };
    let a = Replica::start(store.clone(), &options).await;
    let b = Replica::start(store.clone(), &options).await;
    let key = a.create("secret").await;
    b.poll().await;
    let found = b.find(&key.hash).await;
    assert_eq!(found.tier, Tier::Shared);
    assert_eq!(store.lookups(), 0);
    assert_eq!(found.entry.key.as_ref().unwrap().id, key.id);
    assert_eq!(b.find(&key.hash).await.tier, Tier::Local);
    a.revoke(key.id).await;
    // A message in Redis or the next poll delivers the change.
    until("the revocation to be seen", async || !b.is_active(&key.hash).await).await;
    assert_eq!(found.entry.began, None, "another process's clock is not ours");
    let hash = KeyHash::of("nobody");
    assert!(b.find(&hash).await.entry.key.is_none());
    assert!(a.redis.as_ref().unwrap().get(&hash).await.is_none(), "absence is not shared");
}

/// One replica that finds a rewound history makes the others begin a new epoch too, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_meet_in_one_new_epoch() {
    let store = Swapped::new(MemoryRepository::new());
    let prefix = next_prefix();
    let options = StackOptions { redis: Some(redis(&shared_url(Redis::Alone), &prefix)), ..options() };
    let (a, b) =
        (Replica::start(store.clone(), &options).await, Replica::start(store.clone(), &options).await);
    let key = a.create("lost").await;
    until("the key", async || b.is_active(&key.hash).await).await;
    let cli = |arguments: &[&str]| crate::redis_servers::cli(redis_port(), arguments);
    // The name contains the identity of the backend.
    let name = cli(&["KEYS", &format!("{prefix}*epoch")]);
    assert!(name.starts_with(&prefix), "{name}");
    let epoch = || cli(&["GET", &name]);
    let before = epoch();
    store.swap(MemoryRepository::new());
    until("a new epoch", async || epoch() != before).await;
    for replica in [&a, &b] {
        until("the new history", async || {
            let found = replica.find_within(&key.hash, Duration::from_mins(5)).await;
            found.is_ok_and(|found| found.entry.key.is_none())
        })
        .await;
    }
    // Both replicas may have detected the rewind, and then they agree on one epoch.
    let mut last = epoch();
    let mut unchanged = 0;
    until("one epoch", async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = epoch();
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        unchanged == 10
    })
    .await;
    assert!(a.knowledge.epoch() <= 4 && b.knowledge.epoch() <= 4, "each began anew a few times at most");
}

fn redis_port() -> u16 {
    shared_url(Redis::Alone).rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_validation_asks_neither_redis_nor_the_database() {
    let servers = Redis::Alone.start(&[]);
    let port = servers.servers[0].port;
    let commands = || {
        let info = crate::redis_servers::cli(port, &["INFO", "commandstats"]);
        let calls = info.lines().filter_map(|line| line.split_once(":calls=")?.1.split_once(','));
        calls.map(|(calls, _)| calls.parse::<u64>().unwrap()).sum::<u64>()
    };
    let store = keyvouch::repository::RedisRepository::open(
        &servers.url,
        keyvouch::repository::RedisOptions::default(),
    );
    let options = StackOptions { redis: Some(redis(&servers.url, "cache:")), ..options() };
    let replica = Replica::start(store.await.unwrap(), &unpolled(options)).await;
    let key = replica.create("secret").await;
    replica.poll().await;
    // The replica's own change also wakes it. That wake-up has been handled when the replica sends no more
    // commands.
    let mut before = commands();
    until("silence", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = commands();
        std::mem::replace(&mut before, now + 1) == now
    })
    .await;
    let before = commands();
    for _ in 0..10_000 {
        assert_eq!(replica.find(&key.hash).await.tier, Tier::Local);
    }
    // The allowed command is INFO itself.
    assert!(commands() - before <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_and_redis_wake_other_replicas() {
    let shared = redis(&shared_url(Redis::Alone), &next_prefix());
    for (store, options) in [
        (Backend::from(Kind::Postgres.repository().await), options()),
        (Redis::Alone.repository().await.into(), options()),
        (Redis::Cluster.repository().await.into(), options()),
        (Kind::MariaDb.repository().await.into(), StackOptions { redis: Some(shared), ..options() }),
    ] {
        let options = unpolled(options);
        let (a, b) = (Replica::start(store.clone(), &options).await, Replica::start(store, &options).await);
        let key = a.create("secret").await;
        until("the key", async || b.is_active(&key.hash).await).await;
        // The replica never polls periodically. If its listener is not connected yet, another change wakes
        // it.
        let mut others = 0;
        until("the wake-up", async || {
            a.revoke(key.id).await;
            others += 1;
            a.create(&format!("another {others}")).await;
            !b.is_active(&key.hash).await
        })
        .await;
    }
}
