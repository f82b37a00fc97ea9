//! Tests with slots of a Redis Cluster that move to another node.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keyvouch::domain::{ApiKey, KeyHash, KeyId, RevokeReason};
use keyvouch::repository::{
    ChangeFeed as _, ErrorKind, KeyRepository as _, RedisOptions, RedisRepository, RepositoryError,
};
use tokio::time::Instant;

use crate::redis_faults::{context, open, quick};
use crate::redis_servers::{Redis, RedisServer, RedisServers, cli};
use crate::sql::key;
use crate::support::until;

/// Returns the primary of the slot of `name`, and another primary.
fn source_and_target<'s>(servers: &'s RedisServers, slot: &str) -> (&'s RedisServer, &'s RedisServer) {
    let slot: u16 = slot.parse().unwrap();
    let nodes = cli(servers.servers[0].port, &["CLUSTER", "NODES"]);
    let mut primaries = (None, None);
    for node in nodes.lines().filter(|node| node.contains("master")) {
        let mut fields = node.split(' ');
        let address = fields.nth(1).unwrap().split('@').next().unwrap();
        let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
        let server = servers.servers.iter().find(|server| server.port == port).unwrap();
        let has_slot = fields.skip(6).any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (first.parse::<u16>().unwrap()..=last.parse().unwrap()).contains(&slot)
        });
        if has_slot { primaries.0 = Some(server) } else { primaries.1 = Some(server) }
    }
    (primaries.0.unwrap(), primaries.1.unwrap())
}

