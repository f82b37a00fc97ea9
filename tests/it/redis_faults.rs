//! Tests with failing Redis servers, and tests that need direct access to a server.

use std::path::PathBuf;
use std::time::Duration;

use keyvouch::domain::{ApiKey, ChangeContext, ChangeKind, RevokeReason, Timestamp};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, EventPageRequest, FeedPosition, KeyRepository as _,
    ListedEvent, ListedKey, PagePosition, PageRequest, RedisFiles, RedisOptions, RedisRepository,
    UsageStore as _,
};

use crate::redis_servers::{Redis, RedisServers, cli};
use crate::sql::key;
use crate::support::until;

fn now() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).unwrap()
}

pub(crate) fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", now())
}

pub(crate) fn quick() -> RedisOptions {
    RedisOptions { timeout: Duration::from_millis(500), ..RedisOptions::default() }
}

fn with_password(file: PathBuf) -> RedisOptions {
    RedisOptions { files: RedisFiles { password: Some(file), ..RedisFiles::default() }, ..quick() }
}

pub(crate) async fn open(servers: &RedisServers, options: RedisOptions) -> RedisRepository {
    RedisRepository::open(&servers.url, options).await.unwrap()
}

/// Checks that every call fails in time, with the right kind of error.
async fn all_fail(repository: &RedisRepository, created: &ApiKey) {
    let honest = [ErrorKind::Timeout, ErrorKind::Unavailable];
    let read = repository.get_by_hash(&created.hash).await.unwrap_err();
    assert!(honest.contains(&read.kind()), "{read:?}");
    let change = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap_err();
    assert!(honest.contains(&change.kind()), "{change:?}");
    assert!(honest.contains(&repository.ping().await.unwrap_err().kind()));
}

