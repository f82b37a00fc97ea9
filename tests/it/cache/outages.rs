//! Tests with a backend or a Redis server that is down, slow or replaced.

use std::path::{Path, PathBuf};

use keyvouch::repository::{SqlOptions, SqlRepository};
use sea_orm::ConnectionTrait as _;
use tempfile::TempDir;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_store_is_not_noticed_within_the_bound_and_told_past_it() {
    let store = Faulty::new();
    let stopwatch = Arc::new(ManualStopwatch::default());
    stopwatch.advance(Duration::from_hours(1));
    let options = StackOptions { max_staleness: Duration::from_mins(1), ..options() };
    let replica = Replica::start_at(store.clone(), &options, Arc::<ManualStopwatch>::clone(&stopwatch)).await;
    let key = replica.create("secret").await;
    replica.poll().await;
    store.set(Mode::Fail(ErrorKind::Unavailable));
    // Polls that began before have completed.
    assert!(replica.feed.as_ref().unwrap().poll().await.is_err());
    let bound = Duration::from_mins(1);
    stopwatch.advance(Duration::from_secs(59));
    let found = replica.find_within(&key.hash, bound).await.unwrap();
    assert_eq!(found.tier, Tier::Local);
    let age = replica.knowledge.moment().since(found.as_of);
    assert!((Duration::from_secs(59)..=bound).contains(&age), "{age:?}");
    let sooner = replica.find_within(&key.hash, Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(sooner.kind(), ErrorKind::Unavailable, "a call that asks for less");
    stopwatch.advance(Duration::from_secs(2));
    let late = replica.find_within(&key.hash, bound).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unavailable);
    store.set(Mode::Work);
    until("the store to be asked again", async || replica.find_within(&key.hash, bound).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_at_once_when_it_is_known() {
    let store = Faulty::new();
    let stopwatch = Arc::new(ManualStopwatch::default());
    stopwatch.advance(Duration::from_hours(1));
    let replica =
        Replica::start_at(store.clone(), &unpolled(options()), Arc::<ManualStopwatch>::clone(&stopwatch))
            .await;
    store.set(Mode::Fail(ErrorKind::Timeout));
    for number in 0..20 {
        let hash = KeyHash::of(&format!("secret {number}"));
        let error = replica.find_within(&hash, Duration::from_mins(5)).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "never a denial");
    }
    assert!(replica.breaker.is_open());
    // A poll of the feed is also counted.
    assert!((1..=5).contains(&store.lookups()), "then nobody waits for it any more");
    store.set(Mode::Work);
    stopwatch.advance(Duration::from_secs(1));
    replica.find(&KeyHash::of("secret")).await;
    assert!(!replica.breaker.is_open());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncertain_change_is_an_error_and_leaves_nothing_old_behind() {
    let store = Faulty::new();
    let replica = Replica::start(store.clone(), &unpolled(options())).await;
    let key = replica.create("secret").await;
    replica.poll().await;
    assert!(replica.knowledge.feed_age().is_some());
    store.set(Mode::Fail(ErrorKind::Timeout));
    let next = ApiKey { updated_at: SystemClock.now(), ..key.clone() };
    let error = replica.backend.update(next, key.revision, &context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(replica.local.as_ref().unwrap().get(&key.hash).await.is_none());
    store.set(Mode::Work);
    replica.poll().await;
    assert!(replica.is_active(&key.hash).await);
}

/// Without a feed, nothing else would inform the replica before the record's `ttl` ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncertain_change_leaves_nothing_old_behind_without_a_feed() {
    for is_readable in [true, false] {
        let store = WithoutFeed::default();
        let replica = Replica::start(store.clone(), &options()).await;
        let (first, second) = (replica.create("first").await, replica.create("second").await);
        assert!(replica.is_active(&first.hash).await && replica.is_active(&second.hash).await);
        assert_eq!(replica.find(&second.hash).await.tier, Tier::Local);
        store.lose_answers();
        if is_readable {
            let revoked = replica.backend.revoke(first.id, RevokeReason::default(), &context()).await;
            assert_eq!(revoked.unwrap_err().kind(), ErrorKind::Timeout);
            assert!(!replica.is_active(&first.hash).await);
            assert_eq!(replica.find(&second.hash).await.tier, Tier::Local, "it costs no other key");
        } else {
            store.fail_reads(ErrorKind::Corrupt);
        }
        let deleted = replica.backend.delete(second.id, &context()).await;
        assert_eq!(deleted.unwrap_err().kind(), ErrorKind::Timeout);
        assert!(replica.find(&second.hash).await.entry.key.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_can_not_be_read_is_deleted_from_the_caches_too() {
    let store = WithoutFeed::default();
    let replica = Replica::start(store.clone(), &options()).await;
    let key = replica.create("secret").await;
    assert!(replica.is_active(&key.hash).await);
    store.fail_reads(ErrorKind::Corrupt);
    replica.backend.delete(key.id, &context()).await.unwrap();
    assert!(replica.find(&key.hash).await.entry.key.is_none());
}

/// A revocation and a deletion don't depend on the lookup of the key before them, and take effect at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_does_not_depend_on_the_lookup_before_it() {
    for (has_feed, kind) in [
        (true, ErrorKind::Timeout),
        (true, ErrorKind::Unavailable),
        (false, ErrorKind::Timeout),
        (false, ErrorKind::Internal),
    ] {
        let store = WithoutFeed::default();
        let backend = if has_feed { store.with_feed() } else { store.clone().into() };
        let replica = Replica::start(backend, &unpolled(options())).await;
        let mut keys = Vec::new();
        for name in ["revoked", "deleted", "kept"] {
            let key = replica.create(name).await;
            assert!(replica.is_active(&key.hash).await);
            keys.push(key);
        }
        let epoch = replica.knowledge.epoch();
        store.fail_reads(kind);
        // The second revocation finds the first one in effect.
        for _ in 0..2 {
            replica.revoke(keys[0].id).await;
            assert!(!replica.is_active(&keys[0].hash).await);
        }
        assert_eq!(replica.find(&keys[2].hash).await.tier, Tier::Local, "it evicts no other key");
        replica.backend.delete(keys[1].id, &context()).await.unwrap();
        assert!(replica.find(&keys[1].hash).await.entry.key.is_none());
        assert!(replica.is_active(&keys[2].hash).await);
        assert_eq!(replica.knowledge.epoch(), epoch);
    }
}

/// Without a feed, a replica learns from `NOT_FOUND` that another one has deleted the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_found_evicts_the_key_without_a_feed() {
    let store = WithoutFeed::default();
    let a = Replica::start(store.clone(), &options()).await;
    let b = Replica::start(store.clone(), &options()).await;
    let (key, other) = (a.create("deleted").await, a.create("other").await);
    let again = a.create("deleted, too").await;
    for key in [&key, &other, &again] {
        assert!(b.is_active(&key.hash).await);
    }
    a.backend.delete(key.id, &context()).await.unwrap();
    a.backend.delete(again.id, &context()).await.unwrap();
    assert!(b.is_active(&key.hash).await, "nothing reports the deletion to the other replica");
    let missing = b.backend.revoke(key.id, RevokeReason::default(), &context()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(b.find(&key.hash).await.entry.key.is_none());
    store.fail_reads(ErrorKind::Timeout);
    let missing = b.backend.delete(again.id, &context()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(b.find(&again.hash).await.entry.key.is_none());
    assert_eq!(b.find(&other.hash).await.tier, Tier::Local, "it evicts no other key");
}

/// A second revocation in the same microsecond changes nothing, and does not indicate another history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_can_be_repeated_at_once() {
    let replica = Replica::start(MemoryRepository::new(), &unpolled(options())).await;
    let key = replica.create("secret").await;
    replica.poll().await;
    let (epoch, context) = (replica.knowledge.epoch(), context());
    for _ in 0..2 {
        replica.backend.revoke(key.id, RevokeReason::default(), &context).await.unwrap();
        assert_eq!(replica.knowledge.epoch(), epoch);
    }
    assert!(!replica.is_active(&key.hash).await);
}

/// During an outage, some client always tries a change. It must not evict the entries of other keys or make
/// the replica unready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_failed_costs_no_other_key() {
    let store = Faulty::new();
    let replica = Replica::start(store.clone(), &unpolled(options())).await;
    let mut keys = Vec::new();
    for number in 0..20 {
        keys.push(replica.create(&format!("secret {number}")).await);
    }
    replica.poll().await;
    let before = replica.knowledge.feed_age().unwrap();
    for kind in [ErrorKind::Unavailable, ErrorKind::Timeout, ErrorKind::Internal] {
        store.set(Mode::Fail(kind));
        let revoked = replica.backend.revoke(keys[0].id, RevokeReason::default(), &context()).await;
        assert_eq!(revoked.unwrap_err().kind(), kind);
        replica.backend.create(key("another"), &context()).await.unwrap_err();
        replica.backend.delete(keys[1].id, &context()).await.unwrap_err();
        for key in &keys {
            assert_eq!(replica.find(&key.hash).await.tier, Tier::Local);
        }
        assert!(replica.knowledge.feed_age().is_some_and(|age| age >= before), "it is as ready as before");
    }
}

/// Returns a backend with a copy of the file as it is now, to which the history can be rewound later.
async fn copy_of(file: &Path, name: &str) -> SqlRepository {
    let copy = file.with_file_name(name);
    let database = sea_orm::Database::connect(format!("sqlite://{}", file.display())).await.unwrap();
    database.execute_unprepared(&format!("VACUUM INTO '{}'", copy.display())).await.unwrap();
    SqlRepository::open_sqlite(&copy, SqlOptions::default()).await.unwrap()
}

/// A backend with one key, and its file, which can be copied.
struct Rewindable {
    folder: TempDir,
    file: PathBuf,
    store: SqlRepository,
    kept: ApiKey,
}

impl Rewindable {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kv.db");
        let store = SqlRepository::open_sqlite(&file, SqlOptions::default()).await.unwrap();
        store.migrate().await.unwrap();
        let kept = store.create(key("kept"), &context()).await.unwrap();
        Self { folder, file, store, kept }
    }
}

/// A failover loses changes that this replica made and had not polled. Their revisions are used again, and
/// the replica detects that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_unpolled_changes_is_noticed() {
    let Rewindable { folder: _folder, file, store: first, kept } = Rewindable::new().await;
    let other = first.create(key("other"), &context()).await.unwrap();
    let store = Swapped::new(first);
    let a = Replica::start(store.clone(), &unpolled(options())).await;
    let b = Replica::start(store.clone(), &unpolled(options())).await;
    a.poll().await;
    b.poll().await;
    assert!(b.is_active(&kept.hash).await && b.is_active(&other.hash).await);

    let second = copy_of(&file, "copy.db").await;
    let next = ApiKey { updated_at: SystemClock.now(), ..kept.clone() };
    let updated = a.backend.update(next, kept.revision, &context()).await.unwrap();
    let lost = a.create("lost").await;
    assert!(a.is_active(&lost.hash).await);
    store.swap(second);

    // The replica that revokes the key applies the revocation at once. Its revision is that of the lost
    // change.
    let revoked = b.backend.revoke(kept.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(revoked.revision, updated.revision);
    assert!(!b.is_active(&kept.hash).await);
    let epoch = a.knowledge.epoch();
    a.poll().await;
    assert!(!a.is_active(&kept.hash).await, "the revocation of the new history");
    assert!(a.find(&lost.hash).await.entry.key.is_none(), "a key of the lost history");
    assert!(a.knowledge.epoch() > epoch);
    assert!(a.is_active(&other.hash).await);
}

/// A replica that saw the lost changes makes a change before any poll. Nothing of the lost history is served
/// afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_a_rewound_history_is_honoured_at_once() {
    let Rewindable { folder: _folder, file, store: first, kept } = Rewindable::new().await;
    let store = Swapped::new(first);
    let a = Replica::start(store.clone(), &unpolled(options())).await;
    a.poll().await;
    let second = copy_of(&file, "copy.db").await;
    // The key's cached record reflects a larger revision than that of the later revocation.
    a.create("lost").await;
    let next = ApiKey { updated_at: SystemClock.now(), ..kept.clone() };
    a.backend.update(next, kept.revision, &context()).await.unwrap();
    store.swap(second);
    a.revoke(kept.id).await;
    assert!(!a.is_active(&kept.hash).await);
    assert!(a.find(&KeyHash::of("lost")).await.entry.key.is_none());
}

/// As above, but another replica has revoked the key in the meantime, so that the revocation changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_is_in_effect_in_a_rewound_history_is_honoured_at_once() {
    let Rewindable { folder: _folder, file, store: first, kept } = Rewindable::new().await;
    let store = Swapped::new(first);
    let a = Replica::start(store.clone(), &unpolled(options())).await;
    a.poll().await;
    let second = copy_of(&file, "copy.db").await;
    a.create("lost").await;
    let next = ApiKey { updated_at: SystemClock.now(), ..kept.clone() };
    let updated = a.backend.update(next, kept.revision, &context()).await.unwrap();
    assert!(a.is_active(&kept.hash).await);
    store.swap(second.clone());
    let revoked = second.revoke(kept.id, RevokeReason::default(), &context()).await.unwrap();
    assert!(revoked.revision < updated.revision);
    let found = a.backend.revoke(kept.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(found.revision, revoked.revision);
    assert!(!a.is_active(&kept.hash).await);
}

/// A stopped replica has left a record of the lost history in Redis. Another replica, which never saw that
/// history, reads the record when its own cursor and fence have the same numbers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_record_in_redis_is_not_served() {
    let Rewindable { folder: _folder, file, store: first, kept } = Rewindable::new().await;
    let store = Swapped::new(first);
    let shared = StackOptions {
        redis: Some(redis(&shared_url(Redis::Alone), &next_prefix())),
        local: None,
        ..unpolled(options())
    };
    let b = Replica::start(store.clone(), &shared).await;
    let second = copy_of(&file, "copy.db").await;
    let a = Replica::start(store.clone(), &shared).await;
    let next = ApiKey { updated_at: SystemClock.now(), ..kept.clone() };
    let updated = a.backend.update(next, kept.revision, &context()).await.unwrap();
    a.poll().await;
    assert_eq!(a.find(&kept.hash).await.tier, Tier::Shared);
    drop(a);

    let revoked = second.revoke(kept.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(revoked.revision, updated.revision);
    store.swap(second);
    b.poll().await;
    assert!(!b.is_active(&kept.hash).await);
}

/// Installations that share a Redis server with the same prefix never read each other's records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_that_share_a_redis_are_told_apart() {
    let prefix = next_prefix();
    let shared =
        || StackOptions { redis: Some(redis(&shared_url(Redis::Alone), &prefix)), local: None, ..options() };
    let staging = Replica::start(MemoryRepository::new(), &shared()).await;
    let production = Replica::start(MemoryRepository::new(), &shared()).await;
    let key = staging.create("secret").await;
    staging.poll().await;
    assert_eq!(staging.find(&key.hash).await.tier, Tier::Shared);
    assert!(production.find(&key.hash).await.entry.key.is_none());
    // Each installation clears only its own records.
    let of_production = production.create("another").await;
    production.poll().await;
    staging.redis.as_ref().unwrap().clear().await;
    assert_eq!(production.find(&of_production.hash).await.tier, Tier::Shared);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_in_redis_may_be_flushed_frozen_or_gone() {
    let servers = Redis::Alone.start(&[]);
    let store = Faulty::new();
    let mut cache = redis(&servers.url, "cache:");
    cache.timeout = Duration::from_millis(50);
    let options = StackOptions { redis: Some(cache), local: None, ..options() };
    let replica = Replica::start(store.clone(), &options).await;
    let key = replica.create("secret").await;
    replica.poll().await;
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Shared);
    crate::redis_servers::cli(servers.servers[0].port, &["FLUSHALL"]);
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Backend);
    servers.servers[0].watched.freeze();
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Backend);
    replica.revoke(key.id).await;
    assert!(!replica.is_active(&key.hash).await, "a change does not wait for it");
    servers.servers[0].watched.thaw();
    until("Redis to be used again", async || replica.find(&key.hash).await.tier == Tier::Shared).await;
    assert!(!replica.is_active(&key.hash).await);
    servers.servers[0].kill();
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Backend);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_history_was_rewound_nothing_of_the_old_one_is_served() {
    let store = Swapped::new(MemoryRepository::new());
    let shared = Some(redis(&shared_url(Redis::Alone), &next_prefix()));
    let replica = Replica::start(store.clone(), &unpolled(StackOptions { redis: shared, ..options() })).await;
    let key = replica.create("lost").await;
    replica.create("another").await;
    replica.poll().await;
    assert!(replica.is_active(&key.hash).await);
    // A failover to a server that lacks the key, and has another one instead.
    let other = MemoryRepository::new();
    other.create(self::key("a third"), &context()).await.unwrap();
    store.swap(other);
    replica.poll().await;
    assert!(replica.find(&key.hash).await.entry.key.is_none(), "neither here nor in Redis");
    assert!(replica.is_active(&KeyHash::of("a third")).await);
    replica.create("lost").await;
    assert!(replica.is_active(&key.hash).await);
}

