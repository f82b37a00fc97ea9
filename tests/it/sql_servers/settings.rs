//! Settings of servers, databases, roles and poolers.

use std::time::Duration;

use keyvouch::repository::{
    ChangeFeed as _, ErrorKind, KeyRepository as _, PageRequest, SqlOptions, SqlRepository, UsageStore as _,
};
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement, TransactionTrait as _};

use super::{context, now};
use crate::databases::{Kind, PgBouncer, on_each_server, patient};
use crate::process::program::Home;
use crate::sql::key;

/// An outdated schema is rejected until it is migrated. The error has the number of migrations and the
/// command.
async fn an_outdated_schema_is_rejected(kind: Kind) {
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

/// The default settings of a server, a database or a role change neither results nor commits.
async fn settings_of_the_server_do_not_affect_sessions(kind: Kind) {
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

/// A limit that the server reduces is a startup error that names it.
#[tokio::test]
async fn a_limit_that_the_server_reduces_is_an_error() {
    let url = Kind::MariaDb.database().await;
    let options = SqlOptions { lock_timeout: Duration::from_secs(2_000_000_000), ..patient() };
    let error = SqlRepository::open(&url, options).await.unwrap_err();
    assert!(format!("{error:?}").contains("innodb_lock_wait_timeout"), "{error:?}");
}

/// PostgreSQL would hide the rows, and valid keys would be reported as not found.
#[tokio::test]
async fn row_level_security_is_an_error_and_not_a_missing_key() {
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
async fn the_schema_and_the_limits_apply_behind_a_pooler() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Debian.start(&direct, &[]);
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
async fn a_database_in_another_encoding_is_rejected() {
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
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(format!("{error:?}").contains("server_encoding"), "{error:?}");
    let maria = format!("{}?charset=latin1", Kind::MariaDb.database().await);
    let error = SqlRepository::open(&maria, patient()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(format!("{error:?}").contains("character_set_client"), "{error:?}");
}

on_each_server!(an_outdated_schema_is_rejected, settings_of_the_server_do_not_affect_sessions,);
