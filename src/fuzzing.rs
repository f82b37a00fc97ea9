//! Entry points of the fuzz targets in `fuzz/`. Each passes bytes to code that handles external input, which
//! must not panic or hang.
//!
//! The tests of this module run the same code on random bytes and on all inputs in `fuzz/corpus`.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use http::{HeaderValue, Request};
use hyper::body::{Body as _, Bytes, Frame};
use tokio::runtime::Runtime;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service as _;

use crate::app::{App, Surroundings};
use crate::config::Config;
use crate::domain::{KeyFilter, Timestamp};
use crate::grpc::pb;
use crate::repository::{EventPageRequest, MemoryRepository};
use crate::server::BufferedBody;
use crate::service::ListRequest;

/// Timeout for the beginning of a response, far more than any needs.
const NEVER: Duration = Duration::from_secs(10);
/// Timeout for a part of a response, which may never arrive.
const PATIENCE: Duration = Duration::from_millis(20);
/// Maximum number of parts that are read of a response.
const MAX_PIECES: usize = 100;
/// Token of calls that are not about credentials.
const TOKEN: &str = "an-admin-token-for-the-fuzzers";
/// Flag in the first byte of a call, which makes its message the credential.
const IS_CREDENTIAL: u8 = 0x80;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Parses a key string, as `Validate` and `authorization` do. Checks that an accepted string is not longer
/// than keys are.
#[expect(clippy::missing_panics_doc, reason = "to panic is how a fuzzer is told")]
pub fn key(bytes: &[u8]) {
    let format = Config::default().keys.format().unwrap_or_else(|error| panic!("{error}"));
    let secret = text(bytes);
    if format.parse(secret.clone()).is_some() {
        assert!(secret.is_ascii() && secret.len() < 128, "{secret}");
    }
}

/// Decodes a page token of each listing.
pub fn page_token(bytes: &[u8]) {
    let token = text(bytes);
    let keys = ListRequest { owner_id: None, filter: KeyFilter::all(Timestamp::MIN), after: None, limit: 1 };
    let events = EventPageRequest { key_id: None, owner_id: None, after: None, limit: 1 };
    let _ = crate::grpc::decode_page_token(&token, &keys);
    let _ = crate::grpc::decode_event_page_token(&token, &events);
}

/// Parses and checks a configuration file.
pub fn config(bytes: &[u8]) {
    if let Ok(mut config) = toml::from_str::<Config>(&text(bytes)) {
        // The files that it names must not be read.
        config.server.tls = Config::default().server.tls;
        let _ = config.check();
    }
}

/// Parses a record of the Redis backend.
pub fn redis_record(bytes: &[u8]) {
    let _ = crate::repository::parse_redis_record(bytes);
}

/// Parses a row of an import file.
pub fn import_line(bytes: &[u8]) {
    crate::cli::read_import_line(&text(bytes));
}

/// A server in this process without connections. Calls go directly to its services.
#[derive(Debug)]
pub struct Server {
    runtime: Runtime,
    routes: Routes,
    methods: Vec<String>,
}

impl Server {
    /// Creates a server with the memory backend.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "without a server there is nothing to fuzz")]
    pub fn new() -> Self {
        let build = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut config = Config::default();
            config.server.listen = vec!["127.0.0.1:0".into()];
            // The caches need a running server.
            config.cache.local.enabled = false;
            config.admin.tokens = vec![format!("fuzz:{TOKEN}").into()];
            let backend = MemoryRepository::new();
            let app = runtime.block_on(App::with_backend(&config, Surroundings::default(), backend))?;
            anyhow::Ok(Self { routes: app.routes()?, methods: pb::paths(pb::FILE_DESCRIPTOR_SET), runtime })
        };
        build().unwrap_or_else(|error: anyhow::Error| panic!("{error:#}"))
    }

    /// Makes a call. The first byte selects the method, and the others are its message or its credential.
    pub fn call(&self, bytes: &[u8]) {
        self.answer(bytes);
    }

    /// Returns the bytes of the response to a call.
    fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let Some((&method, message)) = bytes.split_first() else { return Vec::new() };
        let path = &self.methods[usize::from(method & !IS_CREDENTIAL) % self.methods.len()];
        let is_credential = method & IS_CREDENTIAL != 0;
        let (credential, message) =
            if is_credential { (message, &[][..]) } else { (TOKEN.as_bytes(), message) };
        let scheme: &[u8] = if is_credential { b"" } else { b"Bearer " };
        // HTTP/2 rejects bytes that are not a valid header value before they reach the services.
        let Ok(credential) = HeaderValue::from_bytes(&[scheme, credential].concat()) else {
            return Vec::new();
        };
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
        let piece = Bytes::from([&[0][..], &length, message].concat());
        let body = BufferedBody { pieces: [Ok(Frame::data(piece))].into(), rest: Body::empty() };
        let request = Request::post(format!("http://fuzz{path}"))
            .header("content-type", "application/grpc")
            .header("authorization", credential)
            .body(Body::new(body))
            .unwrap_or_else(|error| panic!("{error}"));
        let answer = async {
            let answer = match self.routes.clone().call(request).await {
                Ok(answer) => answer,
                Err(never) => match never {},
            };

            let (mut body, mut bytes) = (answer.into_body(), Vec::new());
            for _ in 0..MAX_PIECES {
                let piece = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
                // A watch has no end. It waits for changes that nobody makes here.
                let Ok(Some(Ok(piece))) = tokio::time::timeout(PATIENCE, piece).await else { break };
                bytes.extend(piece.into_data().unwrap_or_default());
            }
            bytes
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(NEVER, answer).await });
        answer.unwrap_or_else(|elapsed| panic!("{path}: {elapsed}"))
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

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
                    update_mask: Some(prost_types::FieldMask {
                        paths: vec!["scopes".into(), "metadata".into()],
                    }),
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
}