/// A slot is moving to another node. Keys that have moved are read and changed there, the others here, and no
/// client fails.
async fn check_moving_slot(min_replicas_ack: u32) {
    let servers = Redis::Cluster.start(&[]);
    let store = open(&servers, RedisOptions { min_replicas_ack, ..quick() }).await;
    let moved = store.create(key("moved"), &context()).await.unwrap();
    let other = store.create(key("other"), &context()).await.unwrap();
    let shard = moved.hash.as_bytes()[0] % 64;
    assert_ne!(shard, other.hash.as_bytes()[0] % 64);
    let tag = format!("keyvouch:{{{shard:02}}}:");
    let slot = cli(servers.servers[0].port, &["CLUSTER", "KEYSLOT", &tag]);
    let (source, target) = source_and_target(&servers, &slot);
    let id = |server: &RedisServer| cli(server.port, &["CLUSTER", "MYID"]);
    assert_eq!(cli(target.port, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(source)]), "OK");
    assert_eq!(cli(source.port, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(target)]), "OK");
    let target_port = target.port.to_string();
    let move_all = |pattern: &str| {
        let names = cli(source.port, &["KEYS", pattern]);
        for name in names.lines().filter(|name| !name.is_empty()) {
            assert_eq!(cli(source.port, &["MIGRATE", "127.0.0.1", &target_port, name, "0", "5000"]), "OK");
        }
    };
    move_all(&format!("{tag}key:*"));
    for _ in 0..3 {
        assert_eq!(store.get_by_hash(&moved.hash).await.unwrap(), Some(moved.clone()));
        assert_eq!(store.get_by_hash(&other.hash).await.unwrap(), Some(other.clone()));
        store.recent_changes(10).await.unwrap();
    }
    // Redis rejects a change of several names if some of them have moved and others have not.
    for pattern in ["nothing", "*"] {
        move_all(&format!("{tag}{pattern}"));
        let change = store.revoke(moved.id, RevokeReason::default(), &context()).await.unwrap_err();
        assert_eq!(change.kind(), ErrorKind::Unavailable);
    }
    for server in [target, source] {
        assert_eq!(cli(server.port, &["CLUSTER", "SETSLOT", &slot, "NODE", &id(target)]), "OK");
    }
    until("the slot's new node", async || {
        store.revoke(moved.id, RevokeReason::default(), &context()).await.is_ok()
    })
    .await;
    for name in 0..20 {
        store.create(key(&name.to_string()), &context()).await.unwrap();
    }
    assert!(store.get_by_hash(&moved.hash).await.unwrap().unwrap().revocation.is_some());
    assert!(store.get_by_hash(&other.hash).await.unwrap().unwrap().revocation.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_does_not_interrupt_clients() {
    check_moving_slot(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resharding_does_not_interrupt_clients_that_wait_for_replicas() {
    check_moving_slot(1).await;
}

/// Number of slots that `redis-cli` moves at once: half of those of a node, and about ten of the 64 shards.
const MOVED_SLOTS: u16 = 2_700;
/// Number of tasks that change and read keys meanwhile.
const WORKERS: usize = 8;

/// The keys that a task created, and their expected states.
#[derive(Debug, Default)]
struct Known {
    valid: Vec<(KeyId, KeyHash)>,
    revoked: Vec<(KeyId, KeyHash)>,
    /// Number of calls whose outcome is unknown.
    undecided: usize,
    longest_change: Duration,
}

/// Creates keys, revokes every other one, and reads each through another client after every acknowledged
/// change.
async fn change_and_read(
    worker: usize,
    changes: RedisRepository,
    reads: RedisRepository,
    is_over: Arc<AtomicBool>,
) -> Known {
    let mut known = Known::default();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let key = key(&format!("{worker}-{number}"));
        let began = Instant::now();
        while let Err(error) = changes.create(key.clone(), &context()).await {
            // An attempt without a response may have created it.
            if error.kind() == ErrorKind::AlreadyExists {
                break;
            }
            known.has_no_outcome(&error).await;
        }
        known.longest_change = known.longest_change.max(began.elapsed());
        assert!(known.read(&reads, &key.hash).await.revocation.is_none(), "a created key is not revoked");
        if number % 2 == 0 {
            known.valid.push((key.id, key.hash));
            continue;
        }
        while let Err(error) = changes.revoke(key.id, RevokeReason::default(), &context()).await {
            known.has_no_outcome(&error).await;
        }
        assert!(known.read(&reads, &key.hash).await.revocation.is_some(), "a revoked key is revoked");
        known.revoked.push((key.id, key.hash));
    }
    known
}

impl Known {
    async fn has_no_outcome(&mut self, error: &RepositoryError) {
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
        self.undecided += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    async fn read(&mut self, store: &RedisRepository, hash: &KeyHash) -> ApiKey {
        loop {
            match store.get_by_hash(hash).await {
                Ok(found) => break found.unwrap(),
                Err(error) => self.has_no_outcome(&error).await,
            }
        }
    }
}

/// Moves slots from one node to another, as an operator does.
async fn reshard(source: &RedisServer, target: &RedisServer) {
    let id = |server: &RedisServer| cli(server.port, &["CLUSTER", "MYID"]);
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", "reshard", &format!("127.0.0.1:{}", source.port), "--cluster-yes"]);
    command.args(["--cluster-from", &id(source), "--cluster-to", &id(target)]);
    command.args(["--cluster-slots", &MOVED_SLOTS.to_string()]).stdin(Stdio::null());
    let done = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

/// Slots move to another node and back, while keys are created, revoked and read.
#[tokio::test(flavor = "multi_thread")]
async fn resharding_under_load_loses_no_change_and_returns_no_wrong_record() {
    let servers = Redis::Cluster.start(&[]);
    let (changes, reads) = (open(&servers, quick()).await, open(&servers, quick()).await);
    let (source, target) = source_and_target(&servers, "0");
    let first_slots: Vec<u16> = (0..64)
        .map(|shard| cli(source.port, &["CLUSTER", "KEYSLOT", &format!("{{{shard:02}}}")]).parse().unwrap())
        .filter(|slot| *slot < MOVED_SLOTS)
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (changes, reads, is_over) = (changes.clone(), reads.clone(), Arc::clone(&is_over));
            tokio::spawn(change_and_read(worker, changes, reads, is_over))
        })
        .collect();
    for (from, to) in [(source, target), (target, source)] {
        reshard(from, to).await;
        let moved = first_slots
            .iter()
            .filter(|slot| source_and_target(&servers, &slot.to_string()).0.port == to.port);
        assert_eq!(moved.count(), first_slots.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let mut ids = HashSet::new();
    for worker in workers {
        let known = worker.await.unwrap();
        for (is_revoked, keys) in [(false, &known.valid), (true, &known.revoked)] {
            assert!(!keys.is_empty());
            for (id, hash) in keys {
                let found = reads.get_by_hash(hash).await.unwrap().unwrap();
                assert_eq!((found.id, found.revocation.is_some()), (*id, is_revoked));
                ids.insert(*id);
            }
        }
        println!(
            "{} valid, {} revoked, {} calls without an outcome, the longest creation took {:?}",
            known.valid.len(),
            known.revoked.len(),
            known.undecided,
            known.longest_change
        );
    }
    assert!(ids.len() > 100, "{}", ids.len());
}