/// Looks the key up until it is found, because the client has to reconnect by itself.
async fn until_it_answers(repository: &RedisRepository, created: &ApiKey) -> ApiKey {
    let begun = tokio::time::Instant::now();
    loop {
        match repository.get_by_hash(&created.hash).await {
            // The creation was acknowledged, so the key exists.
            Ok(found) => return found.unwrap(),
            Err(error) => assert!(begun.elapsed() < Duration::from_mins(1), "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_told_in_time() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    servers.servers[0].watched.freeze();
    for _ in 0..3 {
        all_fail(&repository, &created).await;
    }
    servers.servers[0].watched.thaw();
    assert_eq!(until_it_answers(&repository, &created).await.id, created.id);
}

/// A change whose connection was closed is not sent again. A repetition would fail although the key was
/// created.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_flight_is_sent_once() {
    let servers = Redis::Alone.start(&[]);
    let options = RedisOptions { timeout: Duration::from_secs(4), ..RedisOptions::default() };
    let repository = open(&servers, options).await;
    repository.create(key("first"), &context()).await.unwrap();
    servers.servers[0].watched.freeze();
    let creating = tokio::spawn({
        let repository = repository.clone();
        async move { repository.create(key("second"), &context()).await }
    });
    // By now, pings have timed out, and the client reconnects.
    tokio::time::sleep(Duration::from_millis(3_300)).await;
    servers.servers[0].watched.thaw();
    let error = creating.await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
    until("the change", async || {
        repository.get_by_hash(&key("second").hash).await.is_ok_and(|it| it.is_some())
    })
    .await;
}

/// Keys of other shards are found, however many lookups wait for a hanging shard.
#[tokio::test]
async fn a_frozen_shard_holds_up_no_look_up_of_another() {
    let servers = Redis::Cluster.start(&["--cluster-require-full-coverage", "no"]);
    let patient = RedisOptions { timeout: Duration::from_mins(1), ..RedisOptions::default() };
    let repository = open(&servers, patient).await;
    let mut keys = Vec::new();
    for number in 0..200 {
        keys.push(repository.create(key(&number.to_string()), &context()).await.unwrap());
    }
    let is_of_the_first = |key: &ApiKey| {
        let name = format!("keyvouch:{{{:02}}}:key:{}", key.hash.as_bytes()[0] % 64, key.hash.to_hex());
        cli(servers.servers[0].port, &["EXISTS", &name]) == "1"
    };
    let (of_the_first, others): (Vec<_>, Vec<_>) = keys.into_iter().partition(is_of_the_first);
    assert!(of_the_first.len() > 20 && others.len() > 20, "{} {}", of_the_first.len(), others.len());
    // The shard's replica hangs too, because it would take over otherwise.
    for frozen in [0, 3, 4, 5] {
        servers.servers[frozen].watched.freeze();
    }
    let mut waiting = Vec::new();
    for key in of_the_first {
        let repository = repository.clone();
        waiting.push(tokio::spawn(async move { repository.get_by_hash(&key.hash).await }));
        // Each lookup begins before the next one.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for key in others {
        assert_eq!(repository.get_by_hash(&key.hash).await.unwrap(), Some(key));
    }
    assert!(waiting.iter().all(|look_up| !look_up.is_finished()));
    for frozen in [0, 3, 4, 5] {
        servers.servers[frozen].watched.thaw();
    }
}

/// With `appendfsync always`, acknowledged changes exist after kill -9.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_comes_back_with_all_that_was_acknowledged() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Redis::Alone.start(&durable);
    let repository = open(&servers, quick()).await;
    let mut created = Vec::new();
    for number in 0..200 {
        created.push(repository.create(key(&number.to_string()), &context()).await.unwrap());
    }
    let revoked = repository.revoke(created[7].id, RevokeReason::default(), &context()).await.unwrap();
    servers.servers[0].kill();
    all_fail(&repository, &created[0]).await;
    servers.servers[0].restart(&durable);
    until_it_answers(&repository, &created[0]).await;
    for key in &created {
        let found = repository.get(key.id).await.unwrap().unwrap();
        assert_eq!(found, if key.id == revoked.id { revoked.clone() } else { key.clone() });
    }
    let again = repository.delete(revoked.id, &context()).await.unwrap();
    assert!(again.revision > revoked.revision);
}

/// A server that runs but has not loaded its files yet must not be treated as one without keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_loads_its_files_is_unavailable() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no"];
    let mut servers = Redis::Alone.start(&durable);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("0"), &context()).await.unwrap();
    for number in 1..300 {
        repository.create(key(&number.to_string()), &context()).await.unwrap();
    }
    servers.servers[0].kill();
    // An option of Redis for tests: this number of microseconds for each command that is loaded.
    servers.servers[0].restart_loading(&[&durable[..], &["--key-load-delay", "1000"]].concat());
    let loading = repository.get_by_hash(&created.hash).await.unwrap_err();
    assert!(matches!(loading.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{loading:?}");
    assert_eq!(until_it_answers(&repository, &created).await, created);
    repository.create(key("300"), &context()).await.unwrap();
}

/// A Cluster that lost a shard with its replica rejects all commands by default.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_down_is_unavailable() {
    let servers = Redis::Cluster.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let (primaries, replicas): (Vec<_>, Vec<_>) =
        servers.servers.iter().partition(|server| cli(server.port, &["ROLE"]).starts_with("master"));
    for server in replicas.into_iter().chain(primaries.iter().copied().take(1)) {
        server.kill();
    }
    crate::process::program::wait_for("the cluster to notice", || {
        cli(primaries[1].port, &["CLUSTER", "INFO"]).contains("cluster_state:fail").then_some(())
    });
    all_fail(&repository, &created).await;
    let polled = repository.changes(None, 10).await.unwrap_err();
    assert!(matches!(polled.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{polled:?}");
}

/// The scripts are missing, as after a failover to a replica that never ran them.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_were_forgotten_are_loaded_again() {
    for min_replicas_ack in [0, 1] {
        let servers = Redis::Sentinel.start(&[]);
        let options = RedisOptions { min_replicas_ack, timeout: Duration::from_mins(1), ..quick() };
        let repository = open(&servers, options).await;
        let created = repository.create(key("a"), &context()).await.unwrap();
        assert_eq!(cli(servers.servers[0].port, &["SCRIPT", "FLUSH"]), "OK");
        repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
        repository.record_usage(&[(created.id, now())]).await.unwrap();
        assert_eq!(repository.changes(None, 10).await.unwrap().events.len(), 2);
    }
}

/// Changes that wait for a replica don't wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn changes_wait_for_a_replica_side_by_side() {
    let servers = Redis::Sentinel.start(&[]);
    // The changes wait for half of this timeout.
    let options = RedisOptions { min_replicas_ack: 1, timeout: Duration::from_mins(1), ..quick() };
    let repository = open(&servers, options).await;
    repository.create(key("before"), &context()).await.unwrap();
    let scripts = || {
        let stats = cli(servers.servers[0].port, &["INFO", "commandstats"]);
        let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_eval")?.split_once("calls="));
        calls.map(|(_, calls)| calls.split(',').next().unwrap().parse::<u32>().unwrap()).sum::<u32>()
    };
    let before = scripts();
    servers.servers[1].watched.freeze();
    // One key per connection, because shards are assigned to connections in turn.
    let connections = u8::try_from(RedisOptions::default().change_connections).unwrap();
    let of_connection = |connection| {
        (0..1_000)
            .map(|number| key(&number.to_string()))
            .find(|key| key.hash.as_bytes()[0] % connections == connection)
            .unwrap()
    };
    let changes = (0..connections).map(of_connection).map(|key| {
        let repository = repository.clone();
        tokio::spawn(async move { repository.create(key, &context()).await })
    });
    let changes: Vec<_> = changes.collect();
    crate::process::program::wait_for("all of them to be made", || {
        (scripts() >= before + u32::from(connections)).then_some(())
    });
    assert!(changes.iter().all(|change| !change.is_finished()));
    servers.servers[1].watched.thaw();
    for change in changes {
        change.await.unwrap().unwrap();
    }
}

