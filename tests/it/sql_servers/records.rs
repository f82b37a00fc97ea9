//! Rows and events that can't be read, and the tables that contain them.

use keyvouch::conformance::repository::Subject;
use keyvouch::domain::{ChangeKind, Revision, RevokeReason};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, EventPageRequest, KeyRepository as _, ListedEvent,
    ListedKey, PagePosition, PageRequest, SqlOptions, SqlRepository, UnreadableEvent,
};
use keyvouch_migration::Names;
use sea_orm::{ConnectionTrait as _, Database};

use super::context;
use crate::cached::{Replica, options};
use crate::databases::{Kind, on_each_server, patient};
use crate::sql::key;
use crate::support::until;

/// Two backends in one database have different prefixes of their tables.
async fn prefixes_separate_backends(kind: Kind) {
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

/// An unreadable row is an error of its own key. A key that is looked up together with it is found.
async fn an_unreadable_row_affects_no_other_key(kind: Kind) {
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
async fn unreadable_events_stop_neither_feed_nor_audit_trail(kind: Kind) {
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
    assert_eq!(changes.unreadable, [UnreadableEvent { partition: 0, revision: Revision::new(3) }]);
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

#[tokio::test]
async fn tables_are_in_the_configured_schema() {
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
async fn only_listings_are_read_from_the_replica() {
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
    assert_eq!(repository.list_page(&request).await.unwrap(), [], "the other database has no keys");
}

on_each_server!(
    prefixes_separate_backends,
    an_unreadable_row_affects_no_other_key,
    unreadable_events_stop_neither_feed_nor_audit_trail,
);
