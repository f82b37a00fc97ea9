//! Which Redis servers are taken, and how they are reached.

use keyvouch::domain::KeyHash;
use keyvouch::repository::{ErrorKind, KeyRepository as _, RedisOptions, RedisRepository};

use crate::databases::authority;
use crate::redis_faults::{context, open, quick};
use crate::redis_servers::{Redis, cli, free_port};
use crate::sql::key;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lose_keys_is_refused_if_told_so() {
    let strict = || RedisOptions { strict: true, ..quick() };
    for settings in [
        ["--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"],
        ["--maxmemory-policy", "noeviction", "--appendonly", "no"],
    ] {
        let servers = Redis::Alone.start(&settings);
        let error = RedisRepository::open(&servers.url, strict()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        open(&servers, quick()).await;
    }
    let settings = ["--appendonly", "yes", "--appendfsync", "no"];
    let error = RedisRepository::open(&Redis::Alone.start(&settings).url, strict()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let servers = Redis::Alone.start(&["--appendonly", "yes"]);
    open(&servers, strict()).await;
    // Of a Cluster, every primary counts.
    let servers = Redis::Cluster.start(&["--appendonly", "yes"]);
    open(&servers, strict()).await;
    for server in &servers.servers {
        if cli(server.port, &["ROLE"]).starts_with("master") {
            cli(server.port, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
            break;
        }
    }
    assert_eq!(RedisRepository::open(&servers.url, strict()).await.unwrap_err().kind(), ErrorKind::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_no_server_to_start_with() {
    let servers = Redis::Sentinel.start(&[]);
    let url = format!("redis://127.0.0.1:{}", servers.servers[1].port);
    let error = RedisRepository::open(&url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(format!("{error:?}").contains("give the URL of the primary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let servers = Redis::Alone.start(&["--unixsocket", socket.to_str().unwrap()]);
    let repository =
        RedisRepository::open(&format!("redis+unix://{}", socket.display()), quick()).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(open(&servers, quick()).await.get(created.id).await.unwrap(), Some(created));
}

/// A user with a password, a database by its number; and no password in any error.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_and_never_shown() {
    let servers = Redis::Alone.start(&[]);
    let user = ["ACL", "SETUSER", "vouch", "on", ">hunter2", "~*", "&*", "+@all"];
    assert_eq!(cli(servers.servers[0].port, &user), "OK");
    let url =
        |user: &str, database: u8| format!("redis://{user}@127.0.0.1:{}/{database}", servers.servers[0].port);
    let repository = RedisRepository::open(&url("vouch:hunter2", 3), quick()).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let other = RedisRepository::open(&url("vouch:hunter2", 4), quick()).await.unwrap();
    assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), None);
    assert!(!format!("{repository:?} {repository}").contains("hunter2"));
    for wrong in [
        url("vouch:hunter2x", 0),
        url("x:hunter2", 0),
        "redis://u:hunter2@127.0.0.1:1/0".to_owned(),
        "redis://u:hunter2@127.0.0.1:port".to_owned(),
        "redis-sentinel://u:hunter2@127.0.0.1:1".to_owned(),
    ] {
        let error = RedisRepository::open(&wrong, quick()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Refused | ErrorKind::Timeout),
            "{error:?}"
        );
    }
    assert_eq!(repository.get_by_hash(&KeyHash::of("none")).await.unwrap(), None);
}

/// A certificate of the right authority for the right name, or nothing.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let ((ca, certificate), (other_ca, _)) = (authority(), authority());
    let (certificate, tls_key) = certificate.write(folder.path());
    let write = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let (ca, other_ca, none) = (write("ca.pem", &ca), write("other.pem", &other_ca), write("none.pem", ""));
    let port = free_port();
    let _servers = Redis::Alone.start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        certificate.to_str().unwrap(),
        "--tls-key-file",
        tls_key.to_str().unwrap(),
        "--tls-ca-cert-file",
        ca.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
    ]);
    let with = |file: &std::path::Path| RedisOptions { ca_file: Some(file.to_owned()), ..quick() };
    let url = |scheme: &str, host: &str| format!("{scheme}://{host}:{port}");
    let repository = RedisRepository::open(&url("rediss", "localhost"), with(&ca)).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created));
    for (url, file, kind) in [
        (url("rediss", "127.0.0.1"), &ca, ErrorKind::Unavailable),
        (url("rediss", "localhost"), &other_ca, ErrorKind::Unavailable),
        (url("rediss", "localhost"), &none, ErrorKind::Refused),
        (url("redis", "localhost"), &ca, ErrorKind::Refused),
    ] {
        let error = RedisRepository::open(&url, with(file)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{url} {error:?}");
    }
}

/// Told with the right scheme.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_not_taken_for_a_server_nor_a_server_for_a_cluster() {
    let servers = Redis::Alone.start(&["--cluster-enabled", "yes"]);
    let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    // A cluster that is not made yet is one that may come up: a start waits for it.
    let unmade = servers.url.replace("redis:", "redis-cluster:");
    let error = RedisRepository::open(&unmade, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let servers = Redis::Alone.start(&[]);
    let url = servers.url.replace("redis:", "redis-cluster:");
    let error = RedisRepository::open(&url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(format!("{error:?}").contains("its URL begins with redis:"), "{error:?}");
    let error = RedisRepository::open(&format!("{}/99", servers.url), quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
}