/// A full server rejects changes, returns no false "not found", and still serves reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_changes_alone() {
    let servers = Redis::Alone.start(&["--maxmemory-policy", "noeviction"]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    cli(servers.servers[0].port, &["CONFIG", "SET", "maxmemory", "1"]);
    let error = repository.create(key("b"), &context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created));
    assert_eq!(repository.get_by_hash(&key("b").hash).await.unwrap(), None);
    cli(servers.servers[0].port, &["CONFIG", "SET", "maxmemory", "0"]);
    repository.create(key("b"), &context()).await.unwrap();
}

/// A primary dies under load. If one replica has to confirm, every acknowledged change exists afterwards.
async fn a_failover_loses_nothing_that_a_replica_confirmed(kind: Redis) {
    let servers = kind.start(&[]);
    let repository = open(&servers, RedisOptions { min_replicas_ack: 1, ..quick() }).await;
    let mut acknowledged = Vec::new();
    let mut number = 0;
    let mut create_another = async |acknowledged: &mut Vec<ApiKey>| {
        number += 1;
        match repository.create(key(&number.to_string()), &context()).await {
            Ok(created) => acknowledged.push(created),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
            }
        }
    };
    until("a hundred keys", async || {
        create_another(&mut acknowledged).await;
        acknowledged.len() == 100
    })
    .await;
    servers.servers[0].kill();
    // Changes fail until another server has taken over, and then because it has no replica.
    for _ in 0..40 {
        create_another(&mut acknowledged).await;
    }
    assert!(acknowledged.len() < 140, "nobody noticed");
    // The new primary has no replica to confirm changes.
    let alone = open(&servers, quick()).await;
    let begun = tokio::time::Instant::now();
    while let Err(error) = alone.create(key("after"), &context()).await {
        if error.kind() == ErrorKind::AlreadyExists {
            break;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{error:?}");
    }
    for created in &acknowledged {
        assert_eq!(until_it_answers(&alone, created).await, *created);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_sentinel() {
    a_failover_loses_nothing_that_a_replica_confirmed(Redis::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_a_cluster_shard() {
    a_failover_loses_nothing_that_a_replica_confirmed(Redis::Cluster).await;
}

/// A primary that became a replica answers reads with outdated data, and therefore is not healthy.
#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_primary_is_noticed() {
    let (servers, other) = (Redis::Alone.start(&[]), Redis::Alone.start(&[]));
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    repository.ping().await.unwrap();
    let port = servers.servers[0].port;
    assert_eq!(cli(port, &["REPLICAOF", "127.0.0.1", &other.servers[0].port.to_string()]), "OK");
    assert_eq!(repository.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let found = repository.get_by_hash(&created.hash).await.unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Unavailable, "its past counts for nothing");
    let found = repository.get_many_by_hash(&[created.hash]).await.unwrap().remove(0).unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Unavailable);
    let change = repository.revoke(created.id, RevokeReason::default(), &context()).await;
    assert!(change.is_err(), "{change:?}");
    assert_eq!(cli(port, &["REPLICAOF", "NO", "ONE"]), "OK");
    until("the primary", async || repository.ping().await.is_ok()).await;
    until("a change", async || repository.create(key("b"), &context()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_is_one_round_trip() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    cli(port, &["CONFIG", "RESETSTAT"]);
    for _ in 0..50 {
        repository.get_by_hash(&created.hash).await.unwrap().unwrap();
    }
    let stats = cli(port, &["INFO", "commandstats"]);
    let calls = |line: &str| line.split("calls=").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let told: Vec<_> = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_") && !line.contains("config|resetstat"))
        .map(|line| (line.split(':').next().unwrap(), calls(line)))
        .collect();
    // The role is read in the same round trip, because answers of a replica must not be used.
    let both = [("cmdstat_mget", "50".to_owned()), ("cmdstat_role", "50".to_owned())];
    assert!(told.len() == 2 && both.iter().all(|command| told.contains(command)), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_stores_apart() {
    let servers = Redis::Alone.start(&[]);
    let with = |prefix: &str| RedisOptions { key_prefix: prefix.to_owned(), ..quick() };
    let (one, other) = (open(&servers, with("a:")).await, open(&servers, with("b:")).await);
    let created = one.create(key("a"), &context()).await.unwrap();
    assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), None);
    assert_eq!(other.get(created.id).await.unwrap(), None);
    other
        .create(ApiKey { revision: keyvouch::domain::Revision::NONE, ..created.clone() }, &context())
        .await
        .unwrap();
    other.delete(created.id, &context()).await.unwrap();
    assert_eq!(one.get(created.id).await.unwrap(), Some(created));
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    assert_eq!(one.list_page(&request).await.unwrap().len(), 1);
    assert_eq!(other.list_page(&request).await.unwrap(), []);
    assert_eq!(one.changes(None, 10).await.unwrap().events.len(), 1);
}

/// A record in the format of another release, or an invalid one, is an error of its own key, and can be
/// deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_can_not_be_read_is_corrupt_and_can_be_deleted() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let sound = repository.create(key("a"), &context()).await.unwrap();
    let broken = repository.create(key("b"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let hex = data_encoding::HEXLOWER.encode(broken.hash.as_bytes());
    let name = cli(port, &["KEYS", &format!("*key:{hex}")]);
    let stored = cli(port, &["GET", &name]);
    for fault in [stored.replace("\"format\":1", "\"format\":2"), "7 {}".to_owned(), "nonsense".to_owned()] {
        assert_ne!(fault, stored);
        assert_eq!(cli(port, &["SET", &name, &fault]), "OK");
        let found = repository.get_many_by_hash(&[broken.hash, sound.hash]).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|it| it.map_err(|error| error.kind())).collect();
        assert_eq!(found, [Err(ErrorKind::Corrupt), Ok(Some(sound.clone()))], "{fault}");
    }
    repository.delete(broken.id, &context()).await.unwrap();
    assert_eq!(repository.get(broken.id).await.unwrap(), None);
    assert_eq!(repository.get_by_hash(&broken.hash).await.unwrap(), None);
}

/// A follower gets an error if an event was trimmed before it was read.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_trimmed_are_told() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let first = repository.changes(Some(&FeedPosition::beginning()), 10).await.unwrap().position;
    let mut updated = created;
    for _ in 0..5 {
        updated = repository.update(updated.clone(), updated.revision, &context()).await.unwrap();
    }
    let port = servers.servers[0].port;
    let stream = cli(port, &["KEYS", "*events"]);
    assert_eq!(cli(port, &["XTRIM", &stream, "MAXLEN", "3"]), "3");
    for position in [FeedPosition::beginning(), first] {
        let error = repository.changes(Some(&position), 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PositionLost);
    }
    let from_now = repository.changes(None, 10).await.unwrap();
    assert_eq!(from_now.events.len(), 3);
    assert_eq!(repository.changes(Some(&from_now.position), 10).await.unwrap().events, []);
}

/// Neither a lost head nor a clock that was set back makes revisions decrease, and no change is applied
/// partially.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_never_go_back() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let head = cli(port, &["KEYS", "*head"]);
    // The revision is as large as if the clock had been ahead until now.
    assert_eq!(cli(port, &["HSET", &head, "revision", "4000000000000000"]), "0");
    let ahead = repository.update(created.clone(), created.revision, &context()).await.unwrap();
    assert_eq!(ahead.revision.get(), 4_000_000_000_000_001);
    assert_eq!(cli(port, &["DEL", &head]), "1");
    let after = repository.update(ahead.clone(), ahead.revision, &context()).await.unwrap();
    assert_eq!(after.revision.get(), 4_000_000_000_000_002);
    assert_eq!(repository.get(created.id).await.unwrap(), Some(after));
    assert_eq!(repository.changes(None, 10).await.unwrap().events.len(), 3);
    let deleted = repository.delete(created.id, &context()).await.unwrap();
    assert!(deleted.revision.get() > 4_000_000_000_000_002);
}

/// Shards were trimmed, and the feed is read one event at a time. A follower misses nothing after its first
/// position.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_comes_through_shards_that_were_trimmed() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    for number in 0..40 {
        let created = repository.create(key(&number.to_string()), &context()).await.unwrap();
        let updated = repository.update(created.clone(), created.revision, &context()).await.unwrap();
        repository.update(updated.clone(), updated.revision, &context()).await.unwrap();
    }
    let port = servers.servers[0].port;
    for stream in cli(port, &["KEYS", "*events"]).lines() {
        cli(port, &["XTRIM", stream, "MAXLEN", "2"]);
    }
    let all = repository.changes(None, 1_000).await.unwrap().events;
    let mut seen = Vec::new();
    let mut position = None;
    loop {
        let changes = repository.changes(position.as_ref(), 1).await.unwrap();
        if changes.events.is_empty() {
            break;
        }
        seen.extend(changes.events);
        position = Some(changes.position);
    }
    assert_eq!(seen, all);
    assert!(seen.len() >= 40);
    // A position before trimmed events is an error, also in a shard that was not read yet.
    let begun = repository.changes(None, 1).await.unwrap().position;
    for stream in cli(port, &["KEYS", "*events"]).lines() {
        cli(port, &["XTRIM", stream, "MAXLEN", "1"]);
    }
    assert_eq!(repository.changes(Some(&begun), 1).await.unwrap_err().kind(), ErrorKind::PositionLost);
}

