//! The number of connections that a replica needs.

use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};

use crate::databases::{Kind, PgBouncer};
use crate::process::program::{Home, wait_for};

const FEWEST: [&str; 3] = ["store.sql.max_readers=1", "store.sql.max_writers=1", "admin.insecure=true"];

/// Returns the URL of a new database, and the same for a role that may have `limit` connections.
async fn limited(limit: u32) -> (String, String) {
    let url = Kind::Postgres.database().await;
    let (_, name) = url.rsplit_once('/').unwrap();
    let role = format!("limited_{name}");
    let database = Database::connect(&url).await.unwrap();
    for sql in [
        format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT {limit}"),
        format!("GRANT CREATE ON DATABASE {name} TO {role}"),
        format!("GRANT CREATE ON SCHEMA public TO {role}"),
    ] {
        database.execute_unprepared(&sql).await.unwrap();
    }
    let limited = url.replace("postgres@", &format!("{role}@"));
    (url, limited)
}

/// Returns whether a connection of the database of `url` listens for notifications.
async fn listens(url: &str) -> bool {
    let database = Database::connect(url).await.unwrap();
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()";
    let row = database.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.unwrap();
    row.unwrap().try_get_by_index::<i64>(0).unwrap() > 0
}

/// Runs a server with three connections, and makes changes that need all of them. `as_superuser` is another URL of the
/// database.
fn works(url: &str, as_superuser: &str) {
    let home = Home::new();
    let store = format!("store.url={url}");
    let migrated = home.run(&["migrate", "up", "--set", &store]);
    assert_eq!(migrated.status, 0, "{}", migrated.stderr);
    let server = home.serve(&[&[store.as_str()][..], &FEWEST].concat());
    let runtime = tokio::runtime::Handle::current();
    wait_for("the listener", || runtime.block_on(listens(as_superuser)).then_some(()));
    for _ in 0..5 {
        let created = home.create_key(&server, &[]);
        let (id, secret) = (created["key"]["id"].as_str().unwrap(), created["secret"].as_str().unwrap());
        assert_eq!(home.validate(&server, secret).0, 0);
        home.json(&server, &["key", "revoke", id]);
        assert_eq!(home.validate(&server, secret).1, "REASON_REVOKED");
    }
}

/// Asserts that a server with two connections ends with an error that names the settings.
fn is_rejected(url: &str) {
    let home = Home::new();
    let store = format!("store.url={url}");
    let settings = ["store.connect_timeout=2s", "server.listen=127.0.0.1:0"];
    let mut arguments = vec!["serve", "--set", &store];
    for setting in FEWEST.iter().chain(&settings) {
        arguments.extend(["--set", setting]);
    }
    let refused = home.run(&arguments);
    assert_eq!(refused.status, 1);
    for text in ["2 of the 3 connections", "store.sql.max_readers + store.sql.max_writers + 1"] {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_connections_are_enough_for_a_server() {
    let (direct, limited) = limited(3).await;
    tokio::task::spawn_blocking(move || works(&limited, &direct)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connections_are_rejected_by_name() {
    let (_, limited) = limited(2).await;
    tokio::task::spawn_blocking(move || is_rejected(&limited)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_connections_of_a_pooler_are_enough_for_a_server() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Debian.start(&direct, &["default_pool_size = 3"]);
    tokio::task::spawn_blocking(move || works(&url, &direct)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_connections_of_a_pooler_are_rejected_by_name() {
    let direct = Kind::Postgres.database().await;
    let (_pooler, url) = PgBouncer::Debian.start(&direct, &["default_pool_size = 2"]);
    tokio::task::spawn_blocking(move || is_rejected(&url)).await.unwrap();
}
