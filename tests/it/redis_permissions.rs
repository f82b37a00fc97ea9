//! The documented permissions of Redis users are exactly enough, and missing ones are reported by name.

use std::collections::BTreeSet;
use std::path::Path;

use keyvouch::cache::{StackOptions, Tier};
use keyvouch::domain::{ApiKey, OwnerId, RevokeReason, Timestamp};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, EventPageRequest, KeyRepository as _, MemoryRepository,
    PageRequest, RedisOptions, RedisRepository, UsageStore as _,
};
use serde_json::Value;

use crate::cached::{Replica, options, redis};
use crate::process::program::{Home, wait_for};
use crate::redis_faults::{context, quick};
use crate::redis_servers::{Redis, RedisServers, cli};
use crate::redis_setups::reason;
use crate::sql::key;

/// The rows of the table in `docs/configuration.md#permissions`: who needs the commands, and the commands.
fn documented() -> Vec<(String, Vec<String>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let document = std::fs::read_to_string(path).unwrap();
    let section = document.split("### Permissions").nth(1).unwrap().split("\n### ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let (user, commands) = (cells.next().unwrap(), cells.next().unwrap());
        (user.to_owned(), commands.trim_matches('`').split(' ').map(str::to_owned).collect())
    })
    .collect()
}

/// Returns the documented commands of `user` on servers of this kind, in the rows that `is_needed` selects.
fn commands_of(user: &str, is_needed: impl Fn(&str) -> bool) -> Vec<String> {
    let mut is_of_user = false;
    let mut commands = Vec::new();
    for (row, listed) in documented() {
        match row.strip_prefix("– ") {
            None => {
                is_of_user = row == user;
                commands.extend(listed.into_iter().filter(|_| is_of_user));
            }
            Some(condition) if is_of_user && is_needed(condition) => commands.extend(listed),
            Some(_) => {}
        }
    }
    assert!(commands.len() > 5, "{commands:?}");
    commands
}

/// Gives the user `kv` only `commands`, and returns the URL for it with `path`.
fn as_user(servers: &RedisServers, commands: &[String], prefix: &str, path: &str) -> String {
    for server in &servers.servers {
        let (names, channel) = (format!("~{prefix}*"), format!("&{prefix}changes"));
        let mut user = vec!["ACL", "SETUSER", "kv", "reset", "on", ">pw", &names, &channel];
        let allowed: Vec<_> = commands.iter().map(|command| format!("+{}", command.to_lowercase())).collect();
        user.extend(allowed.iter().map(String::as_str));
        assert_eq!(cli(server.port, &user), "OK");
        cli(server.port, &["ACL", "LOG", "RESET"]);
    }
    servers.url.replacen("://", "://kv:pw@", 1) + path
}

/// Returns the denied commands in the servers' logs, apart from those that only fred tries.
fn denied(servers: &RedisServers) -> BTreeSet<String> {
    let mut denied = BTreeSet::new();
    for server in &servers.servers {
        let log = cli(server.port, &["ACL", "LOG"]);
        let lines: Vec<_> = log.lines().collect();
        let objects = lines.windows(2).filter(|pair| pair[0] == "object").map(|pair| pair[1].to_owned());
        denied.extend(objects);
    }
    denied.retain(|command| !["client|id", "config|get", "info"].contains(&command.as_str()));
    denied
}

/// Uses every function of the repository that sends commands of its own.
async fn use_all(url: &str, options: RedisOptions) {
    let repository = RedisRepository::open(url, options).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let second = repository.create(key("b"), &context()).await.unwrap();
    let next = ApiKey { expires_at: Some(Timestamp::MAX), ..created.clone() };
    let updated = repository.update(next, created.revision, &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(updated));
    repository.revoke(second.id, RevokeReason::default(), &context()).await.unwrap();
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    assert_eq!(repository.list_page(&request).await.unwrap().len(), 2);
    let owner: OwnerId = created.owner_id.clone();
    let request = PageRequest { owner_id: Some(owner), after: None, limit: 10 };
    repository.list_page(&request).await.unwrap();
    repository.record_usage(&[(created.id, created.created_at)]).await.unwrap();
    assert!(repository.usage(&[created.id]).await.unwrap()[0].is_some());
    let newest = repository.recent_changes(10).await.unwrap();
    repository.changes(Some(&newest.position), 10).await.unwrap();
    let events = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 10 };
    assert_eq!(repository.list_events(&events).await.unwrap().len(), 4);
    repository.delete(second.id, &context()).await.unwrap();
    repository.prune_events(Timestamp::MAX).await.unwrap();
    assert!(repository.identity().await.unwrap().is_some());
    repository.check_changes().await.unwrap();
    repository.ping().await.unwrap();
    repository.close().await.unwrap();
}

fn is_needed_by_backend(kind: Redis, path: &str, condition: &str) -> bool {
    match condition {
        "not on a Cluster" => !kind.is_cluster(),
        "on a Cluster" => kind.is_cluster(),
        "with a database number in the URL" => !path.is_empty(),
        "with `store.redis.min_replicas_ack`" => false,
        "for notifications" => true,
        _ => panic!("an unknown condition: {condition}"),
    }
}

