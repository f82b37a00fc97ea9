//! Runs the entry points on random bytes and on all inputs in `fuzz/corpus`.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::grpc::pb;

/// Runs `target` on all inputs of its corpus, and on inputs with one byte changed.
fn on_corpus(name: &str, target: impl Fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        target(&input);
        for at in 0..input.len().min(256) {
            for change in [1, 0x80, 0xff] {
                let mut changed = input.clone();
                changed[at] ^= change;
                target(&changed);
            }
        }
        inputs += 1;
    }
    assert!(inputs > 0, "no inputs in {}", folder.display());
}

#[test]
fn keys() {
    on_corpus("key", key);
}

#[test]
fn page_tokens() {
    on_corpus("page_token", page_token);
}

#[test]
fn settings() {
    on_corpus("config", config);
}

#[test]
fn records_in_redis() {
    on_corpus("redis_record", redis_record);
}

#[test]
fn lines_of_imports() {
    on_corpus("import_line", import_line);
}

#[test]
fn calls() {
    let server = Server::new();
    on_corpus("call", |bytes| server.call(bytes));
}

/// Checks the corpus of calls. With `KEYVOUCH_WRITE_CORPUS=1`, writes it instead.
#[test]
fn the_corpus_of_calls_has_each_method() {
    let server = Server::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/call");
    let key = pb::Key {
        id: "01a20fb3-1162-7e43-9734-93a5d0259ef2".into(),
        name: "name".into(),
        owner_id: "owner".into(),
        scopes: vec!["read".into()],
        metadata: [("a".to_owned(), "b".to_owned())].into(),
        ..pb::Key::default()
    };
    let id = key.id.clone();
    let messages = [
        (
            "Validate",
            pb::ValidateRequest {
                secret: "kv_x".into(),
                required_scopes: vec!["read".into()],
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        (
            "CreateKey",
            pb::CreateKeyRequest {
                name: "n".into(),
                owner_id: "o".into(),
                metadata: key.metadata.clone(),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        ("GetKey", pb::GetKeyRequest { id: id.clone() }.encode_to_vec()),
        (
            "ListKeys",
            pb::ListKeysRequest {
                page_size: 7,
                states: vec![1, 2],
                prefix: Some("kv_".into()),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        ("StreamKeys", pb::StreamKeysRequest { states: vec![1], ..Default::default() }.encode_to_vec()),
        (
            "UpdateKey",
            pb::UpdateKeyRequest {
                key: Some(key.clone()),
                update_mask: Some(prost_types::FieldMask { paths: vec!["scopes".into(), "metadata".into()] }),
                ..Default::default()
            }
            .encode_to_vec(),
        ),
        ("RotateKey", pb::RotateKeyRequest { id: id.clone(), ..Default::default() }.encode_to_vec()),
        ("RevokeKey", pb::RevokeKeyRequest { id: id.clone(), reason: "leaked".into() }.encode_to_vec()),
        ("DeleteKey", pb::DeleteKeyRequest { id, expected_revision: Some(3) }.encode_to_vec()),
        (
            "ImportKeys",
            pb::ImportKeysRequest { key: Some(key), hash: vec![7; 32], allow_revoked_hash: false }
                .encode_to_vec(),
        ),
        ("ListEvents", pb::ListEventsRequest { page_size: 3, ..Default::default() }.encode_to_vec()),
        ("WatchChanges", pb::WatchChangesRequest { position: "AQ".into() }.encode_to_vec()),
    ];
    assert_eq!(messages.len(), server.methods.len());
    for (name, message) in messages {
        let number = server.methods.iter().position(|path| path.ends_with(&format!("/{name}"))).unwrap();
        let input = [&[u8::try_from(number).unwrap()][..], &message].concat();
        if std::env::var_os("KEYVOUCH_WRITE_CORPUS").is_some() {
            std::fs::write(folder.join(name), &input).unwrap();
        }
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), input, "{name}");
    }
}

thread_local! {
    static SERVER: Server = Server::new();
}

fn call(bytes: &[u8]) {
    SERVER.with(|server| server.call(bytes));
}

#[test]
fn calls_reach_the_backend() {
    let server = Server::new();
    let import = server.methods.iter().position(|path| path.ends_with("/ImportKeys")).unwrap();
    let row = pb::ImportKeysRequest {
        allow_revoked_hash: false,
        key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
        hash: vec![7; 32],
    };
    let answer = server.answer(&[&[u8::try_from(import).unwrap()][..], &row.encode_to_vec()].concat());
    let answer = pb::ImportKeysResponse::decode(&answer[5..]).unwrap();
    assert!(matches!(answer.result, Some(pb::import_keys_response::Result::Key(_))), "{answer:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..512)) {
        for target in [key, page_token, config, redis_record, import_line, call] {
            target(&bytes);
        }
    }

    #[test]
    fn random_text(text in "[ -~\\n]{0,200}") {
        for target in [key, page_token, config, redis_record, import_line, call] {
            target(text.as_bytes());
        }
    }
}
