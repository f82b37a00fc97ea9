//! Startup checks: whether the server keeps keys safely, and whether the user has the required permissions.

use std::collections::{BTreeSet, HashMap};

use fred::types::scripts::Script;
use futures_util::future::join_all;

use super::RedisOptions;
use super::connection::{ALLOWS_STALE_READS, Connection};
use super::error::NO_CLUSTER;
use super::keyspace::{Keyspace, Shard};
use crate::repository::{ErrorKind, RepositoryError, Result};

/// The oldest version that supports all commands used here.
const OLDEST: Version = (6, 2);

/// A major and a minor version.
type Version = (u32, u32);

/// Logs a warning for each setting with which servers may lose keys, or fails if the options are strict.
/// Returns the oldest version among the servers.
pub(super) async fn servers(connection: &Connection, options: &RedisOptions) -> Result<Version> {
    let mut oldest = (u32::MAX, 0);
    for (info, settings) in connection.describe().await? {
        oldest = oldest.min(server(connection, options, &fields(&info), &settings)?);
    }
    Ok(oldest)
}

fn server(
    connection: &Connection,
    options: &RedisOptions,
    info: &HashMap<&str, &str>,
    settings: &HashMap<String, String>,
) -> Result<Version> {
    let version = info.get("redis_version").copied().and_then(version_of).unwrap_or(OLDEST);
    if version < OLDEST {
        return Err(RepositoryError::new(
            ErrorKind::Unusable,
            "the server is older than Redis 6.2; use a newer version",
        ));
    }
    // Valkey has another name for the mode, but both have this field.
    let is_cluster = info.get("cluster_enabled").copied() == Some("1");
    if is_cluster != connection.is_clustered() {
        let problem = if is_cluster {
            "the server is in cluster mode; use a redis-cluster: or rediss-cluster: URL"
        } else {
            NO_CLUSTER
        };
        return Err(RepositoryError::new(ErrorKind::Unusable, problem));
    }
    if info.get("role").copied() == Some("slave") {
        let problem = "the server is a replica, which rejects changes; use the URL of the primary";
        return Err(RepositoryError::new(ErrorKind::Unavailable, problem));
    }
    if settings.get(ALLOWS_STALE_READS).map(String::as_str) == Some("yes") {
        return Err(RepositoryError::new(
            ErrorKind::Unusable,
            "a node that is cut off from the Cluster would return outdated records, so that revoked keys stay valid; set \
             `cluster-allow-reads-when-down no`",
        ));
    }
    let replication = Replication {
        // A primary of a Cluster that was suspended rejects changes by itself when it resumes.
        is_replicated: !connection.is_clustered()
            && (connection.has_sentinel()
                || info.get("connected_slaves").is_some_and(|replicas| *replicas != "0")),
        min_replicas_ack: options.min_replicas_ack,
        is_clustered: connection.is_clustered(),
    };
    for problem in problems(info, settings, replication) {
        if options.strict {
            return Err(RepositoryError::new(ErrorKind::Unusable, problem));
        }
        tracing::warn!(store = %connection, "{problem}");
    }
    Ok(version)
}

/// Fails if the user lacks permission for a required command. Otherwise the first change that needs it would
/// fail.
pub(super) async fn permissions(connection: &Connection, keyspace: &Keyspace) -> Result<()> {
    let probe = Script::from_lua(include_str!("permissions.lua"));
    let asked = Shard::all().map(|shard| connection.try_out(&probe, vec![keyspace.probe(shard).into()]));
    let mut forbidden = BTreeSet::new();
    for answer in join_all(asked).await {
        match answer {
            Ok(commands) => forbidden.extend(commands),
            // Startup must not depend on every node of a cluster, so other errors are ignored.
            Err(error) if error.details().contains("NOPERM") => {
                forbidden.extend(["EVAL", "EVALSHA"].map(str::to_owned));
            }
            Err(_) => {}
        }
    }
    if forbidden.is_empty() {
        return Ok(());
    }
    let commands: Vec<_> = forbidden.into_iter().collect();
    let problem = format!(
        "the Redis user lacks permission for {} on names that begin with store.redis.prefix; grant the commands listed in docs/configuration.md#redis",
        commands.join(" ")
    );
    Err(RepositoryError::new(ErrorKind::Unusable, problem))
}

