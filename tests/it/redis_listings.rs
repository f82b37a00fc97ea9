//! Listings and pruning of many keys on Redis.

use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use keyvouch::domain::KeyHash;
use serde_json::json;

use crate::process::program::{Home, Server};
use crate::redis_servers::{Redis, RedisServers, cli};

/// Number of keys, of which half are expired.
const KEYS: u64 = 20_000;

/// Imports keys into a server on `redis`, half of them expired.
fn import(home: &Home, server: &Server) {
    let row = |number: u64| {
        let hash = HEXLOWER.encode(KeyHash::of(&number.to_string()).as_bytes());
        let expire_time =
            if number.is_multiple_of(2) { "2020-01-01T00:00:00Z" } else { "2100-01-01T00:00:00Z" };
        json!({ "hash": hash, "name": "n", "owner_id": "o", "expire_time": expire_time }).to_string()
    };
    let rows: Vec<_> = (0..KEYS).map(row).collect();
    std::fs::write(home.path().join("keys.jsonl"), rows.join("\n")).unwrap();
    let imported = home.call(server, &["import", "--from", "keys.jsonl"]);
    assert_eq!(imported.status, 0, "{}", imported.stderr);
}

fn serve(home: &Home, redis: &RedisServers) -> Server {
    home.serve(&[&format!("store.url={}", redis.url), "admin.insecure=true"])
}

/// Returns the number of records that the server has read since its start.
fn records_read(redis: &RedisServers) -> u64 {
    let stats = cli(redis.servers[0].port, &["INFO", "stats"]);
    stats.lines().find_map(|line| line.strip_prefix("keyspace_hits:")).unwrap().trim().parse().unwrap()
}

/// Each call of a listing whose filter matches nothing reads a bounded number of keys. Two commands prune at the same
/// time, and count each deleted key once.
#[test]
fn listings_and_pruning_of_many_keys_are_bounded_and_exact() {
    let redis = Redis::Alone.start(&[]);
    let home = Home::new();
    let server = serve(&home, &redis);
    import(&home, &server);

    let (mut token, mut calls) = (String::new(), 0);
    loop {
        let before = records_read(&redis);
        let page = home.json(&server, &["key", "list", "--state", "revoked", "--page-token", &token]);
        let read = records_read(&redis) - before;
        assert!(read < KEYS / 4, "one call read {read} records");
        assert!(page["keys"].as_array().is_none_or(Vec::is_empty));
        calls += 1;
        match page["nextPageToken"].as_str() {
            Some(next) if !next.is_empty() => next.clone_into(&mut token),
            _ => break,
        }
    }
    assert!(calls > 4, "{calls}");

    let deleted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let pruned = home.json(&server, &["prune", "--expired-before", "2021-01-01T00:00:00Z"]);
                deleted.fetch_add(pruned["deleted"].as_u64().unwrap(), Ordering::Relaxed);
            });
        }
    });
    assert_eq!(deleted.into_inner(), KEYS / 2);
    let rest = home.json(&server, &["prune", "--expired-before", "2021-01-01T00:00:00Z", "--dry-run"]);
    assert_eq!(rest["deleted"], 0);
    let names = cli(redis.servers[0].port, &["EVAL", "return #redis.call('KEYS', '*:key:*')", "0"]);
    assert_eq!(names, (KEYS / 2).to_string(), "the other keys remain");
}
