//! Tests with databases that freeze, drop connections or use TLS.

use std::time::Duration;

use keyvouch::domain::{ChangeContext, KeyHash, RevokeReason, Timestamp};
use keyvouch::grpc::pb;
use keyvouch::repository::{ErrorKind, KeyRepository as _, SqlOptions, SqlRepository};
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database, Statement, TransactionTrait as _};

use crate::databases::{Kind, authority, on_each_server, patient};
use crate::sql::key;
use crate::support::{TestServer, until};

fn context() -> ChangeContext {
    let now = Timestamp::from_micros(1_767_225_600_000_000).unwrap();
    ChangeContext::new("token:tests", "r", now)
}

async fn open(url: &str, options: SqlOptions) -> SqlRepository {
    let repository = SqlRepository::open(url, options).await.unwrap();
    repository.migrate().await.unwrap();
    repository
}

/// The server's connections stay open, and nothing responds. Each call fails in time, and all calls succeed
/// again after the server resumes.
async fn a_frozen_server_fails_calls_in_time(kind: Kind) {
    let server = kind.start(None);
    let mut options = SqlOptions { timeout: Duration::from_secs(1), ..SqlOptions::default() };
    options.pool.acquire_timeout = Duration::from_millis(700);
    let repository = open(&server.database().await, options).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    server.freeze();
    for _ in 0..3 {
        let expected = [ErrorKind::Timeout, ErrorKind::Unavailable];
        let read = repository.get_by_hash(&created.hash).await.unwrap_err();
        assert!(expected.contains(&read.kind()), "{read:?}");
        let change = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap_err();
        assert!(expected.contains(&change.kind()), "{change:?}");
        repository.ping().await.unwrap_err();
    }
    server.thaw();
    until("a read", async || repository.get_by_hash(&created.hash).await.is_ok()).await;
    let revoke = async || repository.revoke(created.id, RevokeReason::default(), &context()).await.is_ok();
    until("a change", revoke).await;
    let found = repository.get_by_hash(&created.hash).await.unwrap().unwrap();
    assert!(found.revocation.is_some());
}

