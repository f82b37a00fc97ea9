//! A store or a Redis that is gone, slow or another one.

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
    // Polls that had begun are over.
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
    // A poll of the feed counts too.
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
    let error = replica.repository.update(next, key.revision, &context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(replica.knowledge.feed_age(), None, "what the feed said before counts for nothing");
    assert!(replica.local.as_ref().unwrap().get(&key.hash).await.is_none());
    store.set(Mode::Work);
    replica.poll().await;
    assert!(replica.knowledge.feed_age().is_some());
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
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Redis);
    crate::redis_servers::cli(servers.servers[0].port, &["FLUSHALL"]);
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Store);
    servers.servers[0].watched.freeze();
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Store);
    replica.revoke(key.id).await;
    assert!(!replica.is_active(&key.hash).await, "a change does not wait for it");
    servers.servers[0].watched.thaw();
    until("Redis to be used again", async || replica.find(&key.hash).await.tier == Tier::Redis).await;
    assert!(!replica.is_active(&key.hash).await);
    servers.servers[0].kill();
    assert_eq!(replica.find(&key.hash).await.tier, Tier::Store);
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
    // A failover to a server that has neither key, and another one in their place.
    let other = MemoryRepository::new();
    other.create(self::key("a third"), &context()).await.unwrap();
    store.swap(other);
    replica.poll().await;
    assert!(replica.find(&key.hash).await.entry.key.is_none(), "neither here nor in Redis");
    assert!(replica.is_active(&KeyHash::of("a third")).await);
    replica.create("lost").await;
    assert!(replica.is_active(&key.hash).await);
}

/// A shard that hangs is no reason not to hear of the others' changes, nor to refuse their keys. Its replica hangs too, so
/// that none takes its place.
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
