//! Concurrent clients: hanging writers, replicas that start or prune together, and deadlocks.

use std::time::Duration;

use keyvouch::domain::{ChangeContext, RevokeReason};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, KeyRepository as _, SqlOptions, SqlRepository,
    UsageStore as _,
};
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement, TransactionTrait as _};
use tokio::time::Instant;

use super::{context, now};
use crate::databases::{Kind, on_each_server, patient};
use crate::process::program::Home;
use crate::sql::key;
use crate::support::until;

/// Another client holds the row of revisions, and does nothing else.
async fn a_hanging_writer_fails_changes_and_not_reads(kind: Kind) {
    let url = kind.database().await;
    let options = SqlOptions { lock_timeout: Duration::from_secs(1), ..SqlOptions::default() };
    let timeout = options.timeout;
    let repository = SqlRepository::open(&url, options).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();

    let stranger = Database::connect(&url).await.unwrap();
    let held = stranger.begin().await.unwrap();
    held.execute_unprepared("UPDATE revision_head SET revision = revision").await.unwrap();
    let begun = Instant::now();
    let error = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(begun.elapsed() < timeout, "the lock timeout ends the change, not the timeout of the call");
    assert_eq!(
        repository.get_by_hash(&created.hash).await.unwrap(),
        Some(created.clone()),
        "reads do not wait"
    );
    repository.record_usage(&[(created.id, now())]).await.unwrap();
    held.rollback().await.unwrap();
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
}

/// Another client writes the usage of a key and does not commit.
async fn a_hanging_usage_write_delays_no_revocation(kind: Kind) {
    let url = kind.database().await;
    let repository = SqlRepository::open(&url, SqlOptions::default()).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    repository.record_usage(&[(created.id, now())]).await.unwrap();
    let stranger = Database::connect(&url).await.unwrap();
    let held = stranger.begin().await.unwrap();
    held.execute_unprepared("UPDATE api_key_usage SET last_used_at = last_used_at + 1").await.unwrap();
    let revoked = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
    assert!(revoked.revocation.is_some());
    held.rollback().await.unwrap();
}

/// Ten servers start on an empty database. One migrates, and all serve.
async fn ten_replicas_start_concurrently(kind: Kind) {
    let url = kind.database().await;
    let starting: Vec<_> = (0..10)
        .map(|_| {
            let url = url.clone();
            tokio::task::spawn_blocking(move || {
                let home = Home::new();
                let settings = [
                    format!("store.url={url}"),
                    "store.auto_migrate=true".to_owned(),
                    "store.sql.max_readers=2".to_owned(),
                    "admin.insecure=true".to_owned(),
                ];
                let settings: Vec<_> = settings.iter().map(String::as_str).collect();
                let server = home.serve(&settings);
                let listed = home.run(&["key", "list", "--addr", &server.address]);
                assert_eq!(listed.status, 0, "{}", listed.stderr);
                let log = std::fs::read_to_string(home.path().join("stderr")).unwrap();
                assert!(!log.contains("postgres@") && !log.contains("root@"), "{log}");
                (home, server)
            })
        })
        .collect();
    for server in starting {
        server.await.unwrap();
    }
}

/// Five replicas prune concurrently. One deletes, the others return at once, and only old events are deleted.
async fn concurrent_pruning_deletes_each_event_once(kind: Kind) {
    let url = kind.database().await;
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    let keys = (0..2_500).map(|number| key(&number.to_string())).collect();
    repository.create_many(keys, &context()).await.unwrap();
    let later = ChangeContext { now: now().checked_add(Duration::from_secs(10)).unwrap(), ..context() };
    let kept = repository.create(key("kept"), &later).await.unwrap();
    let last = repository.create(key("last"), &later).await.unwrap();

    // A pruner that has locked the oldest events excludes the others, which do not wait.
    let stranger = Database::connect(&url).await.unwrap();
    let held = stranger.begin().await.unwrap();
    let lock = "SELECT revision FROM key_event ORDER BY revision LIMIT 1 FOR UPDATE";
    held.execute_unprepared(lock).await.unwrap();
    assert_eq!(repository.prune_events(later.now).await.unwrap(), 0);
    held.rollback().await.unwrap();

    let mut pruning = Vec::new();
    for _ in 0..5 {
        let replica = SqlRepository::open(&url, patient()).await.unwrap();
        let before = later.now;
        pruning.push(tokio::spawn(async move { replica.prune_events(before).await.unwrap() }));
    }
    let mut deleted = repository.prune_events(later.now).await.unwrap();
    for replica in pruning {
        deleted += replica.await.unwrap();
    }
    // A replica that found another one pruning may have left events to it that this one did not see any more.
    deleted += repository.prune_events(later.now).await.unwrap();
    assert_eq!(deleted, 2_500);
    let left = repository.changes(None, 10).await.unwrap().events;
    let left: Vec<_> = left.iter().map(|event| event.revision).collect();
    assert_eq!(left, [kept.revision, last.revision]);
}

/// Another client locks a key's row first and then the revisions, in the opposite order. PostgreSQL aborts
/// the change that waited first, which is that of the repository, and the repository retries it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_retried_after_a_deadlock() {
    let url = Kind::Postgres.database().await;
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let stranger = Database::connect(&url).await.unwrap();
    let held = stranger.begin().await.unwrap();
    held.execute_unprepared("UPDATE api_key SET name = 'held'").await.unwrap();
    let revoking = {
        let repository = repository.clone();
        tokio::spawn(async move { repository.revoke(created.id, RevokeReason::default(), &context()).await })
    };
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let number = async |sql: &str| {
        let row = stranger.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
        row.unwrap().try_get_by_index::<i64>(0).unwrap()
    };
    until("the wait", async || number(waits).await == 1).await;
    held.execute_unprepared("UPDATE revision_head SET revision = revision").await.unwrap();
    held.commit().await.unwrap();
    assert!(revoking.await.unwrap().unwrap().revocation.is_some());
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    repository.close().await.unwrap();
    until("the deadlock", async || number(deadlocks).await > 0).await;
}

on_each_server!(
    a_hanging_writer_fails_changes_and_not_reads,
    a_hanging_usage_write_delays_no_revocation,
    ten_replicas_start_concurrently,
    concurrent_pruning_deletes_each_event_once,
);
