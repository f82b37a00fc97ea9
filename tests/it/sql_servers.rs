//! Tests that need real database servers.

use std::time::Duration;

use keyvouch::conformance::repository::Subject;
use keyvouch::domain::{ChangeContext, ChangeKind, KeyHash, Revision, RevokeReason, Timestamp};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, EventPageRequest, KeyRepository as _, ListedEvent,
    ListedKey, PagePosition, PageRequest, SqlOptions, SqlRepository, UnreadableEvent, UsageStore as _,
};
use keyvouch_migration::Names;
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement, TransactionTrait as _};
use tokio::time::Instant;

use crate::cached::{Replica, options};
use crate::databases::{Kind, on_each_server, patient, pgbouncer};
use crate::process::program::Home;
use crate::sql::key;
use crate::support::until;

fn now() -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).unwrap()
}

fn context() -> ChangeContext {
    ChangeContext::new("token:tests", "r", now())
}

/// Another client holds the row of revisions, and does nothing else.
async fn a_writer_that_hangs(kind: Kind) {
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
    assert!(begun.elapsed() < timeout, "the lock time-out ends it, not that of the call");
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()), "reads go on");
    repository.record_usage(&[(created.id, now())]).await.unwrap();
    held.rollback().await.unwrap();
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
}

/// Another client writes the usage of a key and does not commit.
async fn a_usage_write_that_hangs(kind: Kind) {
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

/// Two backends in one database have different prefixes of their tables.
async fn prefixes_keep_stores_apart(kind: Kind) {
    let url = kind.database().await;
    let mut stores: Vec<Subject> = Vec::new();
    for prefix in ["", "a_", "b_"] {
        let options = SqlOptions { names: Names::prefixed(prefix).unwrap(), ..patient() };
        let repository = SqlRepository::open(&url, options).await.unwrap();
        repository.migrate().await.unwrap();
        stores.push(repository.into());
    }
    let same = key("a");
    for store in &stores {
        assert_eq!(store.create(same.clone(), &context()).await.unwrap().revision, Revision::new(1));
    }
    stores[1].revoke(same.id, RevokeReason::default(), &context()).await.unwrap();
    stores[2].delete(same.id, &context()).await.unwrap();
    assert!(stores[0].get(same.id).await.unwrap().unwrap().revocation.is_none());
}

/// Ten servers start on an empty database. One migrates, and all serve.
async fn ten_at_once(kind: Kind) {
    let url = kind.database().await;
    let starting: Vec<_> = (0..10)
        .map(|_| {
            let url = url.clone();
            tokio::task::spawn_blocking(move || {
                let home = Home::new();
                let settings = [
                    format!("store.url={url}"),
                    "store.auto_migrate=true".to_owned(),
                    "store.max_readers=2".to_owned(),
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

/// An outdated schema is rejected until it is migrated. The error has the number of migrations and the
/// command.
async fn a_schema_that_is_behind_is_refused(kind: Kind) {
    let url = format!("store.url={}", kind.database().await);
    tokio::task::spawn_blocking(move || {
        let home = Home::new();
        let settings = ["--set", &url, "--set", "admin.insecure=true", "--set", "server.listen=127.0.0.1:0"];
        let refused = home.run(&[&["serve"], &settings[..]].concat());
        assert_eq!(refused.status, 1);
        assert!(refused.stderr.contains("behind by 2 migrations"), "{}", refused.stderr);
        assert!(refused.stderr.contains("keyvouch migrate up"), "{}", refused.stderr);
        assert_eq!(home.run(&["migrate", "status", "--set", &url]).status, 3);
        assert_eq!(home.run(&["migrate", "up", "--set", &url]).status, 0);
        assert_eq!(home.run(&["migrate", "status", "--set", &url]).status, 0);
        let _server = home.serve(&[&url, "admin.insecure=true"]);
    })
    .await
    .unwrap();
}

/// Five replicas prune concurrently. One deletes, the others return at once, and only old events are deleted.
async fn of_replicas_that_prune_one_does(kind: Kind) {
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

/// An unreadable row is an error of its own key. A key that is looked up together with it is found.
async fn a_row_that_can_not_be_read_fails_alone(kind: Kind) {
    let url = kind.database().await;
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    let sound = repository.create(key("a"), &context()).await.unwrap();
    let broken = repository.create(key("b"), &context()).await.unwrap();
    let database = Database::connect(&url).await.unwrap();
    database.execute_unprepared("UPDATE api_key SET scopes = 'x' WHERE revision = 2").await.unwrap();
    let found = repository.get_many_by_hash(&[broken.hash, sound.hash]).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|it| it.map_err(|error| error.kind())).collect();
    assert_eq!(found, [Err(ErrorKind::Corrupt), Ok(Some(sound.clone()))]);

    // Listings continue, and contain the position of the unreadable row.
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    let place = PagePosition::of(&broken);
    let listed = repository.list_page(&request).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.contains(&ListedKey::Unreadable(place)) && listed.contains(&ListedKey::Read(sound)));

    // The key can be revoked, which the feed reports, and deleted, which does not make its key string valid
    // again.
    let reason = RevokeReason::parse("reason", "unreadable").unwrap();
    let revoked = repository.revoke(broken.id, reason.clone(), &context()).await.unwrap();
    assert_eq!((revoked.id, revoked.hash), (broken.id, broken.hash));
    assert_eq!(revoked.revocation.as_ref().unwrap().reason, reason);
    assert!(revoked.revision > broken.revision);
    let again = repository.revoke(broken.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(again.revision, revoked.revision);
    let events = repository.changes(None, 10).await.unwrap().events;
    assert_eq!(events.last().unwrap().change(), revoked.last_change());
    repository.delete(broken.id, &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&broken.hash).await.unwrap(), None);
    let revived = repository.create(broken, &context()).await.unwrap_err();
    assert_eq!(revived.kind(), ErrorKind::RevokedHash);
}

/// Unreadable events stop neither the feed nor the audit trail. An event of an unknown kind, which a newer
/// release may write, is treated as a change.
async fn an_event_that_can_not_be_read_stops_nothing(kind: Kind) {
    let url = kind.database().await;
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    for secret in ["a", "b", "c"] {
        repository.create(key(secret), &context()).await.unwrap();
    }
    let before = repository.changes(None, 1).await.unwrap();
    let database = Database::connect(&url).await.unwrap();
    database.execute_unprepared("UPDATE key_event SET kind = 'frobbed' WHERE revision = 2").await.unwrap();
    database.execute_unprepared("UPDATE key_event SET owner_id = '' WHERE revision = 3").await.unwrap();
    let changes = repository.changes(Some(&before.position), 10).await.unwrap();
    assert_eq!(changes.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [ChangeKind::Unknown]);
    assert_eq!(changes.unreadable, [UnreadableEvent { part: 0, revision: Revision::new(3) }]);
    let behind = repository.changes(Some(&changes.position), 10).await.unwrap();
    assert_eq!((behind.events.len(), behind.unreadable.len()), (0, 0));
    let recent = repository.recent_changes(10).await.unwrap();
    assert_eq!((recent.events.len(), recent.unreadable.len()), (2, 1));
    let request = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 10 };
    let listed = repository.list_events(&request).await.unwrap();
    assert_eq!(listed.len(), 3);
    assert!(matches!(listed[0], ListedEvent::Unreadable(place) if place.revision == Revision::new(3)));

    // A replica starts with these events, and continues to read.
    let replica = Replica::start(repository.clone(), &options()).await;
    let created = repository.create(key("d"), &context()).await.unwrap();
    let found = replica.backend.get_by_hash(&created.hash).await.unwrap();
    assert_eq!(found, Some(created.clone()));
    // An unreadable event arrives while the replica follows the feed, so every key may have changed.
    database.execute_unprepared("UPDATE api_key SET name = 'renamed' WHERE revision = 4").await.unwrap();
    database
        .execute_unprepared(
            "INSERT INTO key_event SELECT 5, 5, key_id, hash, '', 'updated', '', '', '', created_at FROM key_event \
             WHERE revision = 4",
        )
        .await
        .unwrap();
    database.execute_unprepared("UPDATE revision_head SET revision = 5").await.unwrap();
    until("the change", async || {
        let found = replica.backend.get_by_hash(&created.hash).await.unwrap().unwrap();
        found.name.as_str() == "renamed"
    })
    .await;
    assert!(keyvouch::repository::unreadable_counts().1 > 0);
}

/// The default settings of a server, a database or a role change neither results nor commits.
async fn defaults_of_the_server_change_nothing(kind: Kind) {
    let server = kind.start(None);
    let url = server.database().await;
    let database = Database::connect(&url).await.unwrap();
    let (_, name) = url.rsplit_once('/').unwrap();
    let defaults: Vec<String> = match kind {
        Kind::Postgres => [
            "default_transaction_isolation = 'serializable'",
            "statement_timeout = '20ms'",
            "enable_seqscan = on",
            "search_path = nowhere, public",
        ]
        .map(|setting| format!("ALTER DATABASE {name} SET {setting}"))
        .into(),
        Kind::MariaDb => [
            "autocommit = 0",
            "completion_type = 'CHAIN'",
            "sql_select_limit = 1",
            "tx_isolation = 'SERIALIZABLE'",
            "sql_mode = 'ORACLE'",
        ]
        .map(|setting| format!("SET GLOBAL {setting}"))
        .into(),
    };
    for default in defaults {
        database.execute_unprepared(&default).await.unwrap();
    }
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    assert_eq!(repository.migrate().await.unwrap().len(), 2);
    assert_eq!(repository.schema_state().await.unwrap().pending, Vec::<String>::new());
    let creating = (0..8).map(|writer| {
        let repository = repository.clone();
        tokio::spawn(async move {
            let mut created = Vec::new();
            for number in 0..10 {
                created
                    .push(repository.create(key(&format!("{writer} {number}")), &context()).await.unwrap());
            }
            created
        })
    });
    let mut created = Vec::new();
    for task in creating.collect::<Vec<_>>() {
        created.extend(task.await.unwrap());
    }
    let hashes: Vec<_> = created.iter().map(|key| key.hash).collect();
    for found in repository.get_many_by_hash(&hashes).await.unwrap() {
        assert!(found.unwrap().is_some());
    }
    repository.record_usage(&[(created[0].id, now())]).await.unwrap();
    // Another client reads the rows. Its own session has the defaults, but it sees only committed data.
    let committed = SqlRepository::open(&url, patient()).await.unwrap();
    assert_eq!(committed.usage(&[created[0].id]).await.unwrap(), [Some(now())]);
    assert_eq!(committed.changes(None, 100).await.unwrap().events.len(), 80);
}

on_each_server!(
    a_writer_that_hangs,
    a_usage_write_that_hangs,
    prefixes_keep_stores_apart,
    ten_at_once,
    a_schema_that_is_behind_is_refused,
    of_replicas_that_prune_one_does,
    a_row_that_can_not_be_read_fails_alone,
    an_event_that_can_not_be_read_stops_nothing,
    defaults_of_the_server_change_nothing,
);

/// A limit that the server reduces is a startup error that names it.
#[tokio::test]
async fn a_limit_that_the_server_does_not_take_is_refused() {
    let url = Kind::MariaDb.database().await;
    let options = SqlOptions { lock_timeout: Duration::from_secs(2_000_000_000), ..patient() };
    let error = SqlRepository::open(&url, options).await.unwrap_err();
    assert!(format!("{error:?}").contains("innodb_lock_wait_timeout"), "{error:?}");
}

/// PostgreSQL would hide the rows, and valid keys would be reported as not found.
#[tokio::test]
async fn row_level_security_is_an_error_and_hides_no_key() {
    let url = Kind::Postgres.database().await;
    let owner = SqlRepository::open(&url, patient()).await.unwrap();
    owner.migrate().await.unwrap();
    let created = owner.create(key("a"), &context()).await.unwrap();
    let database = Database::connect(&url).await.unwrap();
    let (_, name) = url.rsplit_once('/').unwrap();
    let role = format!("runner_{name}");
    for sql in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"),
    ] {
        database.execute_unprepared(&sql).await.unwrap();
    }
    let runner =
        SqlRepository::open(&url.replace("postgres@", &format!("{role}@")), patient()).await.unwrap();
    assert_eq!(runner.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()));
    database.execute_unprepared("ALTER TABLE api_key ENABLE ROW LEVEL SECURITY").await.unwrap();
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    for error in [
        runner.get_by_hash(&created.hash).await.unwrap_err(),
        runner.get(created.id).await.unwrap_err(),
        runner.list_page(&request).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    }
    assert_eq!(runner.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// A pooler rejects or drops settings of the connection startup. All tables would be in another schema then.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_keeps_the_schema_and_the_limits() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = pgbouncer(&direct);
    let in_schema = || {
        let mut options = patient();
        options.schema = Some("vouch".to_owned());
        options
    };
    let repository = SqlRepository::open(&url, in_schema()).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let seen = SqlRepository::open(&direct, in_schema()).await.unwrap();
    assert_eq!(seen.get(created.id).await.unwrap(), Some(created.clone()));
    let database = Database::connect(&direct).await.unwrap();
    let row = database
        .query_one_raw(Statement::from_string(DbBackend::Postgres, "SELECT count(*) FROM vouch.api_key"))
        .await
        .unwrap();
    assert_eq!(row.unwrap().try_get_by_index::<i64>(0).unwrap(), 1);

    // A lock that is held too long ends the change. It would not if the pooler dropped `lock_timeout`.
    let options = SqlOptions { lock_timeout: Duration::from_secs(1), ..in_schema() };
    let quick = SqlRepository::open(&url, options).await.unwrap();
    let held = database.begin().await.unwrap();
    held.execute_unprepared("UPDATE vouch.revision_head SET revision = revision").await.unwrap();
    let error = quick.create(key("b"), &context()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout), "{error:?}");
    held.rollback().await.unwrap();
    quick.create(key("b"), &context()).await.unwrap();
}

/// With another encoding, valid names could not be stored.
#[tokio::test]
async fn a_database_in_another_encoding_is_refused() {
    let url = Kind::Postgres.database().await;
    let database = Database::connect(&url).await.unwrap();
    let (server, name) = url.rsplit_once('/').unwrap();
    let latin = format!("{name}_latin1");
    database
        .execute_unprepared(&format!(
            "CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
        ))
        .await
        .unwrap();
    let error = SqlRepository::open(&format!("{server}/{latin}"), patient()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("server_encoding"), "{error:?}");
    let maria = format!("{}?charset=latin1", Kind::MariaDb.database().await);
    let error = SqlRepository::open(&maria, patient()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("character_set_client"), "{error:?}");
}

/// Another client locks a key's row first and then the revisions, in the opposite order. PostgreSQL aborts
/// the change that waited first, which is that of the repository, and the repository retries it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_deadlock_ended_is_made_anew() {
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

/// PostgreSQL keeps the plan of a statement that was prepared while the table was empty. That plan must not
/// scan the whole table.
#[tokio::test]
async fn statements_prepared_on_empty_tables_read_no_full_ones() {
    let url = Kind::Postgres.database().await;
    let mut options = patient();
    options.pool.max_readers = 1;
    options.pool.max_writers = 1;
    let repository = SqlRepository::open(&url, options).await.unwrap();
    repository.migrate().await.unwrap();
    let hashes: Vec<_> = (0..30).map(|number: u32| KeyHash::of(&number.to_string())).collect();
    // PostgreSQL keeps a plan after five executions.
    let work = async |round: u32| {
        for number in 0..10 {
            repository.get_by_hash(&hashes[0]).await.unwrap();
            repository.get_many_by_hash(&hashes).await.unwrap();
            let keys = (0..5).map(|at| key(&format!("{round} {number} {at}"))).collect();
            repository.create_many(keys, &context()).await.unwrap();
        }
    };
    work(0).await;
    let stranger = Database::connect(&url).await.unwrap();
    stranger
        .execute_unprepared(
            "INSERT INTO api_key SELECT gen_random_uuid(), sha256(i::text::bytea), 'kv_', 'name', '', 'o', '[]', '{}', i, i, \
             NULL, NULL, NULL, NULL, NULL, i, NULL, NULL FROM generate_series(1, 50000) AS n(i)",
        )
        .await
        .unwrap();
    stranger.execute_unprepared("SELECT pg_stat_reset()").await.unwrap();
    work(1).await;
    // Connections report their statistics when they end.
    repository.close().await.unwrap();
    let sql = "SELECT coalesce(idx_scan, 0), seq_scan FROM pg_stat_user_tables WHERE relname = 'api_key'";
    until("the counts", async || {
        let counts = Statement::from_string(DbBackend::Postgres, sql);
        let counts = stranger.query_one_raw(counts).await.unwrap().unwrap();
        let count = |at| counts.try_get_by_index::<i64>(at).unwrap();
        assert_eq!(count(1), 0, "the table was read as a whole");
        // A lookup of 30 hashes counts as 30 scans of the index. The lookups of new keys count as five for
        // each of two indexes.
        count(0) >= 10 * (1 + 30 + 10)
    })
    .await;
}

#[tokio::test]
async fn connections_to_a_server_that_takes_no_writes_are_replaced() {
    let url = Kind::Postgres.database().await;
    let (_, name) = url.rsplit_once('/').unwrap();
    let mut options = patient();
    // With a single connection, it is the one that is replaced.
    options.pool.max_writers = 1;
    let repository = SqlRepository::open(&url, options).await.unwrap();
    repository.migrate().await.unwrap();
    let stranger = Database::connect(&url).await.unwrap();
    let make_read_only = |on: bool| format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
    stranger.execute_unprepared(&make_read_only(true)).await.unwrap();
    let error = repository.create(key("a"), &context()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // Existing sessions keep their setting, and only new ones can write. They are opened every two seconds at
    // most.
    stranger.execute_unprepared(&make_read_only(false)).await.unwrap();
    until("a change", async || match repository.create(key("a"), &context()).await {
        Err(error) if error.kind() == ErrorKind::Unavailable => false,
        outcome => outcome.unwrap().revision == Revision::new(1),
    })
    .await;
}

#[tokio::test]
async fn a_schema_of_its_own_holds_the_tables() {
    let url = Kind::Postgres.database().await;
    let options = SqlOptions { schema: Some("vouched".into()), ..patient() };
    let repository = SqlRepository::open(&url, options).await.unwrap();
    repository.migrate().await.unwrap();
    repository.create(key("a"), &context()).await.unwrap();
    let stranger = Database::connect(&url).await.unwrap();
    stranger.execute_unprepared("SELECT hash FROM vouched.api_key").await.unwrap();
    stranger.execute_unprepared("SELECT hash FROM public.api_key").await.unwrap_err();
}

#[tokio::test]
async fn listings_alone_come_from_the_replica() {
    let (primary, replica) = (Kind::Postgres.database().await, Kind::Postgres.database().await);
    for url in [&primary, &replica] {
        let repository = SqlRepository::open(url, patient()).await.unwrap();
        repository.migrate().await.unwrap();
    }
    let repository = SqlRepository::open(&primary, patient()).await.unwrap();
    let repository = repository.with_replica(&replica).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()));
    assert_eq!(repository.get(created.id).await.unwrap(), Some(created));
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    assert_eq!(repository.list_page(&request).await.unwrap(), [], "the other database has none");
}

#[tokio::test]
async fn no_error_of_a_connection_holds_the_password() {
    for url in [
        "postgres://u:hunter2@127.0.0.1:1/d",
        "mysql://u:hunter2@127.0.0.1:1/d",
        "postgres://u:hunter2@127.0.0.1:port/d",
        "mysql://u:hunter2@[/d",
        "oracle://u:hunter2@h/d",
        "hunter2",
    ] {
        let error = SqlRepository::open(url, SqlOptions::default()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Refused), "{url} {error:?}");
    }
    let repository = SqlRepository::open(&Kind::Postgres.database().await, patient()).await.unwrap();
    assert!(!format!("{repository:?}").contains("postgres@"));
}
