//! Runs the configurations of docs/proxies.md for nginx and Envoy, with other addresses.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use keyvouch::conformance::api::Api;
use keyvouch::grpc::pb;
use keyvouch::grpc::pb::import_keys_response::Result as Outcome;
use keyvouch::repository::MemoryRepository;
use tonic::transport::Endpoint;

use crate::gateways::{Gateway, free_address};
use crate::process::program::tool;
use crate::support::{TOKEN, TestServer};

/// More rows than fit into the default limits of proxies: about 2 MiB.
const ROWS: u32 = 2_000;

/// Returns the first block of `language` in the section `title` of the guide.
fn block(title: &str, language: &str) -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/proxies.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let (_, section) = guide.split_once(&format!("\n## {title}\n")).unwrap();
    let (_, rest) = section.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// Replaces every `from` by `to`. Panics if it does not occur.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}: {text}");
    text.replace(from, to)
}

fn nginx(folder: &Path, replicas: [SocketAddr; 2]) -> Gateway {
    let (address, name) = (free_address(), folder.display());
    let mut servers = replaced(&block("nginx", "nginx"), "listen 50050", &format!("listen {address}"));
    for (documented, replica) in ["10.0.0.11:50051", "10.0.0.12:50051"].into_iter().zip(replicas) {
        servers = replaced(&servers, documented, &replica.to_string());
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {name}/{kind};\n"))
        .concat();
    let configuration = format!(
        "daemon off;\nmaster_process off;\npid {name}/pid;\nerror_log {name}/error.log;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}{servers}}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf"));
    Gateway::start(command, folder, address)
}

fn envoy(folder: &Path, replicas: [SocketAddr; 2]) -> Gateway {
    let address = free_address();
    let socket = |of: SocketAddr| format!("address: {}, port_value: {}", of.ip(), of.port());
    let mut configuration =
        replaced(&block("Envoy", "yaml"), "address: 0.0.0.0, port_value: 50050", &socket(address));
    for (documented, replica) in ["10.0.0.11", "10.0.0.12"].into_iter().zip(replicas) {
        let documented = format!("address: {documented}, port_value: 50051");
        configuration = replaced(&configuration, &documented, &socket(replica));
    }
    std::fs::write(folder.join("envoy.yaml"), configuration).unwrap();
    let mut command = Command::new(tool("envoy"));
    command.args(["--log-level", "warning", "--concurrency", "1", "--use-dynamic-base-id", "-c"]);
    command.arg(folder.join("envoy.yaml"));
    Gateway::start(command, folder, address)
}

fn row(number: u32) -> pb::ImportKeysRequest {
    let key = pb::Key {
        name: "n".into(),
        owner_id: "o".into(),
        description: "x".repeat(1_000),
        ..pb::Key::default()
    };
    pb::ImportKeysRequest {
        key: Some(key),
        hash: [number.to_be_bytes(); 8].concat(),
        allow_revoked_hash: false,
    }
}

/// Checks that a long import passes the proxy, and that no call fails when a replica stops.
async fn check_proxy(proxy: fn(&Path, [SocketAddr; 2]) -> Gateway) {
    let mut first = TestServer::start(MemoryRepository::new()).await;
    let second = TestServer::start(MemoryRepository::new()).await;
    let folder = crate::databases::folder("proxy");
    let (path, replicas) = (folder.path().to_owned(), [first.address, second.address]);
    let gateway = tokio::task::spawn_blocking(move || proxy(&path, replicas)).await.unwrap();
    let channel =
        Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap().connect().await.unwrap();
    let api = Api::new(channel, TOKEN);

    let rows = tokio_stream::iter((0..ROWS).map(row));
    let mut imported = api.key_store().import_keys(rows).await.unwrap().into_inner();
    for number in 0..ROWS {
        let response = imported.message().await.unwrap().unwrap();
        assert!(matches!(response.result, Some(Outcome::Key(_))), "{number}: {response:?}");
    }
    let validate = async || {
        for _ in 0..50 {
            assert_eq!(api.reason("nonsense").await, pb::Reason::Malformed);
        }
    };
    validate().await;
    first.begin_stop();
    validate().await;
    first.ended().await.unwrap();
    validate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_nginx_passes_imports_and_survives_the_stop_of_a_replica() {
    check_proxy(nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_envoy_passes_imports_and_survives_the_stop_of_a_replica() {
    check_proxy(envoy).await;
}
