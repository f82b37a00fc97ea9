//! Tests of looking up keys.

use std::collections::BTreeMap;

use super::Subject;
use super::fixture::{NOW, at, create, hash, id, key, list, reason};
use crate::domain::{
    ApiKey, Description, KeyName, KeyPrefix, Metadata, OwnerId, Revocation, ScopeSet, Timestamp,
};

/// A lookup of an unknown key returns `None`, not an error.
pub async fn a_missing_key_is_none(subject: Subject) {
    assert_eq!(subject.get(id(1)).await.unwrap(), None);
    assert_eq!(subject.get_by_hash(&hash(1)).await.unwrap(), None);
}

/// Each hash has its own result, in the requested order, whether there are few or many, and whether they are
/// stored, unknown or repeated.
pub async fn many_hashes_are_looked_up_independently(subject: Subject) {
    let mut stored = Vec::new();
    for number in 0..70 {
        stored.push(create(&subject, key(number)).await);
    }
    for count in [0, 1, 2, 5, 17, 64, 65, 70] {
        let mut hashes: Vec<_> = stored[..count].iter().map(|key| key.hash).collect();
        let mut expected: Vec<_> = stored[..count].iter().cloned().map(Some).collect();
        for (at, hash, key) in [(count / 2, hash(100), None), (0, hash(1), Some(stored[1].clone()))] {
            hashes.insert(at, hash);
            expected.insert(at, key);
        }
        let found = subject.get_many_by_hash(&hashes).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|key| key.unwrap()).collect();
        assert_eq!(found, expected);
    }
    assert!(subject.get_many_by_hash(&[]).await.unwrap().is_empty());
}

/// Lookups return records whatever their state, because the domain judges them.
pub async fn revoked_and_expired_keys_are_returned(subject: Subject) {
    let revocation = Some(Revocation { at: at(NOW), reason: reason("leaked") });
    let revoked = create(&subject, ApiKey { revocation, ..key(1) }).await;
    let expired = create(&subject, ApiKey { expires_at: Some(at(1)), ..key(2) }).await;
    for key in [revoked, expired] {
        assert_eq!(subject.get(key.id).await.unwrap(), Some(key.clone()));
        assert_eq!(subject.get_by_hash(&key.hash).await.unwrap(), Some(key));
    }
}

/// All values come back as they were stored: full or empty, long or short, before 1970 or in the year 9999.
pub async fn every_field_survives_the_round_trip(subject: Subject) {
    let pairs = |count: usize| -> BTreeMap<String, String> {
        (0..count).map(|i| (format!("{i:0>2}{}", "ключ".repeat(15)), "🔑\"'\\ %_".repeat(64))).collect()
    };
    let full = ApiKey {
        prefix: KeyPrefix::parse("prefix", "a_long_prefix_1_").unwrap(),
        name: KeyName::parse("name", "ü".repeat(128)).unwrap(),
        description: Description::parse("description", "🔑".repeat(1024)).unwrap(),
        owner_id: OwnerId::parse("owner_id", " \"owner\" 'of' \\ all % _ ; -- 🔑 ").unwrap(),
        scopes: ScopeSet::parse("scopes", (0..64).map(|i| format!("scope:{i}!'[]~#$%&").repeat(4))).unwrap(),
        metadata: Metadata::parse(pairs(32)).unwrap(),
        created_at: at(-1),
        updated_at: Timestamp::MIN,
        expires_at: Some(Timestamp::MAX),
        revocation: Some(Revocation { at: at(NOW + 1), reason: reason(&"r".repeat(256)) }),
        rotated_from: Some(id(7)),
        replaced_by: Some(id(8)),
        ..key(1)
    };
    let empty = ApiKey {
        prefix: KeyPrefix::parse("prefix", "").unwrap(),
        metadata: Metadata::parse(BTreeMap::from([("k".into(), String::new())])).unwrap(),
        revocation: Some(Revocation { at: at(0), reason: reason("") }),
        ..key(2)
    };
    for key in [full, empty, key(3)] {
        let created = create(&subject, key.clone()).await;
        let expected = ApiKey { revision: created.revision, nonce: created.nonce, ..key };
        assert_eq!(created, expected);
        assert_eq!(subject.get(expected.id).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(subject.get_by_hash(&expected.hash).await.unwrap().as_ref(), Some(&expected));
        assert!(list(&subject, &expected.owner_id).await.contains(&expected));
    }
}

/// Each of many keys is found by its own id and hash.
pub async fn ids_and_hashes_find_their_own_key(subject: Subject) {
    for number in 0..20 {
        create(&subject, key(number)).await;
    }
    for number in 0..20 {
        assert_eq!(subject.get(id(number)).await.unwrap().unwrap().hash, hash(number));
        assert_eq!(subject.get_by_hash(&hash(number)).await.unwrap().unwrap().id, id(number));
    }
}

/// A backend that is available answers a ping.
pub async fn pings_succeed(subject: Subject) {
    subject.ping().await.unwrap();
}

/// Concurrent and repeated calls all return the same identity.
pub async fn an_installation_keeps_its_identity(subject: Subject) {
    let asked =
        super::fixture::at_once(&subject, 4, |subject, _| async move { subject.identity().await.unwrap() });
    let identities = asked.await;
    assert!(identities[0].is_some());
    assert!(identities.iter().all(|identity| *identity == identities[0]));
}
