//! Tests that databases of earlier releases are migrated without loss of data.
//!
//! `tests/fixtures/RELEASE/` has a dump for each kind of database, taken after that release ran [`fill`] on
//! it.

use std::time::Duration;

use keyvouch::domain::{
    ApiKey, ChangeContext, Description, KeyEvent, KeyHash, KeyId, KeyIdentity, KeyName, KeyPrefix, Metadata,
    OwnerId, RevokeReason, Rotation, ScopeSet, Timestamp,
};
use keyvouch::repository::{
    AuditTrail, ChangeFeed as _, EventPageRequest, KeyRepository, Listed, MemoryRepository, PageRequest,
    SqlRepository, UsageStore,
};
use sea_orm::{ConnectionTrait as _, Database};

use crate::databases::{Kind, patient};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_123_456 + seconds * 1_000_000).unwrap()
}

fn context(step: i64) -> ChangeContext {
    ChangeContext::new("token:fixture", format!("step-{step}"), at(step))
}

fn identity(number: u8) -> KeyIdentity {
    let hash = KeyHash::from_bytes([number; KeyHash::BYTES]);
    let mut id = *b"\x01\x9b\x76\x00\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x00";
    id[14] = number;
    id[15] = number;
    let id = KeyId::from_uuid(uuid::Uuid::from_bytes(id));
    KeyIdentity { id, hash, prefix: KeyPrefix::parse("prefix", "kv_").unwrap() }
}

fn key(number: u8) -> ApiKey {
    let KeyIdentity { id, hash, prefix } = identity(number);
    ApiKey {
        id,
        hash,
        prefix,
        name: KeyName::parse("name", format!("key {number} 'of' \"blue\" 🔑")).unwrap(),
        description: Description::parse("description", "Описание \\ 100%").unwrap(),
        owner_id: OwnerId::parse("owner_id", if number.is_multiple_of(2) { "Owner" } else { "owner" })
            .unwrap(),
        scopes: ScopeSet::parse("scopes", ["read", "users:write"]).unwrap(),
        metadata: Metadata::parse([("ключ".into(), "v🔑;".into()), ("e".into(), String::new())].into())
            .unwrap(),
        created_at: at(i64::from(number)),
        updated_at: at(i64::from(number)),
        expires_at: (number == 2).then_some(Timestamp::MAX),
        revocation: None,
        rotated_from: None,
        replaced_by: None,
        revision: keyvouch::domain::Revision::NONE,
        nonce: 0,
    }
}

/// Makes every kind of change, and records a last use.
async fn fill(repository: &(impl KeyRepository + UsageStore)) {
    for number in 1..=5 {
        repository.create(key(number), &context(number.into())).await.unwrap();
    }
    let second = repository.get(key(2).id).await.unwrap().unwrap();
    let renamed =
        ApiKey { name: KeyName::parse("name", "renamed").unwrap(), updated_at: at(10), ..second.clone() };
    repository.update(renamed, second.revision, &context(10)).await.unwrap();
    let reason = RevokeReason::parse("reason", "leaked").unwrap();
    repository.revoke(key(3).id, reason, &context(11)).await.unwrap();
    let fourth = repository.get(key(4).id).await.unwrap().unwrap();
    let rotation = Rotation::plan(&fourth, identity(9), Duration::from_hours(1), None, at(12)).unwrap();
    repository.rotate(rotation, &context(12)).await.unwrap();
    repository.delete(key(5).id, &context(13)).await.unwrap();
    repository.record_usage(&[(key(1).id, at(14))]).await.unwrap();
}

/// Returns all data of a backend, except nonces, which are random.
async fn contents(
    repository: &(impl KeyRepository + AuditTrail + UsageStore),
) -> (Vec<ApiKey>, Vec<Option<Timestamp>>, Vec<KeyEvent>) {
    let request = PageRequest { owner_id: None, after: None, limit: 100 };
    let keys: Vec<_> = repository.list_page(&request).await.unwrap().into_iter().map(readable).collect();
    let uses = repository.usage(&keys.iter().map(|key| key.id).collect::<Vec<_>>()).await.unwrap();
    let request = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 100 };
    let events = repository.list_events(&request).await.unwrap();
    let without_nonce = |event| KeyEvent { nonce: 0, ..readable(event) };
    let keys = keys.into_iter().map(|key| ApiKey { nonce: 0, ..key }).collect();
    (keys, uses, events.into_iter().map(without_nonce).collect())
}

fn readable<T, P>(listed: Listed<T, P>) -> T {
    listed.read().unwrap()
}

/// Migrates the database, and compares it with a backend in memory in which the same changes were made.
async fn check_migration(url: &str) {
    let repository = SqlRepository::open(url, patient()).await.unwrap();
    repository.migrate().await.unwrap();
    assert_eq!(repository.schema_state().await.unwrap().pending, Vec::<String>::new());
    let expected = MemoryRepository::new();
    fill(&expected).await;
    assert_eq!(contents(&repository).await, contents(&expected).await);
    for number in [1, 2, 3, 4, 9] {
        let hash = identity(number).hash;
        let found = repository.get_by_hash(&hash).await.unwrap().map(|key| ApiKey { nonce: 0, ..key });
        let filled = expected.get_by_hash(&hash).await.unwrap().map(|key| ApiKey { nonce: 0, ..key });
        assert_eq!(found, filled);
    }
    // New changes continue after the existing ones.
    let last = repository.changes(None, 100).await.unwrap();
    let created = repository.create(key(5), &context(15)).await.unwrap();
    let new = repository.changes(Some(&last.position), 100).await.unwrap().events;
    assert_eq!(new.iter().map(|event| event.revision).collect::<Vec<_>>(), [created.revision]);
    assert!(last.events.iter().all(|event| event.revision < created.revision));
}

/// Runs the statements of a dump.
async fn restore(url: &str, dump: &str) {
    let database = Database::connect(url).await.unwrap();
    database.execute_unprepared(dump).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_sqlite_database_of_0_1_0_is_migrated_without_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kv.db").display().to_string();
    restore(&format!("sqlite://{path}?mode=rwc"), include_str!("../fixtures/0.1.0/sqlite.sql")).await;
    check_migration(&format!("sqlite://{path}")).await;
}

#[tokio::test]
async fn a_postgres_database_of_0_1_0_is_migrated_without_loss() {
    let url = Kind::Postgres.database().await;
    restore(&url, include_str!("../fixtures/0.1.0/postgres.sql")).await;
    check_migration(&url).await;
}

#[tokio::test]
async fn a_mariadb_database_of_0_1_0_is_migrated_without_loss() {
    let url = Kind::MariaDb.database().await;
    restore(&url, include_str!("../fixtures/0.1.0/mariadb.sql")).await;
    check_migration(&url).await;
}
