//! Tests with failing Redis servers, and tests that need direct access to a server.

mod failover;
mod outages;
mod records;
mod revisions;
mod settings;

use std::time::Duration;

use keyvouch::domain::{ApiKey, ChangeContext, RevokeReason, Timestamp};
use keyvouch::repository::{ErrorKind, KeyRepository as _, RedisOptions, RedisRepository};

use crate::redis_servers::RedisServers;

fn now() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).unwrap()
}

pub(crate) fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", now())
}

pub(crate) fn quick() -> RedisOptions {
    RedisOptions { timeout: Duration::from_millis(500), ..RedisOptions::default() }
}

pub(crate) async fn open(servers: &RedisServers, options: RedisOptions) -> RedisRepository {
    RedisRepository::open(&servers.url, options).await.unwrap()
}

/// Checks that every call fails in time, with the right kind of error.
async fn all_fail(repository: &RedisRepository, created: &ApiKey) {
    let expected = [ErrorKind::Timeout, ErrorKind::Unavailable];
    let read = repository.get_by_hash(&created.hash).await.unwrap_err();
    assert!(expected.contains(&read.kind()), "{read:?}");
    let change = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap_err();
    assert!(expected.contains(&change.kind()), "{change:?}");
    assert!(expected.contains(&repository.ping().await.unwrap_err().kind()));
}

/// Looks the key up until it is found, because the client has to reconnect by itself.
async fn until_it_answers(repository: &RedisRepository, created: &ApiKey) -> ApiKey {
    let begun = tokio::time::Instant::now();
    loop {
        match repository.get_by_hash(&created.hash).await {
            // The creation was acknowledged, so the key exists.
            Ok(found) => return found.unwrap(),
            Err(error) => assert!(begun.elapsed() < Duration::from_mins(1), "{error:?}"),
        }
    }
}