/// A hanging shard must not delay changes of the other shards, or reject their keys. The shard's replica
/// hangs too, so that no failover happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_shard_holds_up_no_other() {
    let servers = Redis::Cluster.start(&["--cluster-require-full-coverage", "no"]);
    let quick = || keyvouch::repository::RedisOptions {
        timeout: Duration::from_millis(500),
        ..keyvouch::repository::RedisOptions::default()
    };
    let store = keyvouch::repository::RedisRepository::open(&servers.url, quick()).await.unwrap();
    let (a, b) =
        (Replica::start(store.clone(), &options()).await, Replica::start(store.clone(), &options()).await);
    let mut keys = Vec::new();
    for number in 0..30 {
        keys.push(a.create(&format!("secret {number}")).await);
    }
    for key in &keys {
        until("the key", async || b.is_active(&key.hash).await).await;
    }
    let role = |port: u16| crate::redis_servers::cli(port, &["ROLE"]);
    let primary = servers.servers.iter().find(|server| role(server.port).starts_with("master")).unwrap();
    let replicas = role(primary.port);
    let replica = servers
        .servers
        .iter()
        .find(|server| replicas.lines().any(|line| line == server.port.to_string()))
        .unwrap();
    replica.watched.freeze();
    primary.watched.freeze();
    let (mut healthy, mut frozen) = (Vec::new(), Vec::new());
    for key in keys {
        match store.get_by_hash(&key.hash).await {
            Ok(_) => healthy.push(key),
            Err(_) => frozen.push(key),
        }
    }
    assert!(!healthy.is_empty() && !frozen.is_empty());
    for key in &healthy {
        a.revoke(key.id).await;
        until("the revocation", async || !b.is_active(&key.hash).await).await;
        assert!(b.find_within(&key.hash, Duration::ZERO).await.is_ok(), "it is asked for, too");
    }
    assert!(b.is_active(&frozen[0].hash).await, "what is cached is served within the bound");
    primary.watched.thaw();
    replica.watched.thaw();
    until("the shard", async || store.get_by_hash(&frozen[0].hash).await.is_ok()).await;
}
