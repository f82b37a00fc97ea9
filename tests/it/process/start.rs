//! Tests of startups that succeed, and of startups that are refused.

use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use keyvouch::conformance::api::Api;
use keyvouch::grpc::pb;

use super::program::{Home, wait_for};
use crate::redis_servers::Redis;

fn refusal(home: &Home, arguments: &[&str]) -> String {
    let done = home.run(&[&["serve"], arguments].concat());
    assert_eq!(done.status, 1, "{}", done.stdout);
    done.stderr
}

#[test]
fn the_first_start_makes_a_token_and_says_what_to_type_next() {
    let home = Home::new();
    let server = home.serve(&[]);
    let stdout = home.read("stdout");
    assert!(stdout.contains("the token in keyvouch.admin-token (created just now)"), "{stdout}");
    assert!(stdout.contains(&format!("key create --addr {}", server.address)), "{stdout}");
    let token = home.read("keyvouch.admin-token");
    assert!(!stdout.contains(token.trim()), "it is printed to a terminal alone");
    for file in ["keyvouch.admin-token", "keyvouch.db", "keyvouch.db-wal"] {
        let mode = std::fs::metadata(home.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    drop(server);
    home.serve(&[]);
    assert!(home.read("stdout").contains("the token in keyvouch.admin-token\n"));
    assert_eq!(home.read("keyvouch.admin-token"), token);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let stderr = refusal(&home, &["--set", &format!("server.listen={address}")]);
    assert!(stderr.contains(&format!("can't listen on {address} (server.listen)")), "{stderr}");
    assert!(stderr.contains("in use"), "{stderr}");
}

#[test]
fn what_would_expose_the_key_store_does_not_start() {
    let home = Home::new();
    let stderr = refusal(&home, &["--set", "server.listen=0.0.0.0:0"]);
    assert!(stderr.contains("admin.tokens_file"), "{stderr}");
    let stderr = refusal(&home, &["--set", "server.listen=0.0.0.0:0", "--set", "admin.insecure=true"]);
    assert!(stderr.contains("admin.insecure"), "{stderr}");
    assert!(!home.path().join("keyvouch.admin-token").exists());
}

#[test]
fn beyond_this_machine_it_starts_with_a_configured_token() {
    let home = Home::new();
    std::fs::write(home.path().join("tokens"), "ops:a-token-of-enough-characters\n").unwrap();
    std::fs::write(home.path().join("bare"), "a-token-of-enough-characters\n").unwrap();
    let server = home.serve(&["admin.tokens_file=tokens", "server.listen=0.0.0.0:0"]);
    let arguments = ["key", "list", "--addr", &server.address];
    assert_eq!(home.run(&[&arguments[..], &["--token-file", "bare"]].concat()).status, 0);
    let without = home.run(&arguments);
    assert_eq!(without.status, 1);
    assert!(without.stderr.contains("CREDENTIAL_REQUIRED"), "{}", without.stderr);
    assert!(!home.path().join("keyvouch.admin-token").exists());
}

#[test]
fn a_schema_that_is_behind_is_refused_with_the_command() {
    let home = Home::new();
    let off = ["--set", "store.auto_migrate=false", "--set", "server.listen=127.0.0.1:0"];
    let stderr = refusal(&home, &off);
    assert!(stderr.contains("keyvouch migrate up"), "{stderr}");
    assert!(stderr.contains("behind by 2 migrations (m20261123_000001_create_key_tables"), "{stderr}");
    assert_eq!(home.run(&["migrate", "status"]).status, 3);
    let plan = home.run(&["migrate", "up", "--dry-run"]);
    assert_eq!((plan.status, plan.stdout.contains("CREATE TABLE IF NOT EXISTS \"api_key\"")), (0, true));
    assert_eq!(home.run(&["migrate", "status"]).status, 3, "a dry run changes nothing");
    let up = home.run(&["migrate", "up"]);
    assert_eq!((up.status, up.stdout.contains("applied m")), (0, true));
    assert_eq!(home.run(&["migrate", "status"]).status, 0);
    assert!(home.run(&["migrate", "up"]).stdout.contains("nothing to do"));
    let down = home.run(&["migrate", "down", "--yes"]);
    assert_eq!((down.status, down.stdout.contains("undone m")), (0, true));
    assert_eq!(home.run(&["migrate", "status"]).status, 3);
    assert_eq!(home.run(&["migrate", "up"]).status, 0);
    home.serve(&["store.auto_migrate=false"]);
}

/// A rollback: an earlier release finds the schema of a later one.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_served_unless_it_took_something_away() {
    use sea_orm::ConnectionTrait as _;
    let home = Home::new();
    drop(home.serve(&[]));
    let url = format!("sqlite://{}", home.path().join("keyvouch.db").display());
    let database = sea_orm::Database::connect(url).await.unwrap();
    let apply = |name: &str| format!("INSERT INTO seaql_migrations VALUES ('{name}', 1)");
    database.execute_unprepared(&apply("m20991231_000001_add_a_column")).await.unwrap();
    let server = home.serve(&[]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    assert_eq!(home.validate(&server, created["secret"].as_str().unwrap()).0, 0);
    assert!(home.read("stderr").contains("m20991231_000001_add_a_column"));
    drop(server);
    let status = home.run(&["migrate", "status"]);
    assert!(status.status == 0 && status.stdout.contains("unknown to this release"), "{}", status.stdout);
    let up = home.run(&["migrate", "up"]);
    assert_eq!(up.status, 0, "the init container of a rollback: {}", up.stderr);
    let down = home.run(&["migrate", "down", "--yes"]);
    assert!(down.status == 1 && down.stderr.contains("m20991231_000001_add_a_column"), "{}", down.stderr);

    database.execute_unprepared(&apply("m20991231_000002_keyvouch_contract_owners")).await.unwrap();
    let refused = refusal(&home, &[]);
    assert!(refused.contains("m20991231_000002_keyvouch_contract_owners"), "{refused}");
    assert!(refused.contains("use a newer release"), "{refused}");
}

#[test]
fn a_file_that_is_no_database_is_named() {
    let home = Home::new();
    std::fs::write(
        home.path().join("keyvouch.db"),
        "not a database, but long enough to be looked at".repeat(99),
    )
    .unwrap();
    let stderr = refusal(&home, &["--set", "server.listen=127.0.0.1:0"]);
    assert!(stderr.contains("keyvouch.db"), "{stderr}");
}

#[test]
fn memory_warns_that_keys_are_lost() {
    let home = Home::new();
    home.serve(&["store.url=memory:"]);
    assert!(home.read("stderr").contains("lost when the server ends"));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let home = Home::new();
    let mut server = home.serve(&["server.drain_timeout=1h"]);
    let _silent = std::net::TcpStream::connect(&server.address).unwrap();
    // A connection counts once the server has accepted it. A call on another connection shows that it has.
    assert_eq!(home.run(&["healthcheck", "--addr", &server.address]).status, 0);
    server.signal(Signal::TERM);
    wait_for("the drain", || home.read("stderr").contains("send the signal again").then_some(()));
    server.signal(Signal::INT);
    assert_eq!(server.ended(), Some(1));
}

#[test]
fn logs_are_json_for_machines() {
    let home = Home::new();
    let mut server = home.serve(&["telemetry.log_format=json", "telemetry.log_filter=info,keyvouch=debug"]);
    home.json(&server, &["key", "list"]);
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), Some(0));
    let log = home.read("stderr");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let call = lines.iter().find(|line| line["span"]["method"] == "keyvouch.v1.KeyStore/ListKeys").unwrap();
    assert!(!call["span"]["request_id"].as_str().unwrap().is_empty());
}

