//! Tests of the audit trail and the change feed.

use super::Subject;
use super::fixture::{NOW, at, at_once, audit, context, create, feed, hash, id, key, kind, owner, readable};
use crate::domain::{ApiKey, ChangeId, ChangeKind, ChangedField, KeyEvent, RevokeReason, Rotation};
use crate::repository::{ErrorKind, EventPageRequest, EventPosition, FeedPosition};

fn everything() -> EventPageRequest {
    EventPageRequest { key_id: None, owner_id: None, after: None, limit: 1_000 }
}

async fn page(subject: &Subject, request: &EventPageRequest) -> Vec<KeyEvent> {
    readable(audit(subject).list_events(request).await.unwrap())
}

async fn kinds(subject: &Subject, request: &EventPageRequest) -> Vec<ChangeKind> {
    page(subject, request).await.into_iter().map(|event| event.kind).collect()
}

/// Events have the actor, the change, the time, the request id and the key, and are listed newest first.
pub async fn every_change_is_in_the_audit_trail(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let revoked = subject.revoke(id(1), RevokeReason::default(), &context()).await.unwrap();
    subject.revoke(id(1), RevokeReason::default(), &context()).await.unwrap();
    let deleted = subject.delete(id(1), &context()).await.unwrap();
    let events = page(&subject, &everything()).await;
    let reported: Vec<_> = events.iter().map(|event| (event.change(), event.kind)).collect();
    assert_eq!(
        reported,
        [
            (deleted, ChangeKind::Deleted),
            (revoked.last_change(), ChangeKind::Revoked),
            (created.last_change(), ChangeKind::Created),
        ]
    );
    assert_eq!(events[1].changed_fields, [ChangedField::Revocation]);
    for event in events {
        assert_eq!((event.key_id, event.hash, event.owner_id), (id(1), created.hash, owner("owner")));
        assert_eq!(
            (event.actor, event.request_id, event.at),
            (context().actor, context().request_id, context().now)
        );
    }
}

/// A record and the event of its last change have the same revision and nonce. Each change has a nonce of its
/// own.
pub async fn records_contain_the_identity_of_their_last_change(subject: Subject) {
    let created = create(&subject, key(1)).await;
    let next = ApiKey { updated_at: at(NOW + 1), ..created.clone() };
    let updated = subject.update(next, created.revision, &context()).await.unwrap();
    let number = (2..10_000).find(|&number| subject.can_rotate(&hash(1), &hash(number))).unwrap();
    let successor = ApiKey { rotated_from: Some(id(1)), ..key(number) };
    let replaced = ApiKey { replaced_by: Some(successor.id), ..updated.clone() };
    let rotated = subject.rotate(Rotation { replaced, successor }, &context()).await.unwrap();
    let revoked = subject.revoke(id(1), RevokeReason::default(), &context()).await.unwrap();
    let many = subject.create_many(vec![key(20_000), key(20_001)], &context()).await.unwrap();
    let deleted = subject.delete(id(20_000), &context()).await.unwrap();

    let mut changes = vec![
        created.last_change(),
        updated.last_change(),
        rotated.replaced.last_change(),
        rotated.successor.last_change(),
        revoked.last_change(),
    ];
    changes.extend(many.into_iter().map(|key| key.unwrap().last_change()));
    changes.push(deleted);
    assert!(changes.iter().all(|change| change.nonce != ChangeId::UNKNOWN_NONCE), "{changes:?}");
    let mut reported: Vec<_> = page(&subject, &everything()).await.iter().map(KeyEvent::change).collect();
    changes.sort();
    reported.sort();
    assert_eq!(reported, changes);
    for number in [1, number, 20_001] {
        let stored = subject.get_by_hash(&hash(number)).await.unwrap().unwrap();
        assert_eq!(subject.get(id(number)).await.unwrap(), Some(stored.clone()));
        assert!(reported.contains(&stored.last_change()), "{number}");
    }
}

/// Events can be filtered by key and by owner, both compared byte by byte.
pub async fn the_audit_trail_can_be_filtered(subject: Subject) {
    for (number, name) in [(1, "owner"), (2, "Owner"), (3, "owner ")] {
        create(&subject, ApiKey { owner_id: owner(name), ..key(number) }).await;
    }
    subject.delete(id(1), &context()).await.unwrap();
    let of_key = EventPageRequest { key_id: Some(id(1)), ..everything() };
    assert_eq!(kinds(&subject, &of_key).await, [ChangeKind::Deleted, ChangeKind::Created]);
    let of_owner = EventPageRequest { owner_id: Some(owner("Owner")), ..everything() };
    assert_eq!(kinds(&subject, &of_owner).await, [ChangeKind::Created]);
    let of_both = EventPageRequest { key_id: Some(id(1)), owner_id: Some(owner("Owner")), ..everything() };
    assert_eq!(kinds(&subject, &of_both).await, []);
}

/// Pages that continue after the last event of the previous one have every event once.
pub async fn pages_of_events_neither_skip_nor_repeat(subject: Subject) {
    for number in 0..7 {
        create(&subject, key(number)).await;
    }
    let mut request = EventPageRequest { limit: 3, ..everything() };
    let mut read = Vec::new();
    loop {
        let page = page(&subject, &request).await;
        let Some(last) = page.last() else { break };
        request.after = Some(EventPosition::of(last));
        read.extend(page.iter().map(|event| event.key_id));
    }
    assert_eq!(read, (0..7).rev().map(id).collect::<Vec<_>>());
}

