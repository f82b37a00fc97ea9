//! Tests of `ImportKeys`.

use tonic::Code;
use tonic_types::StatusExt as _;

use super::Api;
use crate::domain::{KeyHash, KeyId, KeyPrefix, SecretKey, SystemEntropy, Timestamp};
use crate::grpc::pb;
use crate::grpc::pb::import_keys_response::Result as Outcome;

/// Returns the request for a key that another system could have issued, and its secret.
fn foreign() -> (pb::ImportKeysRequest, String) {
    let secret = SecretKey::generate(&KeyPrefix::parse("prefix", "kv_").unwrap(), &SystemEntropy).unwrap();
    let key =
        pb::Key { name: "name".into(), owner_id: "owner".into(), prefix: "kv_".into(), ..pb::Key::default() };
    let hash = secret.hash().as_bytes().to_vec();
    (pb::ImportKeysRequest { key: Some(key), hash, allow_revoked_hash: false }, secret.expose().to_owned())
}

/// Returns such a request with other attributes.
fn foreign_with(change: impl FnOnce(&mut pb::Key)) -> (pb::ImportKeysRequest, String) {
    let (mut request, secret) = foreign();
    change(request.key.as_mut().unwrap());
    (request, secret)
}

async fn import(api: &Api, requests: Vec<pb::ImportKeysRequest>) -> Vec<pb::ImportKeysResponse> {
    let answers = api.key_store().import_keys(futures_util::stream::iter(requests)).await.unwrap();
    let mut answers = answers.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        all.push(answer);
    }
    all
}

async fn outcome(api: &Api, request: pb::ImportKeysRequest) -> Outcome {
    import(api, vec![request]).await.remove(0).result.unwrap()
}

/// Returns the code of a rejection, its machine-readable reason, and the field that it names, if any.
fn rejection(outcome: Outcome) -> (Code, String, String) {
    let Outcome::Error(error) = outcome else { panic!("{outcome:?}") };
    let (code, details) = (Code::from(error.code), prost::Message::encode_to_vec(&error));
    let status = tonic::Status::with_details(code, error.message, details.into());
    let field = status.get_details_bad_request().map(|it| it.field_violations[0].field.clone());
    (code, status.get_details_error_info().unwrap().reason, field.unwrap_or_default())
}

fn time(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 5_000 }
}

/// The key validates with its secret, which the server has never received before.
pub async fn an_imported_key_keeps_its_fields(api: Api) {
    let (request, secret) = foreign_with(|key| {
        key.description = "from elsewhere".into();
        key.scopes = vec!["read".into(), "write".into()];
        key.metadata = [("old_id".into(), "7".into())].into();
        key.create_time = Some(time(1_600_000_000));
        key.expire_time = Some(time(4_102_444_800));
        key.last_used_time = Some(time(1_700_000_000));
    });
    let imported = request.key.clone().unwrap();
    let Outcome::Key(key) = outcome(&api, request).await else { panic!("the import was rejected") };
    assert!(!key.id.is_empty() && key.revision > 0 && key.update_time.is_some());
    let expected = pb::Key { state: pb::KeyState::Active.into(), ..imported };
    let comparable = pb::Key { id: String::new(), revision: 0, update_time: None, ..key.clone() };
    assert_eq!(comparable, expected);
    assert_eq!(api.get(&key.id).await, key);
    let validated = api.validate(&secret).await;
    assert_eq!((validated.reason(), validated.key.unwrap().id), (pb::Reason::Valid, key.id));
}

