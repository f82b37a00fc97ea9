//! Checks of servers: whether a server is of the right kind and keeps keys safely.

use std::collections::HashMap;

use super::RedisOptions;
use super::connection::{ALLOWS_STALE_READS, Connection};
use crate::redis::mismatch;
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
        if let Some(problem) = mismatch(&info, connection.is_clustered()) {
            return Err(RepositoryError::new(ErrorKind::Unusable, problem));
        }
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
    for Problem { text, may_lose_keys } in problems(info, settings, replication) {
        if options.strict && may_lose_keys {
            return Err(RepositoryError::new(ErrorKind::Unusable, text));
        }
        tracing::warn!(store = %connection, "{text}");
    }
    Ok(version)
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

/// A problem of a server, with its fix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Problem {
    text: &'static str,
    /// Whether keys or changes may be lost, or outdated records returned. Strict options reject such a server.
    may_lose_keys: bool,
}

impl Problem {
    fn serious(text: &'static str) -> Self {
        Self { text, may_lose_keys: true }
    }
}

/// Returns the problems of a server with the output `info` of `INFO`.
fn problems(
    info: &HashMap<&str, &str>,
    settings: &HashMap<String, String>,
    replication: Replication,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let wants_replicas = settings.get("min-replicas-to-write").is_some_and(|count| count != "0");
    if replication.is_replicated && replication.min_replicas_ack == 0 && !wants_replicas {
        problems.push(Problem::serious(
            "a primary that resumes after a hang accepts changes that the failover loses; set `store.redis.min_replicas_ack = 1`, \
             or `min-replicas-to-write 1` and `min-replicas-max-lag 2` on the servers",
        ));
    }
    if replication.is_clustered && !settings.contains_key(ALLOWS_STALE_READS) {
        problems.push(Problem::serious(
            "the server's settings can't be read; make sure that `cluster-allow-reads-when-down` is `no`, because a node that \
             is cut off from the Cluster would otherwise return outdated records, so that revoked keys stay valid",
        ));
    }
    problems.extend(eviction(info));
    problems.extend(persistence(info, settings));
    problems
}

/// Returns the problem of a server that evicts data when its memory is full.
fn eviction(info: &HashMap<&str, &str>) -> Option<Problem> {
    match info.get("maxmemory_policy").copied().unwrap_or("noeviction") {
        "noeviction" => None,
        // Only the ids of requests expire.
        policy if policy.starts_with("volatile-") => Some(Problem {
            text: "the server may evict the stored values of `request_id` when its memory is full, so that a repeated request \
                   could create a second key; set `maxmemory-policy noeviction`",
            may_lose_keys: false,
        }),
        _ => Some(Problem::serious(
            "the server may evict keys when its memory is full; set `maxmemory-policy noeviction`",
        )),
    }
}

/// Returns the problem of a server that may not have stored acknowledged changes on disk.
fn persistence(info: &HashMap<&str, &str>, settings: &HashMap<String, String>) -> Option<Problem> {
    let appends = info.get("aof_enabled").copied() == Some("1");
    if appends {
        let is_never_flushed = settings.get("appendfsync").map(String::as_str) == Some("no");
        return is_never_flushed.then(|| {
            Problem::serious("the server never flushes changes to disk itself; set `appendfsync always`")
        });
    }
    Some(Problem::serious(match settings.get("save").map(|save| !save.is_empty()) {
        Some(true) => {
            "the server writes only snapshots, so a crash loses the changes after the last one; set `appendonly yes` and \
             `appendfsync always`"
        }
        Some(false) => "the server stores nothing on disk; set `appendonly yes` and `appendfsync always`",
        None => {
            "the server appends no changes to a file (`aof_enabled:0` in INFO), and its other settings can't be read; unless its \
             operator guarantees that acknowledged changes survive a crash in another way, have `appendonly yes` and \
             `appendfsync always` set. With such a guarantee, leave `store.redis.strict` off"
        }
    }))
}

fn version_of(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(problems: &[Problem]) -> String {
        problems.iter().map(|problem| problem.text).collect::<Vec<_>>().join("; ")
    }

    /// With a volatile policy, keys are not evicted, because they never expire.
    #[test]
    fn only_a_policy_that_evicts_keys_is_serious() {
        let is_serious = |policy| {
            eviction(&HashMap::from([("maxmemory_policy", policy)])).map(|problem| problem.may_lose_keys)
        };
        assert_eq!(is_serious("noeviction"), None);
        assert_eq!(is_serious("volatile-lru"), Some(false));
        assert_eq!(is_serious("volatile-ttl"), Some(false));
        assert_eq!(is_serious("allkeys-lru"), Some(true));
    }

    #[test]
    fn problems_of_a_server_are_listed() {
        let own = |settings: &[(&str, &str)]| {
            settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        let alone = Replication { is_replicated: false, min_replicas_ack: 0, is_clustered: false };
        let problems_of = |policy, aof, settings: &[(&str, &str)]| {
            let info = HashMap::from([("maxmemory_policy", policy), ("aof_enabled", aof)]);
            texts(&problems(&info, &own(settings), alone))
        };
        assert_eq!(problems_of("noeviction", "1", &[("save", ""), ("appendfsync", "always")]), "");
        assert!(problems_of("allkeys-lru", "1", &[]).contains("noeviction"));
        assert!(problems_of("noeviction", "0", &[("save", "")]).contains("appendonly yes"));
        assert!(problems_of("noeviction", "0", &[]).contains("store.redis.strict"));
        assert!(problems_of("noeviction", "0", &[("save", "3600 1")]).contains("only snapshots"));
        assert!(problems_of("noeviction", "1", &[("appendfsync", "no")]).contains("appendfsync always"));
        let replicated = |min_replicas_ack, settings: &[(&str, &str)]| {
            let info = HashMap::from([("aof_enabled", "1")]);
            let replication = Replication { is_replicated: true, min_replicas_ack, is_clustered: false };
            texts(&problems(&info, &own(settings), replication))
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
