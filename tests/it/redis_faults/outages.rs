//! Servers that hang, are killed, or are not ready.

use std::time::Duration;

use keyvouch::domain::{ApiKey, RevokeReason};
use keyvouch::repository::{ChangeFeed as _, ErrorKind, KeyRepository as _, RedisOptions, UsageStore as _};

use super::{all_fail, context, now, open, quick, until_it_answers};
use crate::redis_servers::{Redis, cli};
use crate::sql::key;
use crate::support::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_fails_calls_in_time() {
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
async fn a_frozen_shard_delays_no_lookup_of_another() {
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
async fn acknowledged_changes_survive_a_kill() {
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
async fn missing_scripts_are_loaded_again() {
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