/// Unreadable records and events stop neither the feed nor listings, and have a position. An event of an
/// unknown kind, which a newer release may write, is treated as a change.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_read_stops_nothing() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let sound = repository.create(key("a"), &context()).await.unwrap();
    let broken = repository.create(key("b"), &context()).await.unwrap();
    let before = repository.changes(None, 10).await.unwrap().position;
    let port = servers.servers[0].port;
    let shard = format!("keyvouch:{{{:02}}}:", broken.hash.as_bytes()[0] % 64);
    let hex = broken.hash.to_hex();
    assert_eq!(cli(port, &["SET", &format!("{shard}key:{hex}"), "nonsense"]), "OK");
    let events = format!("{shard}events");
    let next = |more: i64| format!("{}-1", broken.revision.get() + more);
    let unknown = format!(
        r#"{{"nonce":7,"key_id":"{}","hash":"{hex}","owner_id":"owner","kind":"frobbed","changed_fields":["new"],"actor":"","request_id":"","at":0}}"#,
        broken.id
    );
    cli(port, &["XADD", &events, &next(1), "event", &unknown]);
    cli(port, &["XADD", &events, &next(2), "event", "nonsense"]);
    cli(port, &["HINCRBY", &format!("{shard}head"), "events", "2"]);

    let changes = repository.changes(Some(&before), 10).await.unwrap();
    assert_eq!(changes.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [ChangeKind::Unknown]);
    let unreadable: Vec<_> = changes.unreadable.iter().map(|event| event.revision.get()).collect();
    assert_eq!(unreadable, [broken.revision.get() + 2]);
    let behind = repository.changes(Some(&changes.position), 10).await.unwrap();
    assert_eq!((behind.events.len(), behind.unreadable.len()), (0, 0));
    assert_eq!(repository.recent_changes(10).await.unwrap().unreadable.len(), 1);
    let all = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 10 };
    let listed = repository.list_events(&all).await.unwrap();
    assert_eq!(listed.iter().filter(|event| matches!(event, ListedEvent::Unreadable(_))).count(), 1);
    assert_eq!(listed.len(), 4);

    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    let listed = repository.list_page(&request).await.unwrap();
    assert!(listed.contains(&ListedKey::Read(sound)) && listed.len() == 2);
    assert!(listed.contains(&ListedKey::Unreadable(PagePosition::of(&broken))));

    // The unreadable record can be revoked, and is a normal record afterwards.
    let revoked = repository.revoke(broken.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&broken.hash).await.unwrap(), Some(revoked.clone()));
    assert!(revoked.revocation.is_some() && revoked.owner_id == broken.owner_id);
    repository.delete(broken.id, &context()).await.unwrap();
    let revived = repository.create(broken, &context()).await.unwrap_err();
    assert_eq!(revived.kind(), ErrorKind::RevokedHash);
}