/// Fails if a server is out of memory and therefore rejects new keys.
pub(super) async fn memory(connection: &Connection) -> Result<()> {
    for info in connection.memory().await? {
        let info = fields(&info);
        let bytes = |name| info.get(name).and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
        let (used, max) = (bytes("used_memory"), bytes("maxmemory"));
        if max > 0 && used >= max && info.get("maxmemory_policy") == Some(&"noeviction") {
            return Err(RepositoryError::new(
                ErrorKind::Unavailable,
                "the Redis server is out of memory; only revocations and deletions are possible",
            ));
        }
    }
    Ok(())
}

/// Parses the lines of `INFO`.
fn fields(info: &str) -> HashMap<&str, &str> {
    info.lines().filter_map(|line| line.trim_end().split_once(':')).collect()
}

/// The replication of changes.
#[derive(Clone, Copy, Debug)]
struct Replication {
    /// Whether another server can become the primary.
    is_replicated: bool,
    min_replicas_ack: u32,
    is_clustered: bool,
}

/// Returns the problems of a server with the output `info` of `INFO`, each with its fix.
fn problems(
    info: &HashMap<&str, &str>,
    settings: &HashMap<String, String>,
    replication: Replication,
) -> Vec<&'static str> {
    let saves_snapshots = settings.get("save").map(|save| !save.is_empty());
    let mut problems = Vec::new();
    let wants_replicas = settings.get("min-replicas-to-write").is_some_and(|count| count != "0");
    if replication.is_replicated && replication.min_replicas_ack == 0 && !wants_replicas {
        problems.push(
            "a primary that resumes after a hang accepts changes that the failover loses; set `store.redis.min_replicas_ack = 1`, \
             or `min-replicas-to-write 1` and `min-replicas-max-lag 2` on the servers",
        );
    }
    if replication.is_clustered && !settings.contains_key(ALLOWS_STALE_READS) {
        problems.push(
            "the server's settings can't be read; make sure that `cluster-allow-reads-when-down` is `no`, because a node that \
             is cut off from the Cluster would otherwise return outdated records, so that revoked keys stay valid",
        );
    }
    let policy = info.get("maxmemory_policy").copied().unwrap_or("noeviction");
    if policy != "noeviction" {
        problems.push("the server may evict keys when its memory is full; set `maxmemory-policy noeviction`");
    }
    let appends = info.get("aof_enabled").copied() == Some("1");
    if !appends && saves_snapshots == Some(false) {
        problems.push("the server stores nothing on disk; set `appendonly yes` and `appendfsync always`");
    } else if !appends {
        problems.push(
            "the server writes only snapshots, so a crash loses the changes after the last one; set `appendonly yes` and \
             `appendfsync always`",
        );
    } else if settings.get("appendfsync").map(String::as_str) == Some("no") {
        problems.push("the server never flushes changes to disk itself; set `appendfsync always`");
    }
    problems
}

fn version_of(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_a_server_are_listed() {
        let own = |settings: &[(&str, &str)]| {
            settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let alone = Replication { is_replicated: false, min_replicas_ack: 0, is_clustered: false };
        let problems_of = |policy, aof, settings: &[(&str, &str)]| {
            let info = HashMap::from([("maxmemory_policy", policy), ("aof_enabled", aof)]);
            problems(&info, &own(settings), alone).join("; ")
        };
        assert_eq!(problems_of("noeviction", "1", &[("save", ""), ("appendfsync", "always")]), "");
        assert!(problems_of("allkeys-lru", "1", &[]).contains("noeviction"));
        assert!(problems_of("noeviction", "0", &[("save", "")]).contains("appendonly yes"));
        assert!(problems_of("noeviction", "0", &[("save", "3600 1")]).contains("only snapshots"));
        assert!(problems_of("noeviction", "1", &[("appendfsync", "no")]).contains("appendfsync always"));
        let replicated = |min_replicas_ack, settings: &[(&str, &str)]| {
            let info = HashMap::from([("aof_enabled", "1")]);
            let replication = Replication { is_replicated: true, min_replicas_ack, is_clustered: false };
            problems(&info, &own(settings), replication).join("; ")
        };
        assert!(replicated(0, &[]).contains("min-replicas-to-write"));
        assert!(replicated(0, &[("min-replicas-to-write", "0")]).contains("store.redis.min_replicas_ack"));
        assert_eq!(replicated(0, &[("min-replicas-to-write", "1")]), "");
        assert_eq!(replicated(1, &[]), "");
        assert_eq!(version_of("7.0.15"), Some((7, 0)));
        assert!(version_of("6.0.16").unwrap() < OLDEST);
        assert_eq!(version_of("valkey"), None);
    }
}
