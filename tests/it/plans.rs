//! Tests that databases run each statement of the repository with the index that was created for it.

use keyvouch::domain::{ApiKey, ChangeContext, OwnerId, Revision, Timestamp};
use keyvouch::repository::{KeyRepository as _, SqlRepository, UsageStore as _};
use sea_orm::{ConnectionTrait as _, Database, DbBackend};

use crate::databases::{Kind, patient};
use crate::sql::key;

/// The access path of a statement.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A condition on the first column of the index.
    Condition(&'static str, &'static str),
    /// A scan of the index in its order, which a limit ends.
    Walk(&'static str),
    /// A condition on the primary key of the table.
    PrimaryKey(&'static str),
    /// A scan of the primary key, which a limit ends.
    PrimaryWalk,
}

const WAYS: [(&str, Way); 20] = [
    ("a key by its hash", Way::Condition("api_key_hash", "hash")),
    ("keys by their hashes", Way::Condition("api_key_hash", "hash")),
    ("a key by its id", Way::PrimaryKey("id")),
    ("taken ids", Way::PrimaryKey("id")),
    ("taken hashes", Way::Condition("api_key_hash", "hash")),
    ("the first page of an owner", Way::Condition("api_key_owner_order", "owner_id")),
    ("a later page of an owner", Way::Condition("api_key_owner_order", "owner_id")),
    ("the first page of all", Way::Walk("api_key_order")),
    ("a later page of all", Way::Condition("api_key_order", "created_at")),
    ("a replaced key", Way::PrimaryKey("id")),
    ("a deleted key's use", Way::PrimaryKey("key_id")),
    ("a deleted key", Way::PrimaryKey("id")),
    ("last uses", Way::PrimaryKey("key_id")),
    ("recorded uses", Way::PrimaryKey("id")),
    ("events after a revision", Way::PrimaryKey("revision")),
    ("events of all", Way::PrimaryKey("revision")),
    ("events of a key", Way::Condition("key_event_key", "key_id")),
    ("events of an owner", Way::Condition("key_event_owner", "owner_id")),
    ("the oldest events", Way::PrimaryWalk),
    ("pruned events", Way::PrimaryKey("revision")),
];

impl Way {
    /// Returns whether `plan` uses this access path.
    fn is_taken(self, backend: DbBackend, plan: &str) -> bool {
        let is_sorted_by_hand = ["Sort", "filesort", "TEMP B-TREE"].iter().any(|sort| plan.contains(sort));
        let has_line = |marks: &[&str]| plan.lines().any(|line| marks.iter().all(|mark| line.contains(mark)));
        let is_taken = match (backend, self) {
            (DbBackend::Postgres, Self::Condition(index, column)) => {
                plan.contains(&format!("{index} ")) && has_line(&["Index Cond", column])
            }
            (DbBackend::Postgres, Self::Walk(index)) => has_line(&["Index Scan", &format!("{index} ")]),
            (DbBackend::Postgres, Self::PrimaryKey(column)) => {
                plan.contains("_pkey ") && has_line(&["Index Cond", column])
            }
            (DbBackend::Postgres, Self::PrimaryWalk) => has_line(&["Index Scan", "_pkey "]),
            (DbBackend::MySql, way) => {
                let (index, is_walk) = match way {
                    Self::Condition(index, _) => (index, false),
                    Self::Walk(index) => (index, true),
                    Self::PrimaryKey(_) => ("PRIMARY", false),
                    Self::PrimaryWalk => ("PRIMARY", true),
                };
                let by_condition = ["const", "eq_ref", "ref", "range"];
                let kinds: &[&str] = if is_walk { &["index"] } else { &by_condition };
                kinds.iter().any(|kind| has_line(&[&format!("type={kind} "), &format!("key={index} ")]))
            }
            (_, Self::Condition(index, column)) => has_line(&["SEARCH", &format!("INDEX {index} ({column}")]),
            (_, Self::Walk(index)) => {
                plan.lines().any(|line| line.starts_with("SCAN") && line.contains(index))
            }
            // SQLite calls a numeric primary key `rowid`.
            (_, Self::PrimaryKey(column)) => {
                has_line(&["SEARCH", &format!("_1 ({column}")]) || has_line(&["SEARCH", "PRIMARY KEY (rowid"])
            }
            (_, Self::PrimaryWalk) => plan == "SCAN key_event",
        };
        is_taken && !is_sorted_by_hand
    }
}

/// Returns the names and plans of the statements that use another access path than they should.
async fn astray(
    repository: &SqlRepository,
    backend: DbBackend,
    asked: &ApiKey,
) -> Vec<(&'static str, String)> {
    let plans = repository.explain(asked).await.unwrap();
    assert_eq!(plans.iter().map(|(name, _)| *name).collect::<Vec<_>>(), WAYS.map(|(name, _)| name));
    let plans = plans.into_iter().zip(WAYS);
    plans.filter(|((_, plan), (_, way))| !way.is_taken(backend, plan)).map(|(plan, _)| plan).collect()
}

/// Checks all statements. `fill` creates a hundred thousand keys and as many events, of which every hundredth
/// belongs to the requested owner.
async fn each_statement_goes_its_way(url: &str, fill: &[String]) {
    let repository = SqlRepository::open(url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    let created_at = Timestamp::from_micros(50_000).unwrap();
    let asked = ApiKey { owner_id: OwnerId::parse("owner_id", "owner 7").unwrap(), created_at, ..key("a") };
    let context = ChangeContext::new("", "", created_at);
    let asked = repository.create(asked, &context).await.unwrap();
    repository.record_usage(&[(asked.id, created_at)]).await.unwrap();
    let asked = ApiKey { revision: Revision::new(50_000), ..asked };
    let database = Database::connect(url).await.unwrap();
    for statement in fill {
        database.execute_unprepared(statement).await.unwrap();
    }
    let backend = database.get_database_backend();
    assert_eq!(astray(&repository, backend, &asked).await, []);

    // The check detects a statement that can't use its index.
    for (index, table, statements) in [
        (
            "api_key_owner_order",
            "api_key",
            ["the first page of an owner", "a later page of an owner"].as_slice(),
        ),
        ("key_event_key", "key_event", &["events of a key"]),
        ("key_event_owner", "key_event", &["events of an owner"]),
        ("api_key_hash", "api_key", &["a key by its hash", "keys by their hashes", "taken hashes"]),
    ] {
        let drop = match backend {
            DbBackend::MySql => format!("DROP INDEX {index} ON {table}"),
            _ => format!("DROP INDEX {index}"),
        };
        database.execute_unprepared(&drop).await.unwrap();
        // A statement that was only explained is not prepared again when an index is dropped, so this needs a
        // new connection.
        let repository = SqlRepository::open(url, patient()).await.unwrap();
        let lost: Vec<_> =
            astray(&repository, backend, &asked).await.into_iter().map(|(name, _)| name).collect();
        assert!(statements.iter().all(|name| lost.contains(name)), "without {index}: {lost:?}");
    }
}

#[tokio::test]
async fn sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("kv.db").display());
    let fill = [
        "with recursive n(i) as (select 2 union all select i + 1 from n where i < 100000) \
         insert into api_key select randomblob(16), randomblob(32), 'kv_', 'key', '', 'owner ' || i % 100, '[]', '{}', i, i, \
         null, null, null, null, null, i, i, i from n",
        "insert into api_key_usage select id, created_at from api_key where revision > 1",
        "insert into key_event select revision, revision, id, hash, owner_id, 'created', '', '', '', created_at \
         from api_key where revision > 1",
        "analyze",
    ];
    each_statement_goes_its_way(&url, &fill.map(str::to_owned)).await;
}

