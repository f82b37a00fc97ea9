//! Records: lookups, separate prefixes, and records and events that can't be read.

use keyvouch::domain::{ApiKey, ChangeKind, Revision, RevokeReason, Timestamp};
use keyvouch::repository::{
    AuditTrail as _, ChangeFeed as _, ErrorKind, EventPageRequest, KeyRepository as _, ListedEvent,
    ListedKey, PagePosition, PageRequest, RedisOptions,
};

use super::{context, open, quick};
use crate::redis_servers::{Redis, cli};
use crate::sql::key;

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_is_one_round_trip() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let created = repository.create(key("a"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    cli(port, &["CONFIG", "RESETSTAT"]);
    for _ in 0..50 {
        repository.get_by_hash(&created.hash).await.unwrap().unwrap();
    }
    let stats = cli(port, &["INFO", "commandstats"]);
    let calls = |line: &str| line.split("calls=").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let commands: Vec<_> = stats
        .lines()
        .filter(|line| line.starts_with("cmdstat_") && !line.contains("config|resetstat"))
        .map(|line| (line.split(':').next().unwrap(), calls(line)))
        .collect();
    // The role is read in the same round trip, because answers of a replica must not be used.
    let both = [("cmdstat_mget", "50".to_owned()), ("cmdstat_role", "50".to_owned())];
    assert!(commands.len() == 2 && both.iter().all(|command| commands.contains(command)), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_separate_backends() {
    let servers = Redis::Alone.start(&[]);
    let with = |prefix: &str| RedisOptions { key_prefix: prefix.to_owned(), ..quick() };
    let (one, other) = (open(&servers, with("a:")).await, open(&servers, with("b:")).await);
    let created = one.create(key("a"), &context()).await.unwrap();
    assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), None);
    assert_eq!(other.get(created.id).await.unwrap(), None);
    other.create(ApiKey { revision: Revision::NONE, ..created.clone() }, &context()).await.unwrap();
    other.delete(created.id, &context()).await.unwrap();
    assert_eq!(one.get(created.id).await.unwrap(), Some(created));
    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    assert_eq!(one.list_page(&request).await.unwrap().len(), 1);
    assert_eq!(other.list_page(&request).await.unwrap(), []);
    assert_eq!(one.changes(None, 10).await.unwrap().events.len(), 1);
}

/// A record in the format of another release, or an invalid one, is an error of its own key, and can be
/// deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_record_is_corrupt_and_can_be_deleted() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let sound = repository.create(key("a"), &context()).await.unwrap();
    let broken = repository.create(key("b"), &context()).await.unwrap();
    let port = servers.servers[0].port;
    let hex = data_encoding::HEXLOWER.encode(broken.hash.as_bytes());
    let name = cli(port, &["KEYS", &format!("*key:{hex}")]);
    let stored = cli(port, &["GET", &name]);
    for fault in [stored.replace("\"format\":1", "\"format\":2"), "7 {}".to_owned(), "nonsense".to_owned()] {
        assert_ne!(fault, stored);
        assert_eq!(cli(port, &["SET", &name, &fault]), "OK");
        let found = repository.get_many_by_hash(&[broken.hash, sound.hash]).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|it| it.map_err(|error| error.kind())).collect();
        assert_eq!(found, [Err(ErrorKind::Corrupt), Ok(Some(sound.clone()))], "{fault}");
    }
    repository.delete(broken.id, &context()).await.unwrap();
    assert_eq!(repository.get(broken.id).await.unwrap(), None);
    assert_eq!(repository.get_by_hash(&broken.hash).await.unwrap(), None);
}