/// Revoking a record that breaks one rule keeps the rest of it. Of concurrent revocations, the first is kept.
/// The others find a revoked record, and change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_of_a_broken_record_outlives_its_revocation() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let expires_at = Some(Timestamp::MAX);
    let created = repository.create(ApiKey { expires_at, ..key("a") }, &context()).await.unwrap();
    let port = servers.servers[0].port;
    let name = format!("keyvouch:{{{:02}}}:key:{}", created.hash.as_bytes()[0] % 64, created.hash.to_hex());
    let stored = cli(port, &["GET", &name]);
    let broken = stored.replace(r#""prefix":""#, r#""prefix":"no prefix"#);
    assert_ne!(stored, broken);
    assert_eq!(cli(port, &["SET", &name, &broken]), "OK");
    assert_eq!(repository.get(created.id).await.unwrap_err().kind(), ErrorKind::Corrupt);

    let revoking = (0..20).map(|_| {
        let repository = repository.clone();
        async move { repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap() }
    });
    let revoked = futures_util::future::join_all(revoking).await;
    let stored = repository.get(created.id).await.unwrap().unwrap();
    for revoked in revoked {
        assert_eq!(revoked, stored);
    }
    assert!(stored.revocation.is_some());
    assert_eq!((&stored.name, stored.expires_at), (&created.name, expires_at));
    let events = repository.changes(None, 100).await.unwrap().events;
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [ChangeKind::Created, ChangeKind::Revoked]);
}

