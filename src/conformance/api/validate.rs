//! Tests of `Validate`.

use std::time::Duration;

use super::{Api, invalid_field, new_key};
use crate::domain::{KeyPrefix, SecretKey, SystemEntropy};
use crate::grpc::pb;
use crate::grpc::pb::create_key_request::Expiry;

/// Returns a well-formed secret that belongs to no key.
fn unknown_secret(prefix: &str) -> String {
    let prefix = KeyPrefix::parse("prefix", prefix).unwrap();
    SecretKey::generate(&prefix, &SystemEntropy).unwrap().expose().to_owned()
}

/// The response describes the key with everything that a service needs.
pub async fn a_valid_key_is_allowed_and_described(api: Api) {
    let metadata = [("plan".to_owned(), "gold".to_owned())].into();
    let request = pb::CreateKeyRequest { scopes: vec!["b".into(), "a".into()], metadata, ..new_key() };
    let (key, secret) = api.create(request).await;
    let response = api.validate(&secret).await;
    assert!(response.valid);
    assert_eq!(response.reason(), pb::Reason::Valid);
    let expected = pb::ValidatedKey {
        id: key.id,
        name: key.name,
        owner_id: key.owner_id,
        scopes: vec!["a".into(), "b".into()],
        metadata: key.metadata,
        expire_time: None,
        revision: key.revision,
    };
    assert_eq!(response.key, Some(expected));
}

/// The precedence is: malformed, not found, revoked, expired, insufficient scope. The response to a denial of
/// an existing key has only the id of the key.
pub async fn denial_reasons_follow_their_precedence(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let validate = |secret: &str| {
        let secret = secret.to_owned();
        let request = pb::ValidateRequest {
            secret,
            required_scopes: vec!["admin".into()],
            ..pb::ValidateRequest::default()
        };
        let mut validator = api.validator();
        async move { validator.validate(request).await.unwrap().into_inner() }
    };
    assert_eq!(validate("nonsense").await.reason(), pb::Reason::Malformed);
    assert_eq!(validate(&unknown_secret(&key.prefix)).await.reason(), pb::Reason::NotFound);
    assert_eq!(validate(&secret).await.reason(), pb::Reason::InsufficientScope);
    api.revoke(&key.id, "").await;
    let revoked = validate(&secret).await;
    assert_eq!(revoked.reason(), pb::Reason::Revoked);
    assert_eq!(revoked.key, Some(pb::ValidatedKey { id: key.id, ..pb::ValidatedKey::default() }));
}

/// Malformed and unknown keys have no description. A wrong character makes a key malformed.
pub async fn denials_of_unknown_keys_describe_no_key(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let wrong_case: String = secret
        .chars()
        .map(|c| if c.is_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() })
        .collect();
    for malformed in ["", " ", &wrong_case, &format!("{secret} "), &format!(" {secret}"), &secret[1..]] {
        let response = api.validate(malformed).await;
        assert_eq!((response.valid, response.reason(), response.key), (false, pb::Reason::Malformed, None));
    }
    let response = api.validate(&unknown_secret(&key.prefix)).await;
    assert_eq!((response.valid, response.reason(), response.key), (false, pb::Reason::NotFound, None));
}

/// All required scopes are needed by default. Scopes have to match exactly, and an empty requirement is
/// always met.
pub async fn required_scopes_match_all_or_any(api: Api) {
    let scopes = vec!["read".into(), "api_keys:admin".into()];
    let (_, secret) = api.create(pb::CreateKeyRequest { scopes, ..new_key() }).await;
    let (_, without) = api.create(new_key()).await;
    let (unspecified, all, any) = (pb::ScopeMatch::Unspecified, pb::ScopeMatch::All, pb::ScopeMatch::Any);
    let cases: [(&str, &[&str], pb::ScopeMatch, bool); 12] = [
        (&secret, &["read"], unspecified, true),
        (&secret, &["read", "write"], unspecified, false),
        (&secret, &["read", "write"], all, false),
        (&secret, &["read", "write"], any, true),
        (&secret, &["write"], any, false),
        (&secret, &["admin"], any, false),
        (&secret, &["Read"], all, false),
        (&secret, &["api_keys:admin", "read", "read"], all, true),
        (&secret, &[], any, true),
        (&without, &[], all, true),
        (&without, &[], any, true),
        (&without, &["read"], any, false),
    ];
    for (secret, required, scope_match, expected) in cases {
        let required_scopes = required.iter().map(ToString::to_string).collect();
        let request = pb::ValidateRequest {
            secret: secret.into(),
            required_scopes,
            scope_match: scope_match.into(),
            ..pb::ValidateRequest::default()
        };
        let response = api.validator().validate(request).await.unwrap().into_inner();
        assert_eq!(response.valid, expected, "{required:?} {scope_match:?}");
    }
}

/// A key expires without any call that changes it, and its state reflects that.
pub async fn a_key_expires_at_its_expire_time(api: Api) {
    let ttl = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
    let (key, secret) =
        api.create(pb::CreateKeyRequest { expiry: Some(Expiry::Ttl(ttl)), ..new_key() }).await;
    assert!(key.expire_time.is_some());
    while api.reason(&secret).await == pb::Reason::Valid {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(api.reason(&secret).await, pb::Reason::Expired);
    assert_eq!(api.get(&key.id).await.state(), pb::KeyState::Expired);
    api.revoke(&key.id, "").await;
    assert_eq!(api.reason(&secret).await, pb::Reason::Revoked, "revoked takes precedence over expired");
}

/// The last use is recorded some time after the validation, without changing the key.
pub async fn the_last_use_is_recorded(api: Api) {
    let (key, secret) = api.create(new_key()).await;
    let (unused, other) = api.create(new_key()).await;
    api.revoke(&unused.id, "").await;
    assert_eq!(api.reason(&other).await, pb::Reason::Revoked);
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    let used = loop {
        let now = api.get(&key.id).await;
        if now.last_used_time.is_some() {
            break now;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(pb::Key { last_used_time: None, ..used }, key);
    assert_eq!(api.get(&unused.id).await.last_used_time, None, "a denied validation does not count as a use");
}

/// Each error names the invalid field.
pub async fn invalid_fields_of_validate_are_named(api: Api) {
    let request = |required_scopes: Vec<String>, scope_match| pb::ValidateRequest {
        secret: "nonsense".into(),
        required_scopes,
        scope_match,
        ..pb::ValidateRequest::default()
    };
    let mut validator = api.validator();
    assert_eq!(invalid_field(validator.validate(request(vec!["a b".into()], 0)).await), "required_scopes[0]");
    let many = (0..65).map(|i| i.to_string()).collect();
    assert_eq!(invalid_field(validator.validate(request(many, 0)).await), "required_scopes");
    assert_eq!(invalid_field(validator.validate(request(vec![], 7)).await), "scope_match");
}
