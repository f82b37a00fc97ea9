//! Tests of listing keys.

use std::collections::HashSet;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::Subject;
use super::fixture::{NOW, all, at, context, create, id, key, list, owner, readable, reason};
use crate::domain::{ApiKey, KeyFilter, KeyId, KeyPrefix, KeyState, OwnerId, StateSet};
use crate::repository::{ListedKey, PageRequest};

fn request(owner_id: Option<OwnerId>, limit: usize) -> PageRequest {
    PageRequest { owner_id, after: None, limit }
}

/// Returns the ids of all pages, read with `limit` keys per page.
async fn read_pages(subject: &Subject, mut request: PageRequest) -> Vec<KeyId> {
    let mut ids = Vec::new();
    loop {
        let page = subject.list_page(&request).await.unwrap();
        assert!(page.len() <= request.limit);
        ids.extend(page.iter().map(|listed| listed.position().id));
        match page.last() {
            Some(last) if page.len() == request.limit => request.after = Some(last.position()),
            _ => return ids,
        }
    }
}

/// Of keys that were created at the same time, the one with the larger id comes first.
pub async fn the_newest_come_first_and_ties_are_stable(subject: Subject) {
    for number in [3, 1, 5, 2, 4] {
        let created_at = at(NOW + i64::from(number / 3));
        create(&subject, ApiKey { created_at, ..key(number) }).await;
    }
    let listed: Vec<_> = list(&subject, &owner("owner")).await.iter().map(|key| key.id).collect();
    assert_eq!(listed, [id(5), id(4), id(3), id(2), id(1)]);
}

/// The list of an unknown owner is empty. It is not an error.
pub async fn an_unknown_owner_has_no_keys(subject: Subject) {
    create(&subject, key(1)).await;
    assert_eq!(list(&subject, &owner("nobody")).await, []);
    assert_eq!(subject.list_page(&request(Some(owner("nobody")), 10)).await.unwrap(), []);
}

/// Owners that differ in case, trailing spaces or accents are different.
pub async fn owners_are_compared_by_their_bytes(subject: Subject) {
    let owners = ["alice", "Alice", "ALICE", "alice ", "àlice", "a\u{300}lice", "alic", "%", "_____"];
    for (number, name) in (0..).zip(owners) {
        create(&subject, ApiKey { owner_id: owner(name), ..key(number) }).await;
    }
    for (number, name) in (0..).zip(owners) {
        let listed: Vec<_> = list(&subject, &owner(name)).await.iter().map(|key| key.id).collect();
        assert_eq!(listed, [id(number)], "{name:?}");
    }
}

/// Listings can be filtered by state at a time, and by prefix.
pub async fn filters_select_keys(subject: Subject) {
    let prefix = |prefix| KeyPrefix::parse("prefix", prefix).unwrap();
    let now = at(NOW + 50);
    create(&subject, key(1)).await;
    create(&subject, ApiKey { expires_at: Some(now), ..key(2) }).await;
    create(&subject, ApiKey { expires_at: Some(at(NOW + 51)), ..key(3) }).await;
    create(&subject, ApiKey { expires_at: Some(now), ..key(4) }).await;
    subject.revoke(id(4), reason(""), &context()).await.unwrap();
    create(&subject, ApiKey { prefix: prefix("other_"), ..key(5) }).await;

    let cases: [(&[KeyState], Option<&str>, &[u32]); 7] = [
        (&[], None, &[5, 4, 3, 2, 1]),
        (&[KeyState::Active], None, &[5, 3, 1]),
        (&[KeyState::Expired], None, &[2]),
        (&[KeyState::Revoked], None, &[4]),
        (&[KeyState::Expired, KeyState::Revoked], None, &[4, 2]),
        (&[KeyState::Active], Some("kv_"), &[3, 1]),
        (&[], Some("none_"), &[]),
    ];
    for (states, wanted, expected) in cases {
        let filter = KeyFilter { states: StateSet::any_of(states), prefix: wanted.map(prefix), as_of: now };
        let expected: Vec<_> = expected.iter().map(|&number| id(number)).collect();
        let streamed: Vec<ListedKey> =
            subject.list_by_owner(&owner("owner"), &filter).try_collect().await.unwrap();
        let streamed: Vec<_> = readable(streamed).iter().map(|key| key.id).collect();
        assert_eq!(streamed, expected, "{filter:?}");
    }
}

/// The pages together equal the list, whatever their size.
pub async fn pages_have_no_gap_and_no_overlap(subject: Subject) {
    for number in 0..10 {
        let created_at = at(NOW + i64::from(number / 4));
        create(&subject, ApiKey { created_at, ..key(number) }).await;
        create(&subject, ApiKey { owner_id: owner("other"), created_at, ..key(100 + number) }).await;
    }
    let expected: Vec<_> = (0..10).rev().map(id).collect();
    for limit in [1, 2, 3, 5, 10, 11] {
        assert_eq!(read_pages(&subject, request(Some(owner("owner")), limit)).await, expected, "{limit}");
    }
}

/// A key that exists throughout is listed once, whatever is created and deleted between two pages.
pub async fn pages_neither_skip_nor_repeat_during_changes(subject: Subject) {
    for number in 0..20 {
        create(&subject, key(number * 10)).await;
    }
    let mut listed = Vec::new();
    let mut page_request = request(Some(owner("owner")), 3);
    let mut round = 0;
    loop {
        let page = subject.list_page(&page_request).await.unwrap();
        let Some(last) = page.last() else { break };
        listed.extend(page.iter().map(|listed| listed.position().id));
        page_request.after = Some(last.position());
        // Creates a newer key and one among those that are still to come, and deletes the last key of this
        // page.
        create(&subject, key(1_000 + round)).await;
        create(&subject, key(1 + round)).await;
        subject.delete(last.position().id, &context()).await.unwrap();
        round += 1;
    }
    let distinct: HashSet<_> = listed.iter().copied().collect();
    assert_eq!(distinct.len(), listed.len(), "a key was listed twice");
    assert!((0..20).all(|number| distinct.contains(&id(number * 10))), "a key was skipped");
}

/// Pages without an owner have the keys of all owners.
pub async fn pages_of_all_owners_contain_every_key_once(subject: Subject) {
    for number in 0..10 {
        create(&subject, ApiKey { owner_id: owner(&format!("owner {number}")), ..key(number) }).await;
    }
    let expected: Vec<_> = (0..10).rev().map(id).collect();
    assert_eq!(read_pages(&subject, request(None, 3)).await, expected);
    assert_eq!(read_pages(&subject, request(None, 100)).await, expected);
}

/// A long list is complete and in order. A reader that stops early gets no more keys.
pub async fn ten_thousand_keys_are_streamed(subject: Subject) {
    const COUNT: u32 = 10_000;
    let writers = (0..8).map(|writer| {
        let subject = subject.clone();
        tokio::spawn(async move {
            for number in (writer..COUNT).step_by(8) {
                create(&subject, key(number)).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let listed: Vec<_> = list(&subject, &owner("owner")).await.iter().map(|key| key.id).collect();
    assert!(listed.iter().copied().eq((0..COUNT).rev().map(id)));
    let first: Vec<_> = subject.list_by_owner(&owner("owner"), &all()).take(3).collect().await;
    assert_eq!(first.len(), 3);
}
