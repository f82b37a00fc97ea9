//! Replication: confirmations of replicas, failovers, demoted and rewound servers.

use std::time::Duration;

use keyvouch::domain::{ApiKey, RevokeReason};
use keyvouch::repository::{ErrorKind, KeyRepository as _, RedisOptions};

use super::{context, open, quick, until_it_answers};
use crate::redis_servers::{Redis, cli};
use crate::sql::key;
use crate::support::until;

/// Changes that wait for a replica don't wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn changes_wait_for_replicas_concurrently() {
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

/// A primary dies under load. If one replica has to confirm, every acknowledged change exists afterwards.
async fn check_failover(kind: Redis) {
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
    assert!(acknowledged.len() < 140, "no change failed during the failover");
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
async fn a_failover_behind_sentinel_loses_no_confirmed_change() {
    check_failover(Redis::Sentinel).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_a_cluster_shard_loses_no_confirmed_change() {
    check_failover(Redis::Cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_a_valkey_shard_loses_no_confirmed_change() {
    check_failover(Redis::ValkeyCluster).await;
}

/// A primary that became a replica answers reads with outdated data, and therefore is not healthy.
#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_primary_is_unavailable() {
    let (servers, other) = (Redis::Alone.start(&[]), Redis::Alone.start(&[]));
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    repository.ping().await.unwrap();
    let port = servers.servers[0].port;
    assert_eq!(cli(port, &["REPLICAOF", "127.0.0.1", &other.servers[0].port.to_string()]), "OK");
    assert_eq!(repository.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    let found = repository.get_by_hash(&created.hash).await.unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Unavailable, "records of a replica are not used");
    let found = repository.get_many_by_hash(&[created.hash]).await.unwrap().remove(0).unwrap_err();
    assert_eq!(found.kind(), ErrorKind::Unavailable);
    let change = repository.revoke(created.id, RevokeReason::default(), &context()).await;
    assert!(change.is_err(), "{change:?}");
    assert_eq!(cli(port, &["REPLICAOF", "NO", "ONE"]), "OK");
    until("the primary", async || repository.ping().await.is_ok()).await;
    until("a change", async || repository.create(key("b"), &context()).await.is_ok()).await;
}

/// A server loses changes that replicas have seen and not polled, because an older copy of its files replaces
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rewound_server_begins_a_new_epoch() {
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
    let epoch = replica.knowledge.epoch();
    until("a poll", async || replica.feed.as_ref().unwrap().poll().await.is_ok()).await;
    assert!(replica.knowledge.epoch() > epoch);
    assert_eq!(replica.backend.get_by_hash(&lost.hash).await.unwrap(), None);
    assert_eq!(replica.backend.get_by_hash(&kept.hash).await.unwrap(), Some(kept));
}

/// Behind Sentinel, reads and changes leave a hanging primary as soon as there is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_behind_sentinel_is_replaced() {
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
    println!("reads and changes succeeded {:?} after the failover", failover.elapsed());
    reads.abort();
    primary.watched.thaw();
}
