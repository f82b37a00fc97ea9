//! Tests that replicas can be restarted one after the other without failed calls.

use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use keyvouch::conformance::api::{Api, new_key};
use serde_json::Value;
use tonic::transport::Endpoint;

use super::program::{Home, Server, tool};
use crate::databases::Kind;
use crate::redis_servers::free_port;
use crate::support::TOKEN;

const REPLICAS: usize = 3;
/// Duration of the load before and after each restart.
const LOAD_BETWEEN_RESTARTS: Duration = Duration::from_millis(500);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn serve(home: &Arc<Home>, settings: &[String]) -> Server {
    let (home, settings) = (Arc::clone(home), settings.to_vec());
    blocking(move || home.serve(&settings.iter().map(String::as_str).collect::<Vec<_>>())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() {
    let database = Kind::Postgres.start(None);
    let url = database.database().await;
    let (mut replicas, mut addresses) = (Vec::new(), Vec::new());
    for number in 0..REPLICAS {
        let address = format!("127.0.0.1:{}", free_port());
        let settings = vec![
            format!("server.listen={address}"),
            format!("admin.tokens=tests:{TOKEN}"),
            format!("store.url={url}"),
            format!("store.auto_migrate={}", number == 0),
            "server.settle_delay=300ms".to_owned(),
            "server.workers=1".to_owned(),
        ];
        let home = Arc::new(Home::new());
        let server = serve(&home, &settings).await;
        replicas.push((home, settings, server));
        addresses.push(address);
    }
    let channel = Endpoint::from_shared(format!("http://{}", addresses[0])).unwrap().connect().await.unwrap();
    let (_, secret) = Api::new(channel, TOKEN).create(new_key()).await;

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/process/grpc_load.py");
    let mut load = Command::new(tool("python"))
        .args([script, &addresses.join(","), &secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut restarted = Vec::new();
    for (home, settings, mut server) in replicas {
        tokio::time::sleep(LOAD_BETWEEN_RESTARTS).await;
        server.signal(Signal::TERM);
        let status = blocking(move || server.ended()).await;
        assert_eq!(status, Some(0), "{}", home.read("stderr"));
        restarted.push((serve(&home, &settings).await, home));
    }
    tokio::time::sleep(LOAD_BETWEEN_RESTARTS).await;
    drop(load.stdin.take());
    let done = blocking(move || load.wait_with_output().unwrap()).await;
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["failures"], Value::Array(Vec::new()), "of {} calls", report["calls"]);
    assert!(report["calls"].as_u64().unwrap() > 500, "{report}");
}
