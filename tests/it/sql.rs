//! Tests that need direct access to the database.

use keyvouch::domain::{
    ApiKey, ChangeContext, Description, KeyHash, KeyId, KeyIdentity, KeyName, KeyPrefix, Metadata, OwnerId,
    Revision, RevokeReason, Rotation, ScopeSet, SystemEntropy, Timestamp,
};
use keyvouch::repository::{KeyRepository as _, SqlOptions, SqlRepository, UsageStore as _};
use sea_orm::{ConnectionTrait as _, Database, DatabaseConnection, DbBackend, Statement};

use crate::databases::patient;
use crate::support::until;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros).unwrap()
}

fn identity(secret: &str) -> KeyIdentity {
    let hash = KeyHash::of(secret);
    let id = KeyId::generate(at(0), &hash, &SystemEntropy).unwrap();
    KeyIdentity { id, hash, prefix: KeyPrefix::parse("prefix", "kv_").unwrap() }
}

pub(crate) fn key(secret: &str) -> ApiKey {
    let KeyIdentity { id, hash, prefix } = identity(secret);
    ApiKey {
        id,
        hash,
        prefix,
        name: KeyName::parse("name", "name").unwrap(),
        description: Description::default(),
        owner_id: OwnerId::parse("owner_id", "Owner").unwrap(),
        scopes: ScopeSet::default(),
        metadata: Metadata::default(),
        created_at: at(1),
        updated_at: at(1),
        expires_at: None,
        revocation: None,
        rotated_from: None,
        replaced_by: None,
        revision: Revision::NONE,
        nonce: 0,
    }
}

fn context(number: i64) -> ChangeContext {
    ChangeContext::new(format!("token:{number}"), format!("r-{number}"), at(number))
}