/// A clock that was far in the future for a moment leaves nothing behind that can't be changed any more. A
/// shard that lost its head prevents no replica from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_and_a_lost_head_poison_no_shard() {
    let servers = Redis::Alone.start(&[]);
    let port = servers.servers[0].port;
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let shard = format!("keyvouch:{{{:02}}}:", created.hash.as_bytes()[0] % 64);
    // `LATEST` in `change.lua`: the latest clock that revisions follow.
    cli(port, &["HSET", &format!("{shard}head"), "revision", "7000000000000000"]);
    let mut last = created.clone();
    for _ in 0..3 {
        let next = ApiKey { updated_at: now(), ..last.clone() };
        let updated = repository.update(next, last.revision, &context()).await.unwrap();
        assert!(updated.revision > last.revision);
        last = updated;
    }
    assert_eq!(last.revision.get(), 7_000_000_000_000_003);
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();

    cli(port, &["DEL", &format!("{shard}head")]);
    let recent = repository.recent_changes(10).await.unwrap();
    assert_eq!(recent.events.len(), 5);
    let begun = repository.changes(None, 10).await.unwrap();
    assert_eq!(begun.events.len(), 5);
    repository.delete(created.id, &context()).await.unwrap();
    assert_eq!(repository.changes(Some(&begun.position), 10).await.unwrap().events.len(), 1);
    assert_eq!(repository.changes(Some(&recent.position), 10).await.unwrap().events.len(), 1);
}

