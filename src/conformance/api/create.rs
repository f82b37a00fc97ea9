//! Tests of `CreateKey` and `GetKey`.

use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Api, error_reason, invalid_field, new_key, seconds};
use crate::grpc::pb;
use crate::grpc::pb::create_key_request::Expiry;

/// A new key has the requested fields, and defaults for the others.
pub async fn a_created_key_has_the_requested_fields(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    assert!(secret.starts_with(&key.prefix));
    assert_eq!((key.name.as_str(), key.owner_id.as_str()), ("name", "owner"));
    assert_eq!(key.state(), pb::KeyState::Active);
    assert!(key.revision > 0);
    assert!(key.create_time.is_some() && key.create_time == key.update_time);
    assert_eq!((key.expire_time, key.revoke_time, key.last_used_time), (None, None, None));
    assert_eq!((key.rotated_from.as_str(), key.replaced_by.as_str()), ("", ""));
    assert_eq!(api.get(&key.id).await, key);
}

/// `GetKey` returns the values that were passed to `CreateKey`.
pub async fn every_field_round_trips(api: Api) {
    let expire_time = prost_types::Timestamp { seconds: 4_102_444_800, nanos: 123_456_000 };
    let request = pb::CreateKeyRequest {
        name: "ü".repeat(128),
        owner_id: "owner of 🔑".into(),
        description: "d".repeat(1024),
        scopes: (0..64).map(|i| format!("scope:{i}")).collect(),
        metadata: (0..32).map(|i| (format!("k{i}"), "v🔑".repeat(256))).collect(),
        prefix: None,
        expiry: Some(Expiry::ExpireTime(expire_time)),
        request_id: String::new(),
    };
    let (created, _) = api.create(request.clone()).await;
    let key = api.get(&created.id).await;
    assert_eq!(key, created);
    assert_eq!(
        (key.name, key.owner_id, key.description),
        (request.name, request.owner_id, request.description)
    );
    let mut scopes = request.scopes;
    scopes.sort();
    assert_eq!((key.scopes, key.metadata, key.expire_time), (scopes, request.metadata, Some(expire_time)));
}

/// Only the response of the creation has the secret or its body.
pub async fn the_secret_is_returned_once(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let (_, other) = api.create(new_key()).await;
    assert_ne!(secret, other);
    let body = &secret[key.prefix.len()..];
    let listed = api.key_store().list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
    let shown = format!("{:?} {:?} {:?}", api.get(&key.id).await, listed, api.validate(&secret).await);
    assert!(!shown.contains(body) && !shown.contains(&body[..8]));
}

/// Each error names the invalid field.
pub async fn invalid_fields_of_create_are_named(api: Api) {
    let past = prost_types::Timestamp { seconds: 1, nanos: 0 };
    let invalid = prost_types::Timestamp { seconds: 1, nanos: -1 };
    let cases: [(&str, pb::CreateKeyRequest); 15] = [
        ("name", pb::CreateKeyRequest { name: String::new(), ..new_key() }),
        ("name", pb::CreateKeyRequest { name: "n".repeat(129), ..new_key() }),
        ("name", pb::CreateKeyRequest { name: "a\nb".into(), ..new_key() }),
        ("owner_id", pb::CreateKeyRequest { owner_id: " ".into(), ..new_key() }),
        ("description", pb::CreateKeyRequest { description: "d".repeat(1025), ..new_key() }),
        ("scopes[1]", pb::CreateKeyRequest { scopes: vec!["a".into(), "b c".into()], ..new_key() }),
        ("scopes", pb::CreateKeyRequest { scopes: (0..65).map(|i| i.to_string()).collect(), ..new_key() }),
        ("metadata", pb::CreateKeyRequest { metadata: [("k".into(), "v".repeat(513))].into(), ..new_key() }),
        ("prefix", pb::CreateKeyRequest { prefix: Some("other_".into()), ..new_key() }),
        ("expire_time", pb::CreateKeyRequest { expiry: Some(Expiry::ExpireTime(past)), ..new_key() }),
        ("expire_time", pb::CreateKeyRequest { expiry: Some(Expiry::ExpireTime(invalid)), ..new_key() }),
        ("ttl", pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(seconds(0))), ..new_key() }),
        ("ttl", pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(seconds(-1))), ..new_key() }),
        ("ttl", pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(seconds(i64::MAX))), ..new_key() }),
        ("ttl", pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(seconds(300_000_000_000))), ..new_key() }),
    ];
    for (field, request) in cases {
        assert_eq!(invalid_field(api.key_store().create_key(request.clone()).await), field, "{request:?}");
    }
    let listed = api.key_store().list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.keys, [], "nothing was stored");
}

