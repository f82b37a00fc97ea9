//! Settings of servers, full memory, passwords and permissions.

use std::path::PathBuf;

use keyvouch::domain::{ApiKey, RevokeReason, Timestamp};
use keyvouch::repository::{ErrorKind, KeyRepository as _, RedisFiles, RedisOptions, RedisRepository};

use super::{context, now, open, quick};
use crate::redis_servers::{Redis, cli};
use crate::sql::key;
use crate::support::until;

/// A full server rejects changes, returns no false "not found", and still serves reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_out_of_memory_rejects_only_new_keys() {
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

/// With a full memory, only changes that free memory or deny access succeed, and the backend reports that.
#[tokio::test(flavor = "multi_thread")]
async fn revocations_and_deletions_succeed_without_memory() {
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

/// A node that is cut off from its Cluster must not answer reads with outdated data.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_allows_stale_reads_is_rejected() {
    let servers = Redis::Cluster.start(&["--cluster-allow-reads-when-down", "yes"]);
    let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(format!("{error:?}").contains("cluster-allow-reads-when-down no"), "{error:?}");
}

/// Managed servers hide their settings. A setting that can't be read is a warning, and an error with strict
/// options.
#[tokio::test(flavor = "multi_thread")]
async fn strict_options_reject_a_cluster_that_hides_its_settings() {
    let servers = Redis::Cluster.start(&["--rename-command", "CONFIG", ""]);
    RedisRepository::open(&servers.url, quick()).await.unwrap();
    let strict = RedisOptions { strict: true, ..quick() };
    let error = RedisRepository::open(&servers.url, strict).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(format!("{error:?}").contains("cluster-allow-reads-when-down"), "{error:?}");
}

/// Behind Sentinel, a primary that hangs and comes back accepts changes that are lost later. Strict options
/// require a protection.
#[tokio::test(flavor = "multi_thread")]
async fn strict_options_require_protection_from_lost_changes() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let servers = Redis::Sentinel.start(&durable);
    let strict = || RedisOptions { strict: true, ..quick() };
    let error = RedisRepository::open(&servers.url, strict()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    let text = format!("{error:?}");
    assert!(
        text.contains("min-replicas-to-write") && text.contains("store.redis.min_replicas_ack"),
        "{text}"
    );
    RedisRepository::open(&servers.url, RedisOptions { min_replicas_ack: 1, ..strict() }).await.unwrap();
    for server in &servers.servers[..2] {
        cli(server.port, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    }
    RedisRepository::open(&servers.url, strict()).await.unwrap();
}

fn with_password(file: PathBuf) -> RedisOptions {
    RedisOptions { files: RedisFiles { password: Some(file), ..RedisFiles::default() }, ..quick() }
}

/// A password that is changed on the server and in its file is used for new connections. Until both are
/// changed, the log has the reason for failures.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_can_change_while_connected() {
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
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unusable);
    let missing = with_password(folder.path().join("missing"));
    assert_eq!(RedisRepository::open(&url, missing).await.unwrap_err().kind(), ErrorKind::Unusable);
}

/// The missing commands are reported at startup, because each change would fail much later otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_required_command_is_rejected_at_startup() {
    for kind in [Redis::Alone, Redis::Cluster, Redis::Valkey] {
        let servers = kind.start(&[]);
        for server in &servers.servers {
            let user = ["ACL", "SETUSER", "default", "-hmget", "-time", "-xtrim"];
            assert_eq!(cli(server.port, &user), "OK");
        }
        let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unusable);
        let text = format!("{error:?}");
        assert!(text.contains("HMGET TIME XTRIM"), "{text}");
        for server in &servers.servers {
            assert_eq!(cli(server.port, &["ACL", "SETUSER", "default", "+@all"]), "OK");
        }
        let repository = open(&servers, quick()).await;
        repository.create(key("a"), &context()).await.unwrap();
    }
}