/// A clock that was two centuries ahead leaves large revisions behind. Later revisions grow by one, and stay
/// exact.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_from_a_clock_far_ahead_are_followed_by_the_next_ones() {
    const AHEAD: i64 = 8_000_000_000_000_000;
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let head = cli(port, &["KEYS", "*head"]);
    cli(port, &["HSET", &head, "revision", &AHEAD.to_string()]);
    for number in 1..=3 {
        let current = repository.get(created.id).await.unwrap().unwrap();
        let next = ApiKey { updated_at: now(), ..current.clone() };
        let updated = repository.update(next, current.revision, &context()).await.unwrap();
        assert_eq!(updated.revision.get(), AHEAD + number);
    }
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(repository.changes(None, 10).await.unwrap().events.len(), 5);
    // A replica that starts now follows the feed too.
    let started = repository.recent_changes(10).await.unwrap();
    assert_eq!(repository.changes(Some(&started.position), 10).await.unwrap().events, []);
}

/// A node that is cut off from its Cluster must not answer reads with outdated data.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_reads_when_it_is_down_is_refused() {
    let servers = Redis::Cluster.start(&["--cluster-allow-reads-when-down", "yes"]);
    let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("cluster-allow-reads-when-down no"), "{error:?}");
}

/// Managed servers hide their settings. A setting that can't be read is a warning, and an error with strict
/// options.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hides_its_settings_is_refused_by_strict_options() {
    let servers = Redis::Cluster.start(&["--rename-command", "CONFIG", ""]);
    RedisRepository::open(&servers.url, quick()).await.unwrap();
    let strict = RedisOptions { strict: true, ..quick() };
    let error = RedisRepository::open(&servers.url, strict).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("cluster-allow-reads-when-down"), "{error:?}");
}

/// Behind Sentinel, a primary that hangs and comes back accepts changes that are lost later. Strict options
/// require a protection.
#[tokio::test(flavor = "multi_thread")]
async fn strict_options_demand_a_protection_from_lost_changes() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let servers = Redis::Sentinel.start(&durable);
    let strict = || RedisOptions { strict: true, ..quick() };
    let error = RedisRepository::open(&servers.url, strict()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let told = format!("{error:?}");
    assert!(told.contains("min-replicas-to-write") && told.contains("redis_min_replicas_ack"), "{told}");
    RedisRepository::open(&servers.url, RedisOptions { min_replicas_ack: 1, ..strict() }).await.unwrap();
    for server in &servers.servers[..2] {
        cli(server.port, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    }
    RedisRepository::open(&servers.url, strict()).await.unwrap();
}

/// A server loses changes that replicas have seen and not polled, because an older copy of its files replaces
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_history_is_noticed() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Redis::Alone.start(&durable);
    let store = open(&servers, quick()).await;
    let kept = store.create(key("kept"), &context()).await.unwrap();
    let unpolled = || {
        let mut options = crate::cached::options();
        options.feed.poll_interval = Duration::from_hours(1);
        options
    };
    let replica = crate::cached::Replica::start(store.clone(), &unpolled()).await;
    replica.feed.as_ref().unwrap().poll().await.unwrap();
    servers.servers[0].keep_a_copy(&durable);
    until("the server", async || store.ping().await.is_ok()).await;
    let lost = replica.backend.create(key("lost"), &context()).await.unwrap();
    let found = replica.backend.get_by_hash(&lost.hash).await.unwrap();
    assert_eq!(found, Some(lost.clone()));
    servers.servers[0].kill();
    servers.servers[0].start_the_copy(&durable);
    until("the server", async || store.ping().await.is_ok()).await;
    let epoch = replica.knowledge.history();
    until("a poll", async || replica.feed.as_ref().unwrap().poll().await.is_ok()).await;
    assert!(replica.knowledge.history() > epoch);
    assert_eq!(replica.backend.get_by_hash(&lost.hash).await.unwrap(), None);
    assert_eq!(replica.backend.get_by_hash(&kept.hash).await.unwrap(), Some(kept));
}

