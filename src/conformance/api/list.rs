//! Tests of `ListKeys` and `StreamKeys`.

use futures_util::stream;

use super::{Api, invalid_field, new_key};
use crate::domain::KeyHash;
use crate::grpc::pb;

fn request() -> pb::ListKeysRequest {
    pb::ListKeysRequest::default()
}

fn owned(owner_id: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { owner_id: owner_id.into(), ..new_key() }
}

async fn page(api: &Api, request: pb::ListKeysRequest) -> pb::ListKeysResponse {
    api.key_store().list_keys(request).await.unwrap().into_inner()
}

/// Returns the ids of all pages, and the number of pages.
async fn read_pages(api: &Api, mut request: pb::ListKeysRequest) -> (Vec<String>, usize) {
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let page = page(api, request.clone()).await;
        ids.extend(page.keys.into_iter().map(|key| key.id));
        pages += 1;
        if page.next_page_token.is_empty() {
            return (ids, pages);
        }
        request.page_token = page.next_page_token;
    }
}

/// The pages have the keys of one owner, or of all owners. The last page has no token.
pub async fn pages_list_every_key_once_newest_first(api: Api) {
    let mut expected = Vec::new();
    for number in 0..10 {
        let owner = if number % 2 == 0 { "even" } else { "odd" };
        let (key, _) = api.create(owned(owner)).await;
        expected.insert(0, (key.id, owner));
    }
    let of = |owner: &str| -> Vec<String> {
        let keys = expected.iter().filter(|(_, its)| owner.is_empty() || *its == owner);
        keys.map(|(id, _)| id.clone()).collect()
    };
    for (owner, page_size, pages) in
        [("", 3, 4), ("", 10, 1), ("even", 2, 3), ("odd", 5, 1), ("nobody", 5, 1)]
    {
        let request = pb::ListKeysRequest { owner_id: owner.into(), page_size, ..request() };
        assert_eq!(read_pages(&api, request).await, (of(owner), pages), "{owner} {page_size}");
    }
}

/// A key that exists throughout is listed once, whatever is created and deleted between two pages.
pub async fn pages_stay_complete_during_changes(api: Api) {
    let mut kept = Vec::new();
    let mut deleted = Vec::new();
    for number in 0..20 {
        let id = api.create(new_key()).await.0.id;
        if number % 2 == 0 { kept.push(id) } else { deleted.push(id) }
    }
    let mut listed = Vec::new();
    let mut next = pb::ListKeysRequest { page_size: 3, ..request() };
    loop {
        let page = page(&api, next.clone()).await;
        listed.extend(page.keys.into_iter().map(|key| key.id));
        if page.next_page_token.is_empty() {
            break;
        }
        next.page_token = page.next_page_token;
        api.create(new_key()).await;
        if let Some(id) = deleted.pop() {
            api.key_store().delete_key(pb::DeleteKeyRequest { id, expected_revision: None }).await.unwrap();
        }
    }
    assert!(kept.iter().all(|id| listed.iter().filter(|it| *it == id).count() == 1), "{listed:?}");
    let count = listed.len();
    listed.sort();
    listed.dedup();
    assert_eq!(listed.len(), count, "a key was listed twice");
}

/// A token is rejected with another filter, but not with another page size.
pub async fn a_page_token_is_bound_to_its_filter(api: Api) {
    for _ in 0..3 {
        api.create(owned("a")).await;
    }
    let first = pb::ListKeysRequest { owner_id: "a".into(), page_size: 1, ..request() };
    let page_token = page(&api, first.clone()).await.next_page_token;
    let second = pb::ListKeysRequest { page_token: page_token.clone(), page_size: 2, ..first.clone() };
    assert_eq!(page(&api, second.clone()).await.keys.len(), 2);
    let other_filters = [
        pb::ListKeysRequest { owner_id: "b".into(), ..second.clone() },
        pb::ListKeysRequest { owner_id: String::new(), ..second.clone() },
        pb::ListKeysRequest { states: vec![pb::KeyState::Active.into()], ..second.clone() },
        pb::ListKeysRequest { prefix: Some("kv_".into()), ..second.clone() },
        pb::ListKeysRequest { page_token: "nonsense".into(), ..second.clone() },
        pb::ListKeysRequest { page_token: format!("{page_token}A"), ..second },
    ];
    for request in other_filters {
        assert_eq!(
            invalid_field(api.key_store().list_keys(request.clone()).await),
            "page_token",
            "{request:?}"
        );
    }
}

