//! Revisions and events: trimmed events, lost heads and wrong clocks.

use keyvouch::domain::{ApiKey, RevokeReason};
use keyvouch::repository::{ChangeFeed as _, ErrorKind, FeedPosition, KeyRepository as _};

use super::{context, now, open, quick};
use crate::redis_servers::{Redis, cli};
use crate::sql::key;

/// A follower gets an error if an event was trimmed before it was read.
#[tokio::test(flavor = "multi_thread")]
async fn trimmed_events_are_reported() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let first = repository.changes(Some(&FeedPosition::beginning()), 10).await.unwrap().position;
    let mut updated = created;
    for _ in 0..5 {
        updated = repository.update(updated.clone(), updated.revision, &context()).await.unwrap();
    }
    let port = servers.servers[0].port;
    let stream = cli(port, &["KEYS", "*events"]);
    assert_eq!(cli(port, &["XTRIM", &stream, "MAXLEN", "3"]), "3");
    for position in [FeedPosition::beginning(), first] {
        let error = repository.changes(Some(&position), 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PositionLost);
    }
    let from_now = repository.changes(None, 10).await.unwrap();
    assert_eq!(from_now.events.len(), 3);
    assert_eq!(repository.changes(Some(&from_now.position), 10).await.unwrap().events, []);
}

/// Neither a lost head nor a clock that was set back makes revisions decrease, and no change is applied
/// partially.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_never_decrease() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let head = cli(port, &["KEYS", "*head"]);
    // The revision is as large as if the clock had been ahead until now.
    assert_eq!(cli(port, &["HSET", &head, "revision", "4000000000000000"]), "0");
    let ahead = repository.update(created.clone(), created.revision, &context()).await.unwrap();
    assert_eq!(ahead.revision.get(), 4_000_000_000_000_001);
    assert_eq!(cli(port, &["DEL", &head]), "1");
    let after = repository.update(ahead.clone(), ahead.revision, &context()).await.unwrap();
    assert_eq!(after.revision.get(), 4_000_000_000_000_002);
    assert_eq!(repository.get(created.id).await.unwrap(), Some(after));
    assert_eq!(repository.changes(None, 10).await.unwrap().events.len(), 3);
    let deleted = repository.delete(created.id, &context()).await.unwrap();
    assert!(deleted.revision.get() > 4_000_000_000_000_002);
}

/// Shards were trimmed, and the feed is read one event at a time. A follower misses nothing after its first
/// position.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_misses_nothing_in_trimmed_shards() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    for number in 0..40 {
        let created = repository.create(key(&number.to_string()), &context()).await.unwrap();
        let updated = repository.update(created.clone(), created.revision, &context()).await.unwrap();
        repository.update(updated.clone(), updated.revision, &context()).await.unwrap();
    }
    let port = servers.servers[0].port;
    for stream in cli(port, &["KEYS", "*events"]).lines() {
        cli(port, &["XTRIM", stream, "MAXLEN", "2"]);
    }
    let all = repository.changes(None, 1_000).await.unwrap().events;
    let mut seen = Vec::new();
    let mut position = None;
    loop {
        let changes = repository.changes(position.as_ref(), 1).await.unwrap();
        if changes.events.is_empty() {
            break;
        }
        seen.extend(changes.events);
        position = Some(changes.position);
    }
    assert_eq!(seen, all);
    assert!(seen.len() >= 40);
    // A position before trimmed events is an error, also in a shard that was not read yet.
    let begun = repository.changes(None, 1).await.unwrap().position;
    for stream in cli(port, &["KEYS", "*events"]).lines() {
        cli(port, &["XTRIM", stream, "MAXLEN", "1"]);
    }
    assert_eq!(repository.changes(Some(&begun), 1).await.unwrap_err().kind(), ErrorKind::PositionLost);
}

/// A clock that was far in the future for a moment leaves nothing behind that can't be changed any more. A
/// shard that lost its head prevents no replica from starting.
#[tokio::test(flavor = "multi_thread")]
async fn shards_recover_from_a_wrong_clock_and_a_lost_head() {
    let servers = Redis::Alone.start(&[]);
    let port = servers.servers[0].port;
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let shard = format!("keyvouch:{{{:02}}}:", created.hash.as_bytes()[0] % 64);
    // `LATEST` in `change.lua`: the latest clock that revisions follow.
    cli(port, &["HSET", &format!("{shard}head"), "revision", "7000000000000000"]);
    let mut last = created.clone();
    for _ in 0..3 {
        let next = ApiKey { updated_at: now(), ..last.clone() };
        let updated = repository.update(next, last.revision, &context()).await.unwrap();
        assert!(updated.revision > last.revision);
        last = updated;
    }
    assert_eq!(last.revision.get(), 7_000_000_000_000_003);
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();

    cli(port, &["DEL", &format!("{shard}head")]);
    let recent = repository.recent_changes(10).await.unwrap();
    assert_eq!(recent.events.len(), 5);
    let begun = repository.changes(None, 10).await.unwrap();
    assert_eq!(begun.events.len(), 5);
    repository.delete(created.id, &context()).await.unwrap();
    assert_eq!(repository.changes(Some(&begun.position), 10).await.unwrap().events.len(), 1);
    assert_eq!(repository.changes(Some(&recent.position), 10).await.unwrap().events.len(), 1);
}

/// A clock that was two centuries ahead leaves large revisions behind. Later revisions grow by one, and stay
/// exact.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_remain_exact_after_a_clock_far_ahead() {
    const AHEAD: i64 = 8_000_000_000_000_000;
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let head = cli(port, &["KEYS", "*head"]);
    cli(port, &["HSET", &head, "revision", &AHEAD.to_string()]);
    for number in 1..=3 {
        let current = repository.get(created.id).await.unwrap().unwrap();
        let next = ApiKey { updated_at: now(), ..current.clone() };
        let updated = repository.update(next, current.revision, &context()).await.unwrap();
        assert_eq!(updated.revision.get(), AHEAD + number);
    }
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(repository.changes(None, 10).await.unwrap().events.len(), 5);
    // A replica that starts now follows the feed too.
    let started = repository.recent_changes(10).await.unwrap();
    assert_eq!(repository.changes(Some(&started.position), 10).await.unwrap().events, []);
}
