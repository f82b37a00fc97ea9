//! Tests of back-pressure on `ImportKeys` with common gRPC clients. They send faster than the backend stores, so
//! flow control has to slow them down.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use keyvouch::conformance::api::new_key;
use keyvouch::domain::{ApiKey, ChangeContext, ChangeId, KeyFilter, KeyHash, KeyId, OwnerId, Revision};
use keyvouch::grpc::pb;
use keyvouch::repository::{Backend, KeyRepository, KeyStream, MemoryRepository, Result};
use prost::Message as _;

use crate::gateways::envoy_proxy;
use crate::process::program::{node_modules, tool};
use crate::support::{TOKEN, TestServer};

const ROWS: u32 = 100_000;

/// A backend that stores batches of keys slowly, as a distant database does.
#[derive(Debug, Default)]
struct SlowImports(MemoryRepository);

impl fmt::Display for SlowImports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowImports")
    }
}

impl From<SlowImports> for Backend {
    fn from(repository: SlowImports) -> Self {
        Self::new(repository)
    }
}

#[async_trait]
impl KeyRepository for SlowImports {
    async fn get_by_hash(&self, hash: &KeyHash) -> Result<Option<ApiKey>> {
        self.0.get_by_hash(hash).await
    }

    async fn get(&self, id: KeyId) -> Result<Option<ApiKey>> {
        self.0.get(id).await
    }

    async fn create(&self, key: ApiKey, context: &ChangeContext) -> Result<ApiKey> {
        self.0.create(key, context).await
    }

    async fn create_many(&self, keys: Vec<ApiKey>, context: &ChangeContext) -> Result<Vec<Result<ApiKey>>> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.0.create_many(keys, context).await
    }

    async fn update(&self, key: ApiKey, expected: Revision, context: &ChangeContext) -> Result<ApiKey> {
        self.0.update(key, expected, context).await
    }

    async fn delete(&self, id: KeyId, context: &ChangeContext) -> Result<ChangeId> {
        self.0.delete(id, context).await
    }

    fn list_by_owner(&self, owner: &OwnerId, filter: &KeyFilter) -> KeyStream {
        self.0.list_by_owner(owner, filter)
    }
}

fn row(number: u32) -> pb::ImportKeysRequest {
    pb::ImportKeysRequest {
        key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
        hash: [number.to_be_bytes(); 8].concat(),
        allow_revoked_hash: false,
    }
}

/// Runs a client that imports [`ROWS`] and concurrently validates on the same connection. Checks that all rows are
/// imported, and that no validation fails.
async fn check_back_pressure(client: fn(&Path, &str) -> Command, through_envoy: bool) {
    let server = TestServer::start(SlowImports::default()).await;
    let (_, secret) = server.api().await.create(new_key()).await;
    let folder = crate::databases::folder("imports");
    let mut rows = Vec::new();
    for number in 0..ROWS {
        let row = row(number).encode_to_vec();
        rows.extend(u32::try_from(row.len()).unwrap().to_be_bytes());
        rows.extend(row);
    }
    std::fs::write(folder.path().join("rows"), rows).unwrap();
    let validate = pb::ValidateRequest { secret, ..pb::ValidateRequest::default() };
    std::fs::write(folder.path().join("validate"), validate.encode_to_vec()).unwrap();
    let address = server.address;
    let printed = tokio::task::spawn_blocking(move || {
        let gateway = through_envoy.then(|| envoy_proxy(folder.path(), address));
        let address = gateway.as_ref().map_or(address, |gateway| gateway.address).to_string();
        let mut command = client(folder.path(), &address);
        let done = command.stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    })
    .await
    .unwrap();
    let counts: Vec<u32> = printed.split_whitespace().map(|count| count.parse().unwrap()).collect();
    let [imported, validated] = counts[..] else { panic!("{printed}") };
    assert_eq!(imported, ROWS);
    assert!(validated > 0);
}

fn grpcio(folder: &Path, address: &str) -> Command {
    let mut command = Command::new(tool("python"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/imports/grpcio.py")).args([address, TOKEN]);
    command.args([folder.join("rows"), folder.join("validate")]);
    command
}

fn grpc_js(folder: &Path, address: &str) -> Command {
    let mut command = Command::new("node");
    command.env("NODE_PATH", node_modules());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/imports/grpc_js.js")).args([address, TOKEN]);
    command.args([folder.join("rows"), folder.join("validate")]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_reaches_grpcio() {
    check_back_pressure(grpcio, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_reaches_grpcio_through_envoy() {
    check_back_pressure(grpcio, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_reaches_grpc_js() {
    check_back_pressure(grpc_js, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_reaches_grpc_js_through_envoy() {
    check_back_pressure(grpc_js, true).await;
}

/// `buf` is written in Go, and uses another implementation of HTTP/2.
#[tokio::test(flavor = "multi_thread")]
async fn back_pressure_reaches_buf_curl() {
    let server = TestServer::start(SlowImports::default()).await;
    let folder = crate::databases::folder("imports");
    let encoded = |number: u32| data_encoding::BASE64.encode(&row(number).hash);
    let rows: Vec<String> = (0..ROWS)
        .map(|number| format!(r#"{{"key":{{"name":"n","ownerId":"o"}},"hash":"{}"}}"#, encoded(number)))
        .collect();
    let file = folder.path().join("rows");
    std::fs::write(&file, rows.join("\n")).unwrap();
    let url = format!("http://{}/keyvouch.v1.KeyStore/ImportKeys", server.address);
    let responses = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(tool("buf"));
        command.args(["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", "@-"]);
        command.args(["--header", &format!("authorization: Bearer {TOKEN}"), &url]);
        let done = command.stdin(std::fs::File::open(file).unwrap()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    })
    .await
    .unwrap();
    assert_eq!(responses.matches("\"createTime\"").count(), usize::try_from(ROWS).unwrap());
}