/// The revocation and the expiry of an imported key are kept.
pub async fn an_imported_key_keeps_its_revocation_and_expiry(api: Api) {
    let (revoked, secret_of_revoked) = foreign_with(|key| {
        key.revoke_time = Some(time(1_700_000_000));
        key.revoke_reason = "leaked".into();
    });
    let (expired, secret_of_expired) = foreign_with(|key| key.expire_time = Some(time(1_700_000_000)));
    let answers = import(&api, vec![revoked, expired]).await;
    let Some(Outcome::Key(key)) = &answers[0].result else { panic!("{answers:?}") };
    assert_eq!((key.revoke_time, key.revoke_reason.as_str()), (Some(time(1_700_000_000)), "leaked"));
    assert_eq!(api.reason(&secret_of_revoked).await, pb::Reason::Revoked);
    assert_eq!(api.reason(&secret_of_expired).await, pb::Reason::Expired);
}

/// The outcomes are in the order of the messages. A rejected key does not affect the others.
pub async fn each_imported_key_has_its_own_outcome(api: Api) {
    let (good, secret) = foreign();
    let (nameless, _) = foreign_with(|key| key.name.clear());
    let (other, secret_of_other) = foreign();
    let answers = import(&api, vec![good.clone(), nameless, good.clone(), other]).await;
    let indexes: Vec<_> = answers.iter().map(|answer| answer.index).collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
    let mut outcomes = answers.into_iter().map(|answer| answer.result.unwrap());
    let Some(Outcome::Key(first)) = outcomes.next() else { panic!("the first key was rejected") };
    let invalid = (Code::InvalidArgument, "INVALID_FIELD".to_owned(), "key.name".to_owned());
    assert_eq!(rejection(outcomes.next().unwrap()), invalid);
    let taken = (Code::AlreadyExists, "KEY_ALREADY_EXISTS".to_owned(), String::new());
    assert_eq!(rejection(outcomes.next().unwrap()), taken);
    assert!(matches!(outcomes.next(), Some(Outcome::Key(_))));
    for secret in [&secret, &secret_of_other] {
        assert_eq!(api.reason(secret).await, pb::Reason::Valid);
    }
    api.revoke(&first.id, "").await;
    assert_eq!(rejection(outcome(&api, good).await), taken);
    assert_eq!(
        api.reason(&secret).await,
        pb::Reason::Revoked,
        "a second import must not undo the revocation"
    );
}

/// An import has more keys than one batch. Repeating it changes nothing.
pub async fn a_repeated_import_changes_nothing(api: Api) {
    let keys: Vec<_> = (0..1_200).map(|_| foreign().0).collect();
    let answers = import(&api, keys.clone()).await;
    assert!((0..).zip(&answers).all(|(index, answer)| answer.index == index));
    assert_eq!(answers.iter().filter(|it| matches!(it.result, Some(Outcome::Key(_)))).count(), 1_200);
    let again = import(&api, keys).await;
    assert_eq!(again.len(), 1_200);
    for answer in again {
        assert_eq!(rejection(answer.result.unwrap()).0, Code::AlreadyExists);
    }
    assert_eq!(import(&api, Vec::new()).await, []);
}

/// Each error names the invalid field.
pub async fn invalid_fields_of_import_are_named(api: Api) {
    let future = Some(time(4_102_444_800));
    let mut with_id_of_another_hash = foreign().0;
    let another = KeyHash::from_bytes([!with_id_of_another_hash.hash[0]; KeyHash::BYTES]);
    let id = KeyId::generate(Timestamp::MAX, &another, &SystemEntropy).unwrap();
    with_id_of_another_hash.key.as_mut().unwrap().id = id.to_string();
    let cases = [
        ("key", pb::ImportKeysRequest { key: None, ..foreign().0 }),
        ("hash", pb::ImportKeysRequest { hash: vec![0; 31], ..foreign().0 }),
        ("key.id", with_id_of_another_hash),
        ("key.id", foreign_with(|key| key.id = "00000000-0000-4000-8000-000000000000".into()).0),
        ("key.owner_id", foreign_with(|key| key.owner_id.clear()).0),
        ("key.prefix", foreign_with(|key| key.prefix = "No".into()).0),
        ("key.scopes[0]", foreign_with(|key| key.scopes = vec!["a b".into()]).0),
        ("key.create_time", foreign_with(|key| key.create_time = future).0),
        ("key.revoke_time", foreign_with(|key| key.revoke_time = future).0),
        ("key.last_used_time", foreign_with(|key| key.last_used_time = future).0),
        ("key.revoke_reason", foreign_with(|key| key.revoke_reason = "no time".into()).0),
    ];
    for (field, request) in cases {
        let (code, reason, named) = rejection(outcome(&api, request).await);
        assert_eq!((code, reason.as_str(), named.as_str()), (Code::InvalidArgument, "INVALID_FIELD", field));
    }
    let listed = api.key_store().list_keys(pb::ListKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.keys, [], "nothing was stored");
}