/// With a full memory, only changes that free memory or deny access succeed, and the backend reports that.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_memory_stops_no_revocation() {
    let servers = Redis::Alone.start(&["--maxmemory-policy", "noeviction"]);
    let repository = open(&servers, quick()).await;
    let mut created = Vec::new();
    for name in ["a", "b"] {
        created.push(repository.create(key(name), &context()).await.unwrap());
    }
    repository.check_changes().await.unwrap();
    let port = servers.servers[0].port;
    cli(port, &["CONFIG", "SET", "maxmemory", "500kb"]);
    assert_eq!(repository.check_changes().await.unwrap_err().kind(), ErrorKind::Unavailable);
    repository.ping().await.unwrap();
    let refused = repository.create(key("c"), &context()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let next = ApiKey { updated_at: now(), expires_at: Some(Timestamp::MAX), ..created[0].clone() };
    let refused = repository.update(next, created[0].revision, &context()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    repository.revoke(created[0].id, RevokeReason::default(), &context()).await.unwrap();
    repository.delete(created[1].id, &context()).await.unwrap();
    repository.delete(created[0].id, &context()).await.unwrap();
    cli(port, &["CONFIG", "SET", "maxmemory", "0"]);
    repository.check_changes().await.unwrap();
    repository.create(key("c"), &context()).await.unwrap();
}

/// A password that is changed on the server and in its file is used for new connections. Until both are
/// changed, the log has the reason for failures.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_can_change_while_the_store_is_open() {
    let servers = Redis::Alone.start(&[]);
    let port = servers.servers[0].port;
    let user = |password: &str| {
        assert_eq!(cli(port, &["ACL", "SETUSER", "kv", "reset", "on", "~*", "&*", "+@all", password]), "OK");
        cli(port, &["CLIENT", "KILL", "USER", "kv"]);
    };
    user(">old");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let url = format!("redis://kv@127.0.0.1:{port}");
    let options = || with_password(file.clone());
    let repository = RedisRepository::open(&url, options()).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    user(">new");
    until("the old password to be refused", async || repository.ping().await.is_err()).await;
    std::fs::write(&file, "new\n").unwrap();
    until("the new password", async || repository.get_by_hash(&created.hash).await.is_ok()).await;
    until("changes", async || {
        repository.revoke(created.id, RevokeReason::default(), &context()).await.is_ok()
    })
    .await;

    let refused = RedisRepository::open(&format!("redis://kv:new@127.0.0.1:{port}"), options()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);
    let missing = with_password(folder.path().join("missing"));
    assert_eq!(RedisRepository::open(&url, missing).await.unwrap_err().kind(), ErrorKind::Refused);
}

/// The missing commands are reported at startup, because each change would fail much later otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_lacks_a_command_is_refused_at_the_start() {
    for kind in [Redis::Alone, Redis::Cluster] {
        let servers = kind.start(&[]);
        for server in &servers.servers {
            let user = ["ACL", "SETUSER", "default", "-hmget", "-time", "-xtrim"];
            assert_eq!(cli(server.port, &user), "OK");
        }
        let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let told = format!("{error:?}");
        assert!(told.contains("HMGET TIME XTRIM"), "{told}");
        for server in &servers.servers {
            assert_eq!(cli(server.port, &["ACL", "SETUSER", "default", "+@all"]), "OK");
        }
        let repository = open(&servers, quick()).await;
        repository.create(key("a"), &context()).await.unwrap();
    }
}

/// Behind Sentinel, reads and changes leave a hanging primary as soon as there is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_behind_sentinel_is_left() {
    let servers = Redis::Sentinel.start(&[]);
    let repository = open(&servers, RedisOptions::default()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let [primary, replica, ..] = &servers.servers[..] else { panic!("a primary and its replica come first") };
    until("the replica", async || cli(replica.port, &["DBSIZE"]) == cli(primary.port, &["DBSIZE"])).await;
    primary.watched.freeze();
    // Reads continue all the time, so that something was always just written to the connection.
    let reads = tokio::spawn({
        let (repository, hash) = (repository.clone(), created.hash);
        async move {
            loop {
                let _ = repository.get_by_hash(&hash).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    until("another primary", async || cli(replica.port, &["ROLE"]).starts_with("master")).await;
    let failover = tokio::time::Instant::now();
    until("reads", async || repository.get_by_hash(&created.hash).await.is_ok()).await;
    until("changes", async || {
        let other = key(&format!("{:?}", failover.elapsed()));
        repository.create(other, &context()).await.is_ok()
    })
    .await;
    println!("reads and changes went on {:?} after the failover", failover.elapsed());
    reads.abort();
    primary.watched.thaw();
}
