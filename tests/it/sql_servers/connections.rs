//! Connections and their prepared statements.

use keyvouch::domain::{KeyHash, Revision};
use keyvouch::repository::{ErrorKind, KeyRepository as _, SqlOptions, SqlRepository};
use sea_orm::{ConnectionTrait as _, Database, DbBackend, Statement};

use super::context;
use crate::databases::{Kind, authority, patient};
use crate::sql::key;
use crate::support::until;

/// PostgreSQL keeps the plan of a statement that was prepared while the table was empty. That plan must not
/// scan the whole table.
#[tokio::test]
async fn statements_prepared_on_empty_tables_use_indexes_later() {
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
async fn connections_to_a_read_only_server_are_replaced() {
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

/// The server offers TLS on its socket, too, but the driver's handshake fails there.
#[tokio::test]
async fn a_unix_socket_of_a_server_with_tls_needs_no_setting() {
    let (_, certificate) = authority();
    let server = Kind::MariaDb.start(Some(&certificate));
    let url = format!("mysql://root@localhost/mysql?socket={}", server.socket().display());
    let repository = SqlRepository::open(&url, patient()).await.unwrap();
    assert_eq!(repository.migrate().await.unwrap().len(), 2);
    repository.create(key("a"), &context()).await.unwrap();
}

#[tokio::test]
async fn errors_contain_no_password() {
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
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unusable), "{url} {error:?}");
    }
    let repository = SqlRepository::open(&Kind::Postgres.database().await, patient()).await.unwrap();
    assert!(!format!("{repository:?}").contains("postgres@"));
}