async fn open() -> (SqlRepository, DatabaseConnection, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let repository = SqlRepository::open_sqlite(&path, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    let database = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    (repository, database, folder)
}

async fn texts(database: &DatabaseConnection, sql: &str) -> Vec<String> {
    let rows = database.query_all_raw(Statement::from_string(DbBackend::Sqlite, sql)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index::<String>(0).unwrap()).collect()
}

#[tokio::test]
async fn every_change_writes_its_event() {
    let (repository, database, _folder) = open().await;
    let created = repository.create(key("a"), &context(1)).await.unwrap();
    let renamed = ApiKey {
        name: KeyName::parse("name", "other").unwrap(),
        expires_at: Some(at(99)),
        ..created.clone()
    };
    let renamed = repository.update(renamed, created.revision, &context(2)).await.unwrap();
    let rotation =
        Rotation::plan(&renamed, identity("b"), std::time::Duration::from_micros(5), None, at(3)).unwrap();
    let rotated = repository.rotate(rotation, &context(3)).await.unwrap();
    repository.revoke(created.id, RevokeReason::default(), &context(4)).await.unwrap();
    repository.revoke(created.id, RevokeReason::default(), &context(5)).await.unwrap();
    repository.delete(created.id, &context(6)).await.unwrap();
    repository.update(rotated.successor.clone(), Revision::NONE, &context(7)).await.unwrap_err();
    repository.delete(created.id, &context(8)).await.unwrap_err();

    let sql = "select kind || ' ' || changed_fields || ' ' || actor || ' ' || request_id || ' ' || created_at \
               || ' ' || owner_id || ' ' || (hash is not null and nonce is not null) from key_event order by revision";
    assert_eq!(
        texts(&database, sql).await,
        [
            "created  token:1 r-1 1 Owner 1",
            "updated name,expire_time token:2 r-2 2 Owner 1",
            "rotated expire_time,replaced_by token:3 r-3 3 Owner 1",
            "created  token:3 r-3 3 Owner 1",
            "revoked revoke_time token:4 r-4 4 Owner 1",
            "deleted  token:6 r-6 6 Owner 1",
        ]
    );
    let sql = "select cast(revision as text) from key_event order by revision";
    assert_eq!(texts(&database, sql).await, ["1", "2", "3", "4", "5", "6"], "failed changes use no revision");
    let nonces = texts(&database, "select distinct cast(nonce as text) from key_event").await;
    assert_eq!(nonces.len(), 6);
}

/// The values of a row as every release with nonces has written them.
#[tokio::test]
async fn rows_of_keys_keep_their_form() {
    let (repository, database, _folder) = open().await;
    let bare = key("a");
    let full = ApiKey {
        scopes: ScopeSet::parse("scopes", ["write", "read"]).unwrap(),
        metadata: Metadata::parse([("k".into(), "\"🔑\"".into())].into()).unwrap(),
        expires_at: Some(at(8)),
        created_at: at(-5),
        ..key("b")
    };
    repository.create(bare, &context(1)).await.unwrap();
    let full = repository.create(full, &context(2)).await.unwrap();
    repository.revoke(full.id, RevokeReason::parse("reason", "leaked").unwrap(), &context(9)).await.unwrap();
    let sql = "select prefix || ' ' || name || ' ' || owner_id || ' ' || scopes || ' ' || metadata || ' ' || created_at \
               || ' ' || updated_at || ' ' || coalesce(expires_at, '-') || ' ' || coalesce(revoked_at, '-') || ' ' \
               || coalesce(revoke_reason, '-') || ' ' || revision || ' ' || (nonce_revision = revision) || ' ' \
               || typeof(id) || length(id) || ' ' || typeof(hash) || length(hash) from api_key order by revision";
    assert_eq!(
        texts(&database, sql).await,
        [
            "kv_ name Owner [] {} 1 1 - - - 1 1 blob16 blob32",
            r#"kv_ name Owner ["read","write"] {"k":"\"🔑\""} -5 9 8 9 leaked 3 1 blob16 blob32"#,
        ]
    );
}

#[tokio::test]
async fn the_file_is_a_write_ahead_log_with_foreign_keys() {
    let (repository, database, _folder) = open().await;
    assert_eq!(texts(&database, "pragma journal_mode").await, ["wal"]);
    let created = repository.create(key("a"), &context(1)).await.unwrap();
    repository.record_usage(&[(created.id, at(5))]).await.unwrap();
    repository.delete(created.id, &context(2)).await.unwrap();
    let left = texts(&database, "select cast(count(*) as text) from api_key_usage").await;
    assert_eq!(left, ["0"], "the usage is deleted with its key");
}

#[tokio::test]
async fn invalid_rows_are_corrupt() {
    use keyvouch::repository::ErrorKind;
    let (repository, database, _folder) = open().await;
    let created = repository.create(key("a"), &context(1)).await.unwrap();
    let run = |sql: String| database.execute_raw(Statement::from_string(DbBackend::Sqlite, sql));
    let good = "scopes = '[]', metadata = '{}', owner_id = 'o', prefix = 'kv_', created_at = 1";
    let faults = [
        ("scopes", "'read'"),
        ("scopes", "'[\"a b\"]'"),
        ("metadata", "'{\"k\": 1}'"),
        ("owner_id", "''"),
        ("prefix", "'KV'"),
        ("created_at", "9223372036854775807"),
    ];
    for (column, fault) in faults {
        run(format!("update api_key set {good}")).await.unwrap();
        assert!(repository.get(created.id).await.unwrap().is_some());
        run(format!("update api_key set {column} = {fault}")).await.unwrap();
        let error = repository.get_by_hash(&created.hash).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{column} = {fault}");
        assert_eq!(
            repository.get(created.id).await.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "{column} = {fault}"
        );
    }
    repository.delete(created.id, &context(2)).await.unwrap();
    assert_eq!(repository.get(created.id).await.unwrap(), None, "corrupt records can be deleted");
}

#[tokio::test]
async fn a_lock_on_the_database_fails_changes_and_not_reads() {
    use keyvouch::repository::ErrorKind;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let options = SqlOptions { timeout: std::time::Duration::from_millis(200), ..SqlOptions::default() };
    let repository = SqlRepository::open_sqlite(&path, options).await.unwrap();
    repository.migrate().await.unwrap();
    let created = repository.create(key("a"), &context(1)).await.unwrap();
    let database = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    let run = |sql: &'static str| database.execute_raw(Statement::from_string(DbBackend::Sqlite, sql));
    run("begin immediate").await.unwrap();
    let error = repository.revoke(created.id, RevokeReason::default(), &context(2)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error:?}");
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created.clone()));
    run("rollback").await.unwrap();
    // The connection is free again when SQLite's own busy timeout has passed.
    until("the connection", async || {
        match repository.revoke(created.id, RevokeReason::default(), &context(3)).await {
            Ok(revoked) => revoked.revocation.is_some(),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error:?}");
                false
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_concurrently_migrate_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db");
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move {
                let repository = SqlRepository::open_sqlite(&path, patient()).await.unwrap();
                let applied = repository.migrate().await.unwrap();
                assert_eq!(repository.schema_state().await.unwrap().pending, Vec::<String>::new());
                repository.ping().await.unwrap();
                applied.len()
            })
        })
        .collect();
    let mut migrated = 0;
    for start in starts {
        migrated += usize::from(start.await.unwrap() > 0);
    }
    assert_eq!(migrated, 1);
}

#[tokio::test]
async fn a_deleted_or_replaced_file_is_not_written() {
    use keyvouch::repository::ErrorKind;
    let (repository, database, folder) = open().await;
    let created = repository.create(key("a"), &context(1)).await.unwrap();
    database.close().await.unwrap();
    let path = folder.path().join("kv.db");
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    for is_replaced in [false, true] {
        if is_replaced {
            std::fs::copy(folder.path().join("moved"), &path).unwrap();
        }
        let error = repository.revoke(created.id, RevokeReason::default(), &context(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(repository.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    std::fs::rename(folder.path().join("moved"), &path).unwrap();
    repository.revoke(created.id, RevokeReason::default(), &context(3)).await.unwrap();
}

/// Only the unreadable row fails, even if the driver itself can't read a cell.
#[tokio::test]
async fn an_unreadable_row_affects_no_other_key() {
    use keyvouch::repository::ErrorKind;
    let (repository, database, _folder) = open().await;
    let sound = repository.create(key("a"), &context(1)).await.unwrap();
    let broken = repository.create(key("b"), &context(2)).await.unwrap();
    for fault in ["name = cast(x'ff' as text)", "name = x'00'", "created_at = 'x'", "scopes = 'x'"] {
        database.execute_unprepared(&format!("update api_key set {fault} where revision = 2")).await.unwrap();
        let found = repository.get_many_by_hash(&[broken.hash, sound.hash]).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|it| it.map_err(|error| error.kind())).collect();
        assert_eq!(found, [Err(ErrorKind::Corrupt), Ok(Some(sound.clone()))], "{fault}");
    }
}