/// With the documented commands, no command is denied. Each of them is needed: without it, startup fails and names it.
async fn check_backend(kind: Redis, path: &str) {
    let servers = kind.start(&[]);
    let commands = commands_of("backend", |condition| is_needed_by_backend(kind, path, condition));
    let url = as_user(&servers, &commands, "keyvouch:", path);
    Box::pin(use_all(&url, quick())).await;
    assert_eq!(denied(&servers), BTreeSet::new());
    for missing in &commands {
        let others: Vec<_> = commands.iter().filter(|command| *command != missing).cloned().collect();
        let url = as_user(&servers, &others, "keyvouch:", path);
        let opened = RedisRepository::open(&url, quick()).await;
        // Notifications are not required, only announced.
        if ["PUBLISH", "SUBSCRIBE"].contains(&missing.as_str()) {
            opened.unwrap();
            continue;
        }
        let error = opened.err().unwrap_or_else(|| panic!("{missing} is not needed on {kind:?}"));
        assert_eq!(error.kind(), ErrorKind::Unusable, "{missing}: {error:?}");
        let text = reason(&error);
        let listed =
            text.split("lacks permission for ").nth(1).unwrap_or_else(|| panic!("{missing}: {text}"));
        assert_eq!(listed.split([' ', ';']).next(), Some(missing.as_str()), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_the_backend_are_exactly_enough() {
    Box::pin(check_backend(Redis::Alone, "/0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_the_backend_are_exactly_enough_on_a_cluster() {
    Box::pin(check_backend(Redis::Cluster, "")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_the_backend_are_exactly_enough_on_valkey() {
    Box::pin(check_backend(Redis::Valkey, "/3")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_replicas_needs_its_permission() {
    let servers = Redis::Alone.start(&[]);
    let commands = commands_of("backend", |condition| is_needed_by_backend(Redis::Alone, "", condition));
    let url = as_user(&servers, &commands, "keyvouch:", "");
    let options = RedisOptions { min_replicas_ack: 1, ..quick() };
    let error = RedisRepository::open(&url, options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(reason(&error).contains("lacks permission for WAIT"), "{error:?}");
}

fn commands_of_cache(kind: Redis, path: &str) -> Vec<String> {
    commands_of("cache", |condition| match condition {
        "on a Cluster" => kind.is_cluster(),
        "with a database number in the URL" => !path.is_empty(),
        "for notifications" => true,
        _ => panic!("an unknown condition: {condition}"),
    })
}

/// With the documented commands, the cache is used, and no command is denied.
async fn check_cache(kind: Redis, path: &str) {
    let servers = kind.start(&[]);
    let url = as_user(&servers, &commands_of_cache(kind, path), "cache:", path);
    let stack = StackOptions { redis: Some(redis(&url, "cache:")), local: None, ..options() };
    let replica = Replica::start(MemoryRepository::new(), &stack).await;
    let key = replica.create("secret").await;
    replica.feed.as_ref().unwrap().poll().await.unwrap();
    crate::support::until("the cache", async || {
        replica.is_active(&key.hash).await;
        replica.find(&key.hash).await.tier == Tier::Shared
    })
    .await;
    replica.revoke(key.id).await;
    assert!(!replica.is_active(&key.hash).await);
    assert_eq!(denied(&servers), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permissions_of_the_cache_are_enough() {
    for (kind, path) in [
        (Redis::Alone, "/1"),
        (Redis::Alone, ""),
        (Redis::Cluster, ""),
        (Redis::Valkey, "/1"),
        (Redis::ValkeyCluster, ""),
    ] {
        check_cache(kind, path).await;
    }
}

/// Starts a server whose cache is at `url`. Returns its warnings with the missing commands, once there is one.
fn warning(url: &str, field: &str) -> Value {
    let home = Home::new();
    let url = format!("cache.redis.url={url}");
    let server = home.serve(&["cache.redis.prefix=cache:", &url, "telemetry.log_format=json"]);
    // Lookups continue without the cache.
    let created = home.create_key(&server, &[]);
    assert_eq!(home.validate(&server, created["secret"].as_str().unwrap()).1, "REASON_VALID");
    let warnings = || {
        let entries = home.log().into_iter();
        entries.filter(|entry| entry["level"] == "WARN" && !entry[field].is_null()).collect::<Vec<_>>()
    };
    wait_for("the warning", || (!warnings().is_empty()).then_some(()));
    drop(server);
    let mut warnings = warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.remove(0)
}

/// The log has one warning with all missing commands.
#[test]
fn missing_permissions_of_the_cache_are_logged_by_name() {
    for (kind, path) in [(Redis::Alone, "/1"), (Redis::Cluster, ""), (Redis::Valkey, "/1")] {
        let servers = kind.start(&[]);
        let all = commands_of_cache(kind, path);
        let listed = |url: &str| {
            let warning = warning(url, "missing");
            warning["missing"].as_str().unwrap().split(' ').map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let none = as_user(&servers, &[], "cache:", path);
        assert_eq!(listed(&none), all.iter().cloned().collect(), "{kind:?}");
        let removed = ["SELECT", "CLUSTER", "EVAL", "SUBSCRIBE"];
        let (missing, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|command| removed.contains(&command.as_str()));
        assert_eq!(missing.len(), 3);
        let url = as_user(&servers, &rest, "cache:", path);
        assert_eq!(listed(&url), missing.into_iter().collect(), "{kind:?}");
    }
}

/// A cache whose URL is for another kind of deployment is reported, too.
#[test]
fn a_cache_of_another_kind_is_logged() {
    let sentinels = Redis::Sentinel.start(&[]);
    let cluster = Redis::Cluster.start(&[]);
    let alone = Redis::Alone.start(&[]);
    for (url, hint) in [
        (format!("redis://127.0.0.1:{}", sentinels.servers[2].port), "redis-sentinel:"),
        (format!("redis://127.0.0.1:{}", cluster.servers[0].port), "redis-cluster:"),
        (alone.url.replace("redis:", "redis-cluster:"), "redis:"),
        (format!("{}/99", alone.url), "database number"),
    ] {
        let text = warning(&url, "cache")["message"].as_str().unwrap().to_owned();
        assert!(text.contains(hint), "{url}: {text}");
    }
}