#[test]
fn who_was_refused_is_told_in_the_log() {
    let home = Home::new();
    let server = home.serve(&["telemetry.log_format=json"]);
    let writer =
        home.json(&server, &["key", "create", "--name", "n", "--owner", "o", "--scope", "keyvouch.write"]);
    let secret = writer["secret"].as_str().unwrap();
    std::fs::write(home.path().join("key"), secret).unwrap();
    let create = ["key", "create", "--name", "n", "--owner", "o", "--scope", "keyvouch.admin"];
    for command in [&create[..], &["key", "list"]] {
        let done = home.run(&[command, &["--addr", &server.address, "--token-file", "key"]].concat());
        assert_eq!(done.status, 1, "{}", done.stdout);
    }
    let row = serde_json::json!({
        "hash": "07".repeat(32), "name": "n", "owner_id": "o", "scopes": ["keyvouch.admin"],
    });
    std::fs::write(home.path().join("rows.jsonl"), format!("{row}\n")).unwrap();
    let import = ["import", "--from", "rows.jsonl", "--addr", &server.address, "--token-file", "key"];
    assert_eq!(home.run(&import).status, 3, "rejected");
    let log = home.read("stderr");
    let refusals: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["target"] == "keyvouch::audit")
        .collect();
    let actor = format!("key:{}", writer["key"]["id"].as_str().unwrap());
    let told: Vec<_> = refusals
        .iter()
        .map(|line| (line["actor"].as_str().unwrap(), line["method"].as_str().unwrap()))
        .collect();
    let expected = ["CreateKey", "ListKeys", "ImportKeys"].map(|it| format!("keyvouch.v1.KeyStore/{it}"));
    let expected = expected.each_ref().map(String::as_str);
    assert_eq!(told, expected.map(|method| (actor.as_str(), method)), "{log}");
    assert!(!log.contains(secret));
}