/// Texts that look alike must not be different keys or owners. White space at an end and invisible characters are
/// rejected by create and update. Emoji and all scripts are accepted.
pub async fn new_texts_have_only_visible_characters(api: Api) {
    let texts =
        [" a", "a ", "\u{a0}a", "\u{200b}", "\u{3164}", "a\u{200e}b", "a\u{61c}b", "a\u{feff}b", "a\u{ad}b"];
    for text in texts.into_iter().chain(["a\u{2060}b", "a\u{e0041}b", "a\u{200d}b", "\u{2800}"]) {
        let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        for (field, request) in [
            ("name", pb::CreateKeyRequest { name: text.into(), ..new_key() }),
            ("owner_id", pb::CreateKeyRequest { owner_id: text.into(), ..new_key() }),
            ("description", pb::CreateKeyRequest { description: text.into(), ..new_key() }),
            ("metadata", pb::CreateKeyRequest { metadata: pair(text, "v"), ..new_key() }),
            ("metadata", pb::CreateKeyRequest { metadata: pair("k", text), ..new_key() }),
        ] {
            assert_eq!(invalid_field(api.key_store().create_key(request).await), field, "{text:?}");
        }
    }
    let emoji = "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467} \u{2764}\u{fe0f}";
    let persian = "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}";
    let request = pb::CreateKeyRequest { name: emoji.into(), owner_id: persian.into(), ..new_key() };
    let (key, _) = api.create(request).await;
    assert_eq!((key.name.as_str(), key.owner_id.as_str()), (emoji, persian));
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { id: key.id.clone(), name: "a\u{200b}".into(), ..pb::Key::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["name".into()] }),
        expected_revision: None,
    };
    assert_eq!(invalid_field(api.key_store().update_key(update).await), "key.name");
    assert_eq!(api.get(&key.id).await, key);
}

/// No caller can grant an unknown reserved scope, not even with an admin token.
pub async fn an_unknown_reserved_scope_is_not_grantable(api: Api) {
    let scopes = |scope: &str| vec!["read".to_owned(), scope.to_owned()];
    let request = pb::CreateKeyRequest { scopes: scopes("keyvouch.everything"), ..new_key() };
    let expected = (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned());
    assert_eq!(error_reason(api.key_store().create_key(request).await), expected);

    let (key, _) = api.create(pb::CreateKeyRequest { scopes: scopes("keyvouch.read"), ..new_key() }).await;
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { scopes: scopes("keyvouch.everything"), ..key }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into()] }),
        expected_revision: None,
    };
    assert_eq!(error_reason(api.key_store().update_key(update).await), expected);
}

/// A retry does not create a second key. It returns the id of the first one, even if that was deleted.
/// Without an id, each call creates a key.
pub async fn a_retry_with_a_request_id_creates_no_second_key(api: Api) {
    let request = pb::CreateKeyRequest { request_id: "0c7e-retry".into(), ..new_key() };
    let (first, _) = api.create(request.clone()).await;
    for _ in 0..2 {
        let status = api.key_store().create_key(request.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), &info.metadata["key_id"]), ("REQUEST_ALREADY_APPLIED", &first.id));
    }
    let other = pb::CreateKeyRequest { request_id: "another".into(), ..new_key() };
    assert_ne!(api.create(other).await.0.id, first.id);
    assert_ne!(api.create(new_key()).await.0.id, api.create(new_key()).await.0.id);
    api.key_store().delete_key(pb::DeleteKeyRequest { id: first.id, expected_revision: None }).await.unwrap();
    let again = error_reason(api.key_store().create_key(request).await);
    assert_eq!(again, (Code::AlreadyExists, "REQUEST_ALREADY_APPLIED".to_owned()));
}

/// A request id has visible ASCII characters only, and a maximum length.
pub async fn an_invalid_request_id_is_rejected(api: Api) {
    for invalid in ["a b", "ü", "\n", &"x".repeat(129)] {
        let request = pb::CreateKeyRequest { request_id: invalid.to_owned(), ..new_key() };
        assert_eq!(invalid_field(api.key_store().create_key(request).await), "request_id", "{invalid:?}");
    }
    api.create(pb::CreateKeyRequest { request_id: "x".repeat(128), ..new_key() }).await;
}