/// The rules for texts are the same as for `CreateKey`, and each rejection names the first invalid field.
pub async fn new_texts_of_import_have_only_visible_characters(api: Api) {
    let cases = [
        ("key.name", foreign_with(|key| key.name = "a\u{200b}".into())),
        ("key.owner_id", foreign_with(|key| key.owner_id = "owner ".into())),
        ("metadata", foreign_with(|key| key.metadata = [("k".into(), "\u{3164}".into())].into())),
        ("key.name", foreign_with(|key| (key.name, key.owner_id) = (" a".into(), " b".into()))),
    ];
    for (field, (request, secret)) in cases {
        let invalid = (Code::InvalidArgument, "INVALID_FIELD".to_owned(), field.to_owned());
        assert_eq!(rejection(outcome(&api, request).await), invalid);
        assert_eq!(api.reason(&secret).await, pb::Reason::NotFound);
    }
}

/// The rule is the same as for `CreateKey`.
pub async fn an_import_grants_no_unknown_reserved_scope(api: Api) {
    let (request, secret) = foreign_with(|key| key.scopes = vec!["keyvouch.everything".into()]);
    let rejected = (Code::PermissionDenied, "SCOPE_NOT_GRANTABLE".to_owned(), String::new());
    assert_eq!(rejection(outcome(&api, request).await), rejected);
    assert_eq!(api.reason(&secret).await, pb::Reason::NotFound);
}

/// Deleting a revoked key and importing its hash does not make the key valid again. A row can allow that
/// explicitly, and the audit trail then records it.
pub async fn a_hash_of_a_deleted_revoked_key_is_not_imported(api: Api) {
    let (request, secret) = foreign();
    let Outcome::Key(key) = outcome(&api, request.clone()).await else { panic!("the import was rejected") };
    api.revoke(&key.id, "leaked").await;
    let delete = |id: &str| pb::DeleteKeyRequest { id: id.to_owned(), expected_revision: None };
    api.key_store().delete_key(delete(&key.id)).await.unwrap();
    let rejected = rejection(outcome(&api, request.clone()).await);
    assert_eq!(rejected, (Code::FailedPrecondition, "HASH_REVOKED".to_owned(), String::new()));
    assert_eq!(api.reason(&secret).await, pb::Reason::NotFound);

    let (plain, _) = foreign();
    let revive = pb::ImportKeysRequest { allow_revoked_hash: true, ..request.clone() };
    let answers = import(&api, vec![request, plain, revive]).await;
    let kinds: Vec<_> = answers.iter().map(|it| matches!(it.result, Some(Outcome::Key(_)))).collect();
    assert_eq!(kinds, [false, true, true], "`allow_revoked_hash` applies only to its own row");
    assert_eq!(api.reason(&secret).await, pb::Reason::Valid);
    let Some(Outcome::Key(revived)) = &answers[2].result else { panic!("{answers:?}") };
    let request = pb::ListEventsRequest { key_id: revived.id.clone(), ..pb::ListEventsRequest::default() };
    let events = api.key_store().list_events(request).await.unwrap().into_inner().events;
    assert_eq!(events[0].changed_fields, ["revoke_time"]);
}