/// Returns the ids of all connections to the server except the one that queries them.
async fn connections(kind: Kind, url: &str) -> Vec<i64> {
    let stranger = Database::connect(url).await.unwrap();
    let sql = match kind {
        Kind::Postgres => {
            "SELECT pid::bigint FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        }
        Kind::MariaDb => {
            "SELECT CAST(id AS SIGNED) FROM information_schema.processlist \
             WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        }
    };
    let backend = stranger.get_database_backend();
    let rows = stranger.query_all_raw(Statement::from_string(backend, sql)).await.unwrap();
    stranger.close().await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// The failure is invisible to callers, because reads and the beginning of a change are retried.
async fn connections_that_the_server_closed_are_replaced(kind: Kind) {
    let url = kind.database().await;
    let repository = open(&url, SqlOptions::default()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    for _ in 0..3 {
        repository.get(created.id).await.unwrap();
        let stranger = Database::connect(&url).await.unwrap();
        for connection in connections(kind, &url).await {
            let kill = match kind {
                Kind::Postgres => format!("SELECT pg_terminate_backend({connection})"),
                Kind::MariaDb => format!("KILL {connection}"),
            };
            // The connection may have ended by itself.
            let _ = stranger.execute_unprepared(&kill).await;
        }
        assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()));
    }
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
}

/// The server closes connections that are idle for a second. The first change after that succeeds like any
/// other.
async fn the_first_change_after_an_idle_time_succeeds(kind: Kind) {
    let server = kind.start(None);
    let url = server.database().await;
    let (_, name) = url.rsplit_once('/').unwrap();
    let end_idle = match kind {
        Kind::Postgres => format!("ALTER DATABASE {name} SET idle_session_timeout = '1s'"),
        Kind::MariaDb => "SET GLOBAL wait_timeout = 1".to_owned(),
    };
    Database::connect(&url).await.unwrap().execute_unprepared(&end_idle).await.unwrap();
    let repository = open(&url, SqlOptions::default()).await;
    for number in 0..3 {
        repository.create(key(&number.to_string()), &context()).await.unwrap();
        until("an end of idle sessions", async || connections(kind, &url).await.is_empty()).await;
    }
}

/// Changes that wait for a slow change are rejected with the right reason, and are not applied.
async fn a_busy_pool_is_overloaded(kind: Kind) {
    let url = kind.database().await;
    let mut options = patient();
    options.pool.max_writers = 1;
    options.pool.acquire_timeout = Duration::from_millis(100);
    let repository = open(&url, options).await;
    let stranger = Database::connect(&url).await.unwrap();
    let holder = stranger.begin().await.unwrap();
    holder.execute_unprepared("UPDATE revision_head SET revision = revision").await.unwrap();
    let creating = |name: &'static str| {
        let repository = repository.clone();
        tokio::spawn(async move { repository.create(key(name), &context()).await })
    };
    let first = creating("first");
    until("the first change to wait", async || {
        repository
            .connections()
            .iter()
            .any(|(pool, open, idle)| *pool == "changes" && *open == 1 && *idle == 0)
    })
    .await;
    assert_eq!(creating("second").await.unwrap().unwrap_err().kind(), ErrorKind::Overloaded);
    holder.rollback().await.unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(repository.get_by_hash(&key("second").hash).await.unwrap(), None);
    repository.create(key("second"), &context()).await.unwrap();
}

/// A server that rejects connections because there are too many is reported as such, not as a slow pool.
async fn a_server_without_free_connections_is_reported(kind: Kind) {
    let url = kind.database().await;
    let (scheme, rest) = url.split_once("://").unwrap();
    let (_, place) = rest.split_once('@').unwrap();
    let (_, name) = place.split_once('/').unwrap();
    let user = format!("limited_{name}");
    let (statements, code) = match kind {
        Kind::Postgres => (vec![format!("CREATE ROLE {user} LOGIN CONNECTION LIMIT 2")], "53300"),
        Kind::MariaDb => (
            vec![
                format!("CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS 1"),
                format!("GRANT ALL ON {name}.* TO {user}@'%'"),
            ],
            "1226",
        ),
    };
    let stranger = Database::connect(&url).await.unwrap();
    for statement in statements {
        stranger.execute_unprepared(&statement).await.unwrap();
    }
    let url = format!("{scheme}://{user}@{place}");
    let mut options = patient();
    options.pool.acquire_timeout = Duration::from_millis(500);
    let repository = SqlRepository::open(&url, options).await.unwrap();
    // Opening PostgreSQL takes two connections.
    let limit = if matches!(kind, Kind::Postgres) { 2 } else { 1 };
    let mut held = Vec::new();
    // The connections that `open` closed may still count for a moment.
    until("all connections", async || {
        if let Ok(connected) = Database::connect(&url).await {
            held.push(connected.begin().await.unwrap());
        }
        held.len() == limit
    })
    .await;
    let error = repository.get_by_hash(&key("a").hash).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(format!("{error:?}").contains(code), "{error:?}");
}

/// A server that rejects changes, for example because its disk is full, is not flooded with new connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_primary_is_not_flooded_with_connections() {
    let url = Kind::Postgres.database().await;
    let repository = open(&url, SqlOptions::default()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let stranger = Database::connect(&url).await.unwrap();
    let (_, name) = url.rsplit_once('/').unwrap();
    let read_only =
        |is_on: &str| format!("ALTER DATABASE {name} SET default_transaction_read_only = {is_on}");
    stranger.execute_unprepared(&read_only("on")).await.unwrap();
    for connection in connections(Kind::Postgres, &url).await {
        let _ = stranger.execute_unprepared(&format!("SELECT pg_terminate_backend({connection})")).await;
    }
    let stranger = Database::connect(&url).await.unwrap();
    let sessions = async || {
        // The statistics are updated with a delay.
        stranger
            .execute_unprepared("SELECT pg_stat_clear_snapshot(); SELECT pg_stat_force_next_flush()")
            .await
            .unwrap();
        let sql = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
        let row = stranger.query_one_raw(Statement::from_string(stranger.get_database_backend(), sql)).await;
        row.unwrap().unwrap().try_get_by_index::<i64>(0).unwrap()
    };
    let before = sessions().await;
    let begun = tokio::time::Instant::now();
    for _ in 0..40 {
        let refused = repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(repository.get_by_hash(&created.hash).await.unwrap().is_some());
    }
    assert_eq!(repository.check_changes().await.unwrap_err().kind(), ErrorKind::Unavailable);
    repository.ping().await.unwrap();
    // Without a limit, each rejected change opened five sessions. Both pools reconnect at first, and are
    // replaced once and then every two seconds. Slow responses of a busy machine and the sessions of the test
    // itself add a few.
    let allowed = 12 + 4 * i64::try_from(begun.elapsed().as_secs() / 2).unwrap();
    let made = sessions().await - before;
    assert!(made <= allowed, "{made} of {allowed}");
    let mut one_session = ConnectOptions::new(&url);
    one_session.max_connections(1);
    let writable = Database::connect(one_session).await.unwrap();
    for sql in ["SET default_transaction_read_only = off".to_owned(), read_only("off")] {
        writable.execute_unprepared(&sql).await.unwrap();
    }
    // Existing sessions keep the setting with which they began, so they are terminated.
    for connection in connections(Kind::Postgres, &url).await {
        let _ = writable.execute_unprepared(&format!("SELECT pg_terminate_backend({connection})")).await;
    }
    until("changes", async || {
        repository.revoke(created.id, RevokeReason::default(), &context()).await.is_ok()
    })
    .await;
    repository.check_changes().await.unwrap();
}

/// The replica serves only listings. Without it, the server starts, and everything else works.
#[tokio::test(flavor = "multi_thread")]
async fn startup_succeeds_without_the_replica() {
    let url = Kind::Postgres.database().await;
    let mut options = SqlOptions::default();
    options.pool.acquire_timeout = Duration::from_millis(200);
    options.pool.connect_timeout = Duration::from_millis(200);
    let repository = open(&url, options).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let repository = repository.with_replica(&format!("postgres://u@127.0.0.1:{port}/d")).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get(created.id).await.unwrap(), Some(created.clone()));
    repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap();
    let request = keyvouch::repository::PageRequest { owner_id: None, after: None, limit: 1 };
    assert_eq!(repository.list_page(&request).await.unwrap_err().kind(), ErrorKind::Unavailable);
}