/// A reader that follows the feed, while many concurrent writers create, delete and re-create keys, misses
/// nothing.
pub async fn a_follower_sees_every_change_once_and_in_order(subject: Subject) {
    let follower = tokio::spawn({
        let subject = Subject::clone(&subject);
        async move { follow(&subject, 8 * 5 * 2).await }
    });
    let changed = at_once(&subject, 8, |subject, writer| async move {
        let mut revisions = Vec::new();
        for _ in 0..5 {
            // Two writers compete for each key. The one that is too late retries.
            let id = id(writer / 2);
            let created = loop {
                match subject.create(key(writer / 2), &context()).await {
                    Ok(created) => break created,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists),
                }
                tokio::task::yield_now().await;
            };
            revisions.push(created.revision);
            revisions.push(subject.delete(id, &context()).await.unwrap().revision);
        }
        revisions
    });
    let mut changed: Vec<_> = changed.await.into_iter().flatten().collect();
    changed.sort();
    let seen = follower.await.unwrap();
    let mut revisions: Vec<_> = seen.iter().map(|event| event.revision).collect();
    for number in 0..4 {
        let of_key = seen.iter().filter(|event| event.hash == hash(number)).map(|event| event.revision);
        assert!(of_key.is_sorted());
    }
    revisions.sort();
    assert_eq!(revisions, changed);
}

/// In a backend that orders all changes by one counter, the changes are delivered in that order.
pub async fn a_follower_sees_all_changes_in_one_order(subject: Subject) {
    let follower = tokio::spawn({
        let subject = Subject::clone(&subject);
        async move { follow(&subject, 8 * 5).await }
    });
    at_once(&subject, 8, |subject, writer| async move {
        for number in 0..5 {
            create(&subject, key(writer * 5 + number)).await;
        }
    })
    .await;
    let seen: Vec<_> = follower.await.unwrap().into_iter().map(|event| event.revision).collect();
    assert!(seen.is_sorted(), "{seen:?}");
}

async fn follow(subject: &Subject, count: usize) -> Vec<KeyEvent> {
    let mut position = FeedPosition::beginning();
    let mut seen = Vec::new();
    while seen.len() < count {
        let changes = feed(subject).changes(Some(&position), 7).await.unwrap();
        assert!(changes.events.len() <= 7);
        position = changes.position;
        seen.extend(changes.events);
        tokio::task::yield_now().await;
    }
    seen
}

/// Pruning keeps the newest event. A reader whose position precedes the pruned events gets an error.
pub async fn pruned_events_are_reported_to_followers(subject: Subject) {
    // Three changes of one key are in the same partition of any backend.
    let created = create(&subject, key(1)).await;
    let first = feed(&subject).changes(None, 1_000).await.unwrap().position;
    let mut updated = created.clone();
    for number in 1..3 {
        let next = ApiKey { updated_at: at(NOW + number), ..updated.clone() };
        updated = subject.update(next, updated.revision, &context()).await.unwrap();
    }
    let all = feed(&subject).changes(None, 1_000).await.unwrap();
    assert_eq!(all.events.len(), 3);
    assert_eq!(feed(&subject).changes(Some(&all.position), 10).await.unwrap().events, []);
    assert_eq!(
        audit(&subject).prune_events(context().now).await.unwrap(),
        0,
        "only older events are deleted"
    );
    assert_eq!(audit(&subject).prune_events(at(NOW + 1_000_000)).await.unwrap(), 2);
    assert_eq!(
        kind(feed(&subject).changes(Some(&FeedPosition::beginning()), 10).await),
        ErrorKind::PositionLost
    );
    assert_eq!(kind(feed(&subject).changes(Some(&first), 10).await), ErrorKind::PositionLost);
    assert_eq!(feed(&subject).changes(Some(&all.position), 10).await.unwrap().events, []);
    create(&subject, key(9)).await;
    assert_eq!(feed(&subject).changes(Some(&all.position), 10).await.unwrap().events.len(), 1);
}

/// The result has the newest events of each partition, and the position after all of them.
pub async fn the_end_of_the_feed_has_the_newest_events(subject: Subject) {
    let part = hash(1).as_bytes()[0] % feed(&subject).partitions();
    let empty = feed(&subject).recent_changes(10).await.unwrap();
    assert_eq!(empty.events, []);
    let created = create(&subject, key(1)).await;
    assert_eq!(feed(&subject).changes(Some(&empty.position), 10).await.unwrap().events.len(), 1);
    let mut updated = created.clone();
    for number in 1..4 {
        let next = ApiKey { updated_at: at(NOW + number), ..updated.clone() };
        updated = subject.update(next, updated.revision, &context()).await.unwrap();
    }
    let recent = feed(&subject).recent_changes(2).await.unwrap();
    let revisions: Vec<_> = recent.events.iter().map(|event| event.revision).collect();
    assert_eq!((revisions.len(), revisions[1]), (2, updated.revision));
    assert!(revisions[0] > created.revision && revisions[0] < revisions[1]);
    assert_eq!(recent.position.last_change(part), updated.last_change());
    assert_eq!(feed(&subject).changes(Some(&recent.position), 10).await.unwrap().events, []);
    let deleted = subject.delete(id(1), &context()).await.unwrap();
    let reported = feed(&subject).changes(Some(&recent.position), 10).await.unwrap();
    assert_eq!(reported.events.iter().map(KeyEvent::change).collect::<Vec<_>>(), [deleted]);
    assert!(reported.unanswered.is_empty());
}
