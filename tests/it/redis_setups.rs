//! Tests of URLs and deployments that can't be used: the error names what to change.

use std::error::Error as _;
use std::net::{Ipv4Addr, TcpListener};

use keyvouch::repository::{ErrorKind, KeyRepository as _, RedisOptions, RedisRepository, RepositoryError};

use crate::process::program::wait_for;
use crate::redis_faults::{context, quick};
use crate::redis_servers::{Redis, RedisServers, cli};
use crate::sql::key;

/// Returns the reason of an error, without its kind.
pub(crate) fn reason(error: &RepositoryError) -> String {
    error.source().unwrap_or_else(|| panic!("{error:?} has no source")).to_string()
}

async fn startup_error(url: &str) -> RepositoryError {
    match RedisRepository::open(url, quick()).await {
        Ok(_) => panic!("{url} is accepted"),
        Err(error) => error,
    }
}

/// Parts of a URL that would have no effect are errors, because keys would be stored somewhere else.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_url_without_effect_are_rejected() {
    let (alone, cluster, sentinel) =
        (Redis::Alone.start(&[]), Redis::Cluster.start(&[]), Redis::Sentinel.start(&[]));
    let node = format!("redis-cluster://127.0.0.1:{}", cluster.servers[0].port);
    let without_name = sentinel.url.replace("sentinelServiceName=main&", "");
    for (url, part) in [
        (format!("{}?db=3", alone.url), "`db`"),
        (format!("{}/0?protocol=3", alone.url), "`protocol`"),
        (format!("{node}/3"), "Cluster"),
        (format!("{node}?db=3"), "Cluster"),
        (without_name, "sentinelServiceName"),
    ] {
        let error = startup_error(&url).await;
        assert_eq!(error.kind(), ErrorKind::Unusable, "{url}: {error:?}");
        assert!(reason(&error).contains(part), "{url}: {error:?}");
    }
    for servers in [&alone, &cluster, &sentinel] {
        let (scheme, rest) = servers.url.split_once(':').unwrap();
        RedisRepository::open(&format!("{}:{rest}", scheme.to_uppercase()), quick()).await.unwrap();
    }
    let repository = RedisRepository::open(&format!("{}/3", alone.url), quick()).await.unwrap();
    repository.create(key("a"), &context()).await.unwrap();
    let port = alone.servers[0].port;
    assert_eq!((cli(port, &["DBSIZE"]).as_str(), cli(port, &["-n", "3", "DBSIZE"]) == "0"), ("0", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_a_sentinel_needs_the_url_of_a_sentinel() {
    let servers = Redis::Sentinel.start(&[]);
    let sentinel = format!("redis://127.0.0.1:{}", servers.servers[2].port);
    for url in [sentinel.clone(), format!("{sentinel}/0")] {
        let error = startup_error(&url).await;
        assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
        assert!(reason(&error).contains("redis-sentinel:"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_has_to_match_the_mode_of_valkey() {
    let (alone, cluster) = (Redis::Valkey.start(&[]), Redis::ValkeyCluster.start(&[]));
    for (url, part) in [
        (alone.url.replace("redis:", "redis-cluster:"), "use a redis:"),
        (format!("valkey://127.0.0.1:{}", cluster.servers[0].port), "use a redis-cluster:"),
    ] {
        let error = startup_error(&url).await;
        assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
        assert!(reason(&error).contains(part), "{error:?}");
    }
}

/// Starts a Cluster of one node with all slots.
fn cluster_of_one(kind: Redis, settings: &[&str]) -> RedisServers {
    let servers = kind.start(&[&["--cluster-enabled", "yes"], settings].concat());
    let port = servers.servers[0].port;
    assert_eq!(cli(port, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    wait_for("the cluster", || cli(port, &["CLUSTER", "INFO"]).contains("cluster_state:ok").then_some(()));
    RedisServers { url: servers.url.replace("redis:", "redis-cluster:"), ..servers }
}

/// A port on which nothing listens.
fn closed_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Behind NAT, the nodes of a Cluster announce addresses that can't be reached. The error names the address.
#[tokio::test(flavor = "multi_thread")]
async fn an_announced_address_that_cannot_be_reached_is_named() {
    let closed = closed_port().to_string();
    let by_port = ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", &closed];
    let by_name =
        ["--cluster-announce-hostname", "nowhere.invalid", "--cluster-preferred-endpoint-type", "hostname"];
    for kind in [Redis::Alone, Redis::Valkey] {
        // A node that never met another one knows no address of its own.
        for (settings, announced) in [
            (&by_port[..], format!("`127.0.0.1:{closed}`")),
            (&by_name, "`nowhere.invalid:".to_owned()),
            (&[], "`:".to_owned()),
        ] {
            let servers = cluster_of_one(kind, settings);
            let error = startup_error(&servers.url).await;
            // The node may come up, so a startup waits for it.
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
            let reason = reason(&error);
            assert!(reason.contains(&announced) && reason.contains("cluster-announce-"), "{reason}");
        }
        let servers = cluster_of_one(kind, &["--cluster-announce-ip", "127.0.0.1"]);
        let repository = RedisRepository::open(&servers.url, quick()).await.unwrap();
        repository.create(key("a"), &context()).await.unwrap();
    }
}

/// A volatile policy evicts no key, because keys don't expire. A service that hides its settings is told apart from a
/// server that writes only snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn strict_options_judge_only_what_is_known() {
    let strict = || RedisOptions { strict: true, ..quick() };
    let servers = Redis::Alone.start(&["--maxmemory-policy", "volatile-lru", "--appendonly", "yes"]);
    RedisRepository::open(&servers.url, strict()).await.unwrap();
    let servers = Redis::Alone.start(&["--rename-command", "CONFIG", ""]);
    let error = RedisRepository::open(&servers.url, strict()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(
        reason(&error).contains("can't be read") && reason(&error).contains("store.redis.strict"),
        "{error:?}"
    );
}