/// No connection exceeds its maximum lifetime, however much it is used.
async fn old_connections_are_renewed(kind: Kind) {
    let url = kind.database().await;
    let mut options = SqlOptions::default();
    options.pool.max_lifetime = Duration::from_millis(300);
    options.pool.max_readers = 2;
    let repository = open(&url, options).await;
    repository.ping().await.unwrap();
    let first = connections(kind, &url).await;
    assert!(!first.is_empty());
    until("other connections", async || {
        repository.ping().await.unwrap();
        let now = connections(kind, &url).await;
        !now.is_empty() && now.iter().all(|connection| !first.contains(connection))
    })
    .await;
}

/// Another client locks the table of uses. Validations continue, a revocation succeeds, and the uses are
/// written when the lock is released.
async fn a_locked_usage_table_delays_no_call(kind: Kind) {
    let url = kind.database().await;
    let repository = open(&url, SqlOptions::default()).await;
    let server = TestServer::start(repository).await;
    let api = server.api().await;
    let (key, secret) = api.create(keyvouch::conformance::api::new_key()).await;
    let mut options = ConnectOptions::new(url);
    options.max_connections(1);
    let stranger = Database::connect(options).await.unwrap();
    let (lock, unlock) = match kind {
        Kind::Postgres => ("BEGIN; LOCK TABLE api_key_usage IN ACCESS EXCLUSIVE MODE", "COMMIT"),
        Kind::MariaDb => ("LOCK TABLES api_key_usage WRITE", "UNLOCK TABLES"),
    };
    stranger.execute_unprepared(lock).await.unwrap();
    for _ in 0..100 {
        assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    }
    assert_eq!(api.revoke(&key.id, "leaked").await.state(), pb::KeyState::Revoked);
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked);
    stranger.execute_unprepared(unlock).await.unwrap();
    until("the use", async || api.get(&key.id).await.last_used_time.is_some()).await;
}