/// Unreadable records and events stop neither the feed nor listings, and have a position. An event of an
/// unknown kind, which a newer release may write, is treated as a change.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_records_and_events_stop_neither_feed_nor_listings() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let sound = repository.create(key("a"), &context()).await.unwrap();
    let broken = repository.create(key("b"), &context()).await.unwrap();
    let before = repository.changes(None, 10).await.unwrap().position;
    let port = servers.servers[0].port;
    let shard = format!("keyvouch:{{{:02}}}:", broken.hash.as_bytes()[0] % 64);
    let hex = broken.hash.to_hex();
    assert_eq!(cli(port, &["SET", &format!("{shard}key:{hex}"), "nonsense"]), "OK");
    let events = format!("{shard}events");
    let next = |more: i64| format!("{}-1", broken.revision.get() + more);
    let unknown = format!(
        r#"{{"nonce":7,"key_id":"{}","hash":"{hex}","owner_id":"owner","kind":"frobbed","changed_fields":["new"],"actor":"","request_id":"","at":0}}"#,
        broken.id
    );
    cli(port, &["XADD", &events, &next(1), "event", &unknown]);
    cli(port, &["XADD", &events, &next(2), "event", "nonsense"]);
    cli(port, &["HINCRBY", &format!("{shard}head"), "events", "2"]);

    let changes = repository.changes(Some(&before), 10).await.unwrap();
    assert_eq!(changes.events.iter().map(|event| event.kind).collect::<Vec<_>>(), [ChangeKind::Unknown]);
    let unreadable: Vec<_> = changes.unreadable.iter().map(|event| event.revision.get()).collect();
    assert_eq!(unreadable, [broken.revision.get() + 2]);
    let behind = repository.changes(Some(&changes.position), 10).await.unwrap();
    assert_eq!((behind.events.len(), behind.unreadable.len()), (0, 0));
    assert_eq!(repository.recent_changes(10).await.unwrap().unreadable.len(), 1);
    let all = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 10 };
    let listed = repository.list_events(&all).await.unwrap();
    assert_eq!(listed.iter().filter(|event| matches!(event, ListedEvent::Unreadable(_))).count(), 1);
    assert_eq!(listed.len(), 4);

    let request = PageRequest { owner_id: None, after: None, limit: 10 };
    let listed = repository.list_page(&request).await.unwrap();
    assert!(listed.contains(&ListedKey::Read(sound)) && listed.len() == 2);
    assert!(listed.contains(&ListedKey::Unreadable(PagePosition::of(&broken))));

    // The unreadable record can be revoked, and is a normal record afterwards.
    let revoked = repository.revoke(broken.id, RevokeReason::default(), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&broken.hash).await.unwrap(), Some(revoked.clone()));
    assert!(revoked.revocation.is_some() && revoked.owner_id == broken.owner_id);
    repository.delete(broken.id, &context()).await.unwrap();
    let revived = repository.create(broken, &context()).await.unwrap_err();
    assert_eq!(revived.kind(), ErrorKind::RevokedHash);
}

/// Revoking a record that breaks one rule keeps the rest of it. Of concurrent revocations, the first is kept.
/// The others find a revoked record, and change nothing.
#[tokio::test(flavor = "multi_thread")]
async fn revoking_an_invalid_record_keeps_its_valid_values() {
    let servers = Redis::Alone.start(&[]);
    let repository = open(&servers, quick()).await;
    let expires_at = Some(Timestamp::MAX);
    let created = repository.create(ApiKey { expires_at, ..key("a") }, &context()).await.unwrap();
    let port = servers.servers[0].port;
    let name = format!("keyvouch:{{{:02}}}:key:{}", created.hash.as_bytes()[0] % 64, created.hash.to_hex());
    let stored = cli(port, &["GET", &name]);
    let broken = stored.replace(r#""prefix":""#, r#""prefix":"no prefix"#);
    assert_ne!(stored, broken);
    assert_eq!(cli(port, &["SET", &name, &broken]), "OK");
    assert_eq!(repository.get(created.id).await.unwrap_err().kind(), ErrorKind::Corrupt);

    let revoking = (0..20).map(|_| {
        let repository = repository.clone();
        async move { repository.revoke(created.id, RevokeReason::default(), &context()).await.unwrap() }
    });
    let revoked = futures_util::future::join_all(revoking).await;
    let stored = repository.get(created.id).await.unwrap().unwrap();
    for revoked in revoked {
        assert_eq!(revoked, stored);
    }
    assert!(stored.revocation.is_some());
    assert_eq!((&stored.name, stored.expires_at), (&created.name, expires_at));
    let events = repository.changes(None, 100).await.unwrap().events;
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [ChangeKind::Created, ChangeKind::Revoked]);
}