/// The rejection is logged although the call itself was allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_in_an_open_stream_is_told_in_the_log() {
    let home = Home::new();
    let server = home.serve(&["telemetry.log_format=json", "cache.local.enabled=false"]);
    let writer =
        home.json(&server, &["key", "create", "--name", "n", "--owner", "o", "--scope", "keyvouch.write"]);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let api = Api::new(endpoint.connect().await.unwrap(), writer["secret"].as_str().unwrap());
    let row = |number: u8| pb::ImportKeysRequest {
        hash: vec![number; 32],
        key: Some(pb::Key { name: "n".into(), owner_id: "o".into(), ..pb::Key::default() }),
        ..pb::ImportKeysRequest::default()
    };
    let (rows, sent) = tokio::sync::mpsc::channel(1);
    rows.send(row(1)).await.unwrap();
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = api.key_store().import_keys(sent).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    let id = writer["key"]["id"].as_str().unwrap();
    home.json(&server, &["key", "update", id, "--scope", "keyvouch.read"]);
    rows.send(row(2)).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let log = home.read("stderr");
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let told: Vec<_> = lines.filter(|line| line["target"] == "keyvouch::audit").collect();
    assert_eq!(told.len(), 1, "{log}");
    assert_eq!(told[0]["actor"], format!("key:{id}"));
    assert_eq!(told[0]["method"], "keyvouch.v1.KeyStore/ImportKeys");
    assert_eq!(told[0]["code"], "PermissionDenied");
    assert_eq!(told[0]["peer"], "127.0.0.1");
}

#[test]
fn a_signal_ends_a_start_that_waits_for_its_database() {
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("store.url=postgres://u:p@{}/d", silent.local_addr().unwrap());
    let settings =
        [url.as_str(), "store.connect_timeout=10min", "admin.tokens=t:a-token-of-enough-characters"];
    let mut server = home.begin_to_serve(&settings);
    let _connection = silent.accept().unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), Some(0), "{}", home.read("stderr"));
    assert!(home.read("stderr").contains("stopped by a signal during startup"));
}

/// The commands that the server prints can be run.
#[test]
fn what_to_type_next_fits_the_settings() {
    let home = Home::new();
    let admin = format!("unix:{}", home.path().join("admin.sock").display());
    let listen = format!("server.admin_listen={admin}");
    let server = home.serve(&[&listen, "telemetry.listen=127.0.0.1:0"]);
    let stdout = home.read("stdout");
    assert!(stdout.contains(&format!(", at {admin}")), "{stdout}");
    assert!(stdout.contains(&format!("key create --addr {admin} --name")), "{stdout}");
    assert!(stdout.contains(&format!("validate --addr {} --scope", server.address)), "{stdout}");
    let ops =
        stdout.lines().find_map(|line| line.trim().strip_prefix("metrics and probes: http://")).unwrap();
    std::net::TcpStream::connect(ops).unwrap();
    let created = home.run(&["key", "create", "--addr", &admin, "--name", "first", "--owner", "me"]);
    assert_eq!(created.status, 0, "{}", created.stderr);
}

#[test]
fn a_start_waits_for_its_store_and_says_so() {
    let home = Home::new();
    let mut redis = Redis::Alone.start(&[]);
    redis.servers[0].kill();
    let url = format!("store.url={}", redis.url);
    let settings =
        [url.as_str(), "store.connect_timeout=10min", "admin.tokens=t:a-token-of-enough-characters"];
    let mut server = home.begin_to_serve(&settings);
    wait_for("the first attempt", || {
        home.read("stderr").contains("the store can't be reached yet").then_some(())
    });
    redis.servers[0].restart(&[]);
    server.wait_until_ready(&home);
    drop(server);
    // With a short timeout, the error has the reason.
    redis.servers[0].kill();
    let stderr = refusal(&home, &["--set", &url, "--set", "store.connect_timeout=1s", "--set", settings[2]]);
    assert!(stderr.contains("can't use the Redis server (store.url)"), "{stderr}");
}