/// A negative size is rejected, 0 means 100, and a size above the maximum is coerced to the maximum.
pub async fn page_sizes_are_bounded(api: Api) {
    for _ in 0..101 {
        api.create(new_key()).await;
    }
    let negative = pb::ListKeysRequest { page_size: -1, ..request() };
    assert_eq!(invalid_field(api.key_store().list_keys(negative).await), "page_size");
    assert_eq!(page(&api, request()).await.keys.len(), 100);
    let large = pb::ListKeysRequest { page_size: i32::MAX, ..request() };
    assert_eq!(page(&api, large).await.keys.len(), 101);
}

/// A page never exceeds the maximum message size of clients, and no key is missing because of that.
pub async fn pages_are_limited_in_bytes(api: Api) {
    let metadata: std::collections::BTreeMap<_, _> =
        (0..32).map(|i| (format!("{i:0>64}"), "🔑".repeat(512))).collect();
    let mut expected = Vec::new();
    for _ in 0..60 {
        let large = pb::CreateKeyRequest { metadata: metadata.clone(), ..new_key() };
        expected.insert(0, api.create(large).await.0.id);
    }
    let (ids, pages) = read_pages(&api, pb::ListKeysRequest { page_size: 1_000, ..request() }).await;
    assert_eq!(ids, expected);
    assert!(pages > 1);
}

/// Lists and streams filter by state and prefix.
pub async fn listings_filter_by_state_and_prefix(api: Api) {
    let (active, _) = api.create(new_key()).await;
    let (revoked, _) = api.create(new_key()).await;
    api.revoke(&revoked.id, "").await;
    let cases: [(&[pb::KeyState], Option<&str>, &[&str]); 5] = [
        (&[], None, &[&revoked.id, &active.id]),
        (&[pb::KeyState::Active], None, &[&active.id]),
        (&[pb::KeyState::Revoked, pb::KeyState::Expired], None, &[&revoked.id]),
        (&[], Some(&active.prefix), &[&revoked.id, &active.id]),
        (&[], Some("other_"), &[]),
    ];
    for (states, prefix, expected) in cases {
        let states: Vec<i32> = states.iter().map(|&state| state.into()).collect();
        let prefix = prefix.map(str::to_owned);
        let list = pb::ListKeysRequest { states: states.clone(), prefix: prefix.clone(), ..request() };
        assert_eq!(read_pages(&api, list).await.0, expected);
        let stream = pb::StreamKeysRequest { owner_id: "owner".into(), states, prefix };
        assert_eq!(read_stream(&api, stream).await, expected);
    }
    let unknown = pb::ListKeysRequest { states: vec![0], ..request() };
    assert_eq!(invalid_field(api.key_store().list_keys(unknown).await), "states[0]");
}

/// Owners are compared byte by byte, so that differences in case matter.
pub async fn the_owner_filter_is_case_sensitive(api: Api) {
    let (lower, _) = api.create(owned("alice")).await;
    let (upper, _) = api.create(owned("Alice")).await;
    for (owner, id) in [("alice", lower.id), ("Alice", upper.id)] {
        let request = pb::ListKeysRequest { owner_id: owner.into(), ..request() };
        assert_eq!(read_pages(&api, request).await.0, [id]);
    }
}

async fn read_stream(api: &Api, request: pb::StreamKeysRequest) -> Vec<String> {
    let mut keys = api.key_store().stream_keys(request).await.unwrap().into_inner();
    let mut ids = Vec::new();
    while let Some(response) = keys.message().await.unwrap() {
        ids.push(response.key.unwrap().id);
    }
    ids
}

/// The stream has all keys of one owner, and of all owners.
pub async fn ten_thousand_keys_are_streamed(api: Api) {
    let request = |number: u32| pb::ImportKeysRequest {
        key: Some(pb::Key {
            name: "name".into(),
            owner_id: "owner".into(),
            prefix: "kv_".into(),
            ..pb::Key::default()
        }),
        hash: KeyHash::of(&number.to_string()).as_bytes().to_vec(),
        allow_revoked_hash: false,
    };
    let requests = stream::iter((0..10_000).map(request));
    let mut answers = api.key_store().import_keys(requests).await.unwrap().into_inner();
    let mut expected = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.result {
            Some(pb::import_keys_response::Result::Key(key)) => expected.push(key.id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(expected.len(), 10_000);
    expected.sort();
    for owner_id in ["owner", ""] {
        let request = pb::StreamKeysRequest { owner_id: owner_id.into(), ..pb::StreamKeysRequest::default() };
        let mut ids = read_stream(&api, request).await;
        ids.sort();
        assert_eq!(ids, expected, "{owner_id:?}");
    }
}