#[tokio::test]
async fn postgres() {
    let (id, hash) = ("gen_random_uuid()", "sha256(i::text::bytea)");
    let fill =
        fill(id, hash, "generate_series(2, 100000) AS n(i)", "ANALYZE api_key, api_key_usage, key_event");
    each_statement_goes_its_way(&Kind::Postgres.database().await, &fill).await;
}

#[tokio::test]
async fn mariadb() {
    let (id, hash) = ("UNHEX(MD5(i))", "UNHEX(SHA2(i, 256))");
    let numbers = "(SELECT seq AS i FROM seq_2_to_100000) AS n";
    let fill = fill(id, hash, numbers, "ANALYZE TABLE api_key, api_key_usage, key_event");
    each_statement_goes_its_way(&Kind::MariaDb.database().await, &fill).await;
}

fn fill(id: &str, hash: &str, numbers: &str, analyze: &str) -> [String; 4] {
    let owner = "CONCAT('owner ', i % 100)";
    [
        format!(
            "INSERT INTO api_key SELECT {id}, {hash}, 'kv_', 'name', '', {owner}, '[]', '{{}}', i, i, NULL, NULL, NULL, \
             NULL, NULL, i, i, i FROM {numbers}"
        ),
        "INSERT INTO api_key_usage SELECT id, created_at FROM api_key WHERE revision > 1".to_owned(),
        format!(
            "INSERT INTO key_event SELECT i, i, {id}, {hash}, {owner}, 'created', '', '', '', i FROM {numbers}"
        ),
        analyze.to_owned(),
    ]
}
