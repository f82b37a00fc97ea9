//! Whether the server is one that keeps keys: told at the start.

use std::collections::HashMap;

use fred::interfaces::ClientLike as _;
use fred::prelude::Value;
use fred::types::{ClusterHash, CustomCommand};

use super::RedisRepository;
use crate::repository::{ErrorKind, RepositoryError, Result};

/// The oldest release that has all commands used here.
const OLDEST: (u32, u32) = (6, 2);

impl RedisRepository {
    /// Warns of a server that may lose keys, or refuses it if the options are strict.
    pub(super) async fn check_server(&self) -> Result<()> {
        let info = self.connection.info().await?;
        let info: HashMap<_, _> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
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
                "the server is no part of a Cluster: its URL begins with redis: or rediss:"
            };
            return Err(RepositoryError::new(ErrorKind::Refused, problem));
        }
        for problem in problems(&info, self.saves_snapshots().await) {
            if self.options.strict {
                return Err(RepositoryError::new(ErrorKind::Refused, problem));
            }
            tracing::warn!(store = %self, "{problem}");
        }
        Ok(())
    }

    /// Whether snapshots are written; `None` where the server does not say, as managed ones do.
    async fn saves_snapshots(&self) -> Option<bool> {
        let config = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
        let arguments: Vec<Value> = vec!["GET".into(), "save".into()];
        let answer: Vec<String> = self.connection.reads().custom(config, arguments).await.ok()?;
        answer.get(1).map(|save| !save.is_empty())
    }
}

/// What is wrong with a server that says `info` of itself, with the fix.
fn problems(info: &HashMap<&str, &str>, saves_snapshots: Option<bool>) -> Vec<&'static str> {
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
        let told = |policy, aof, saves| {
            let info = HashMap::from([("maxmemory_policy", policy), ("aof_enabled", aof)]);
            problems(&info, saves).join("; ")
        };
        assert_eq!(told("noeviction", "1", Some(false)), "");
        assert!(told("allkeys-lru", "1", None).contains("noeviction"));
        assert!(told("noeviction", "0", Some(false)).contains("nothing on disk"));
        assert!(told("noeviction", "0", Some(true)).contains("snapshots alone"));
        assert_eq!(version_of("7.0.15"), Some((7, 0)));
        assert!(version_of("6.0.16").unwrap() < OLDEST);
        assert_eq!(version_of("valkey"), None);
    }
}