/// Only a certificate of the right authority for the right name is accepted.
async fn tls_is_verified(kind: Kind) {
    let folder = tempfile::tempdir().unwrap();
    let (ca, certificate) = authority();
    let (other_ca, _) = authority();
    let write = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (ca, other_ca) = (write("ca.pem", &ca), write("other.pem", &other_ca));
    let server = kind.start(Some(&certificate));
    let url = |host: &str, ca: &str| {
        let server = server.url.replace("127.0.0.1", host);
        match kind {
            Kind::Postgres => format!("{server}/postgres?sslmode=verify-full&sslrootcert={ca}"),
            Kind::MariaDb => format!("{server}/mysql?ssl-mode=VERIFY_IDENTITY&ssl-ca={ca}"),
        }
    };
    let options = || SqlOptions {
        names: keyvouch_migration::Names::prefixed("tls_").unwrap(),
        ..SqlOptions::default()
    };
    let repository = open(&url("localhost", &ca), options()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created));

    let plain = match kind {
        Kind::Postgres => format!("{}/postgres?sslmode=disable", server.url),
        Kind::MariaDb => format!("{}/mysql?ssl-mode=DISABLED", server.url),
    };
    for refused in [url("127.0.0.1", &ca), url("localhost", &other_ca), plain] {
        let error = SqlRepository::open(&refused, options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{refused}: {error:?}");
    }
}

/// The server ended a transaction by itself. The next change must not be acknowledged inside the rest of it.
/// Returns the keys that were acknowledged after several such ends. Another client reads them.
async fn changes_after_aborted_transactions_are_committed(kind: Kind) {
    let url = kind.database().await;
    let mut options = patient();
    options.pool.max_writers = 1;
    // The server ends sessions that are idle in a transaction for longer.
    options.lock_timeout = Duration::from_secs(1);
    let repository = open(&url, options).await;
    let stranger = Database::connect(&url).await.unwrap();
    let mut acknowledged = Vec::new();
    let create = async |acknowledged: &mut Vec<KeyHash>, name: &str| {
        let created = repository.create(key(name), &context()).await;
        if let Ok(created) = &created {
            acknowledged.push(created.hash);
        }
        created.is_ok()
    };
    for round in 0..3 {
        // The change waits for the row of revisions until its lock timeout.
        let held = stranger.begin().await.unwrap();
        held.execute_unprepared("UPDATE revision_head SET revision = revision").await.unwrap();
        assert!(!create(&mut acknowledged, &format!("late {round}")).await);
        held.rollback().await.unwrap();
        until("a change", async || create(&mut acknowledged, &format!("after a wait {round}")).await).await;
        // The session is killed.
        for connection in connections(kind, &url).await {
            let kill = match kind {
                Kind::Postgres => format!("SELECT pg_terminate_backend({connection})"),
                Kind::MariaDb => format!("KILL {connection}"),
            };
            // The connection may have ended by itself.
            let _ = stranger.execute_unprepared(&kill).await;
        }
        until("a change", async || create(&mut acknowledged, &format!("after a kill {round}")).await).await;
    }
    for number in 0..10 {
        assert!(create(&mut acknowledged, &format!("last {number}")).await);
    }
    assert!(acknowledged.len() >= 16);
    let other = SqlRepository::open(&url, patient()).await.unwrap();
    for hash in acknowledged {
        assert!(other.get_by_hash(&hash).await.unwrap().is_some(), "acknowledged and not committed");
    }
}

on_each_server!(
    changes_after_aborted_transactions_are_committed,
    a_frozen_server_fails_calls_in_time,
    connections_that_the_server_closed_are_replaced,
    the_first_change_after_an_idle_time_succeeds,
    a_busy_pool_is_overloaded,
    a_server_without_free_connections_is_reported,
    old_connections_are_renewed,
    a_locked_usage_table_delays_no_call,
    tls_is_verified,
);
