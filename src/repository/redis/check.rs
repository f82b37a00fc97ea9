//! Whether the server is one that keeps keys: told at the start.

use std::collections::HashMap;

use super::RedisRepository;
use super::error::NO_CLUSTER;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// The oldest release that has all commands used here.
const OLDEST: (u32, u32) = (6, 2);

impl RedisRepository {
    /// Warns of a server that may lose keys, or refuses it if the options are strict.
    pub(super) async fn check_server(&self) -> Result<()> {
        for (info, settings) in self.connection.describe().await? {
            let info: HashMap<_, _> =
                info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
            self.check_one(&info, &settings)?;
        }
        Ok(())
    }

    fn check_one(&self, info: &HashMap<&str, &str>, settings: &HashMap<String, String>) -> Result<()> {
        let version = info.get("redis_version").copied().unwrap_or_default();
        if version_of(version).is_some_and(|version| version < OLDEST) {
            return Err(RepositoryError::new(
                ErrorKind::Refused,
                "the server is older than Redis 6.2: use a newer one",
            ));
        }
        let is_cluster = info.get("redis_mode").copied() == Some("cluster");
        if is_cluster != self.connection.is_clustered() {
            let problem = if is_cluster {
                "the server is part of a Cluster: its URL begins with redis-cluster: or rediss-cluster:"
            } else {
                NO_CLUSTER
            };
            return Err(RepositoryError::new(ErrorKind::Refused, problem));
        }
        if info.get("role").copied() == Some("slave") {
            let problem = "the server is a replica, which takes no changes: give the URL of the primary";
            return Err(RepositoryError::new(ErrorKind::Unavailable, problem));
        }
        for problem in problems(info, settings) {
            if self.options.strict {
                return Err(RepositoryError::new(ErrorKind::Refused, problem));
            }
            tracing::warn!(store = %self, "{problem}");
        }
        Ok(())
    }
}

/// What is wrong with a server that says `info` of itself, with the fix.
fn problems(info: &HashMap<&str, &str>, settings: &HashMap<String, String>) -> Vec<&'static str> {
    let saves_snapshots = settings.get("save").map(|save| !save.is_empty());
    let mut problems = Vec::new();
    let policy = info.get("maxmemory_policy").copied().unwrap_or("noeviction");
    if policy != "noeviction" {
        problems.push("the server may evict keys when its memory is full: set `maxmemory-policy noeviction`");
    }
    let appends = info.get("aof_enabled").copied() == Some("1");
    if !appends && saves_snapshots == Some(false) {
        problems.push("the server keeps nothing on disk: set `appendonly yes` and `appendfsync always`");
    } else if !appends {
        problems.push(
            "the server writes snapshots alone, so a crash loses what came after the last one: set `appendonly yes` and \
             `appendfsync always`",
        );
    } else if settings.get("appendfsync").map(String::as_str) == Some("no") {
        problems
            .push("the server leaves it to the system when changes reach the disk: set `appendfsync always`");
    }
    problems
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_may_lose_keys_is_told() {
        let told = |policy, aof, settings: &[(&str, &str)]| {
            let info = HashMap::from([("maxmemory_policy", policy), ("aof_enabled", aof)]);
            let own = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            problems(&info, &own.collect()).join("; ")
        };
        assert_eq!(told("noeviction", "1", &[("save", ""), ("appendfsync", "always")]), "");
        assert!(told("allkeys-lru", "1", &[]).contains("noeviction"));
        assert!(told("noeviction", "0", &[("save", "")]).contains("nothing on disk"));
        assert!(told("noeviction", "0", &[("save", "3600 1")]).contains("snapshots alone"));
        assert!(told("noeviction", "1", &[("appendfsync", "no")]).contains("appendfsync always"));
        assert_eq!(version_of("7.0.15"), Some((7, 0)));
        assert!(version_of("6.0.16").unwrap() < OLDEST);
        assert_eq!(version_of("valkey"), None);
    }
}
