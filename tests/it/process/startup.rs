//! Tests of startups that succeed and of those that fail, and of the log.

use rustix::process::Signal;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use keyvouch::conformance::api::Api;
use keyvouch::grpc::pb;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::program::{Home, wait_for};
use crate::redis_servers::Redis;

const TOKEN: &str = "admin.tokens=t:a-token-of-enough-characters";

/// Runs a server that has to fail at startup. Returns its log and its error.
fn startup_error(home: &Home, arguments: &[&str]) -> String {
    let done = home.run(&[&["serve"], arguments].concat());
    assert_eq!(done.status, 1, "{}", done.stdout);
    done.stderr
}

/// Runs a command of `keyvouch migrate`. Returns its exit status and the JSON that it prints.
fn migrate(home: &Home, arguments: &[&str]) -> (i32, Value) {
    let done = home.run(&[&["-o", "json", "migrate"], arguments].concat());
    (done.status, serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr)))
}

#[test]
fn an_old_name_of_a_setting_is_logged_once_with_its_new_name() {
    let home = Home::new();
    let settings = ["server.tls.reload_interval=7s", "telemetry.log_format=json"];
    drop(home.serve(&settings));
    let log = home.read("stderr");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let warnings: Vec<_> = lines.filter(|line| !line["old"].is_null()).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert_eq!(
        (&warnings[0]["level"], &warnings[0]["old"]),
        (&"WARN".into(), &"server.tls.reload_interval".into())
    );
    assert_eq!(
        (&warnings[0]["new"], &warnings[0]["origin"]),
        (&"reload.interval".into(), &"the command line".into())
    );
    assert!(!warnings[0].to_string().contains("7s"), "{log}");
}

#[test]
fn the_first_start_creates_a_token_and_prints_the_next_commands() {
    let home = Home::new();
    let server = home.serve(&[]);
    let stdout = home.read("stdout");
    assert!(stdout.contains("the token in keyvouch.admin-token (created just now)"), "{stdout}");
    assert!(stdout.contains(&format!("key create --addr {}", server.address)), "{stdout}");
    let token = home.read("keyvouch.admin-token");
    assert!(!stdout.contains(token.trim()), "the token is printed only to a terminal");
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
fn an_address_in_use_is_named() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let stderr = startup_error(&home, &["--set", &format!("server.listen={address}")]);
    let error = format!("os error {}", Errno::ADDRINUSE.raw_os_error());
    for part in [&address, "server.listen", &error] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    for file in ["keyvouch.db", "keyvouch.admin-token"] {
        assert!(!home.path().join(file).exists(), "{file} was created before the address was bound");
    }
}

#[test]
fn a_token_file_that_is_not_valid_is_named_before_the_database_is_created() {
    let home = Home::new();
    std::fs::write(home.path().join("tokens"), "nonsense\n").unwrap();
    let arguments = ["--set", "admin.tokens_file=tokens", "--set", "server.listen=127.0.0.1:0"];
    let stderr = startup_error(&home, &arguments);
    assert!(stderr.contains("admin.tokens_file"), "{stderr}");
    assert!(!home.path().join("keyvouch.db").exists());
}

#[test]
fn a_secret_on_the_command_line_is_rejected() {
    let home = Home::new();
    for flag in [TOKEN, "store.url=postgres://u:hunter2@127.0.0.1:1/d"] {
        let stderr = startup_error(&home, &["--set", flag]);
        assert!(stderr.contains("command line") && stderr.contains("; set KEYVOUCH__"), "{stderr}");
        assert!(!stderr.contains("hunter2") && !stderr.contains("a-token-of"), "{stderr}");
    }
}

#[test]
fn files_of_tokens_that_are_not_regular_fail_the_startup() {
    for (name, flags) in
        [("keyvouch.admin-token", &[][..]), ("tokens", &["--set", "admin.tokens_file=tokens"])]
    {
        let home = Home::new();
        mknodat(CWD, home.path().join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let stderr = startup_error(&home, &[&["--set", "server.listen=127.0.0.1:0"], flags].concat());
        assert!(stderr.contains(name) && stderr.contains("not a regular file"), "{stderr}");
        assert!(!home.path().join("keyvouch.db").exists());
    }
}

#[test]
fn files_that_other_users_can_write_to_are_logged_and_reported() {
    let home = Home::new();
    std::fs::write(home.path().join("tokens"), "alice:a-token-of-enough-characters\n").unwrap();
    std::fs::write(home.path().join("keyvouch.db"), "").unwrap();
    for file in ["tokens", "keyvouch.db"] {
        std::fs::set_permissions(home.path().join(file), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    let checked = home.run(&["config", "check", "--set", "admin.tokens_file=tokens"]);
    assert_eq!(checked.status, 0, "{}", checked.stderr);
    drop(home.serve(&["admin.tokens_file=tokens", "telemetry.log_format=json"]));
    let log = home.log();
    let warnings: Vec<_> =
        log.iter().filter(|entry| entry["level"] == "WARN").map(Value::to_string).collect();
    for setting in ["admin.tokens_file: tokens", "store.url: keyvouch.db"] {
        let warning = format!("{setting} has mode 0666");
        assert!(checked.stderr.contains(&format!("warning: {warning}")), "{}", checked.stderr);
        assert_eq!(warnings.iter().filter(|entry| entry.contains(&warning)).count(), 1, "{warnings:?}");
    }
}

#[test]
fn the_server_listens_on_an_ipv6_address_of_a_variable() {
    let home = Home::new();
    let mut command = home.command(&["config", "show"]);
    let done = command.env("KEYVOUCH__SERVER__LISTEN", "[::1]:50051").output().unwrap();
    let stdout = String::from_utf8(done.stdout).unwrap();
    assert!(
        stdout.contains("listen = [\"[::1]:50051\"]"),
        "{stdout} {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn credentials_of_the_trace_collector_are_not_shown() {
    let home = Home::new();
    let mut command = home.command(&["config", "show"]);
    let done =
        command.env("KEYVOUCH__TELEMETRY__OTLP_ENDPOINT", "http://user:hunter2@h:4317").output().unwrap();
    let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    assert!(printed.contains("http://(redacted)@h:4317") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn settings_that_expose_the_key_store_are_rejected() {
    let home = Home::new();
    let stderr = startup_error(&home, &["--set", "server.listen=0.0.0.0:0"]);
    assert!(stderr.contains("admin.tokens_file"), "{stderr}");
    let stderr = startup_error(&home, &["--set", "server.listen=0.0.0.0:0", "--set", "admin.insecure=true"]);
    assert!(stderr.contains("admin.insecure"), "{stderr}");
    assert!(!home.path().join("keyvouch.admin-token").exists());
}

#[test]
fn a_server_on_all_addresses_requires_a_configured_token() {
    let home = Home::new();
    std::fs::write(home.path().join("tokens"), "ops:a-token-of-enough-characters\n").unwrap();
    std::fs::write(home.path().join("bare"), "a-token-of-enough-characters\n").unwrap();
    let server = home.serve(&["admin.tokens_file=tokens", "server.listen=0.0.0.0:0"]);
    assert_eq!(home.call(&server, &["key", "list", "--token-file", "bare"]).status, 0);
    let without = home.call(&server, &["key", "list"]);
    assert_eq!(without.status, 1);
    assert!(without.stderr.contains("CREDENTIAL_REQUIRED"), "{}", without.stderr);
    assert!(!home.path().join("keyvouch.admin-token").exists());
}

#[test]
fn an_outdated_schema_fails_the_startup_with_the_command_to_run() {
    let home = Home::new();
    let off = ["--set", "store.auto_migrate=false", "--set", "server.listen=127.0.0.1:0"];
    let stderr = startup_error(&home, &off);
    assert!(stderr.contains("keyvouch migrate up"), "{stderr}");
    assert!(stderr.contains("m20261123_000001_create_key_tables"), "{stderr}");
    assert_eq!(migrate(&home, &["status"]).0, 3);
    let plan = home.run(&["migrate", "up", "--dry-run"]);
    assert_eq!((plan.status, plan.stdout.contains("CREATE TABLE IF NOT EXISTS \"api_key\"")), (0, true));
    let (status, before) = migrate(&home, &["status"]);
    let pending = before["pending"].as_array().unwrap();
    assert_eq!((status, pending.len()), (3, 2), "a dry run must change nothing");
    assert_eq!(migrate(&home, &["up"]), (0, json!({ "applied": pending })));
    assert_eq!(migrate(&home, &["status"]).0, 0);
    assert_eq!(migrate(&home, &["up"]), (0, json!({ "applied": [] })));
    assert_eq!(migrate(&home, &["down", "--yes"]), (0, json!({ "undone": [pending[1]] })));
    assert_eq!(migrate(&home, &["status"]).0, 3);
    assert_eq!(migrate(&home, &["up"]), (0, json!({ "applied": [pending[1]] })));
    home.serve(&["store.auto_migrate=false"]);
}

/// A rollback: an earlier release finds the schema of a later one.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_schema_is_served_unless_its_migration_is_breaking() {
    use sea_orm::ConnectionTrait as _;
    let home = Home::new();
    drop(home.serve(&[]));
    let url = format!("sqlite://{}", home.path().join("keyvouch.db").display());
    let database = sea_orm::Database::connect(url).await.unwrap();
    let apply = |name: &str| format!("INSERT INTO seaql_migrations VALUES ('{name}', 1)");
    database.execute_unprepared(&apply("m20991231_000001_add_a_column")).await.unwrap();
    let server = home.serve(&[]);
    let created = home.create_key(&server, &[]);
    assert_eq!(home.validate(&server, created["secret"].as_str().unwrap()).0, 0);
    assert!(home.read("stderr").contains("m20991231_000001_add_a_column"));
    drop(server);
    let schema = json!({ "pending": [], "unknown": ["m20991231_000001_add_a_column"] });
    assert_eq!(migrate(&home, &["status"]), (0, schema));
    // The init container of a rollback runs this command.
    assert_eq!(migrate(&home, &["up"]).0, 0);
    let down = home.run(&["migrate", "down", "--yes"]);
    assert!(down.status == 1 && down.stderr.contains("m20991231_000001_add_a_column"), "{}", down.stderr);

    database.execute_unprepared(&apply("m20991231_000002_keyvouch_contract_owners")).await.unwrap();
    let stderr = startup_error(&home, &[]);
    assert!(stderr.contains("m20991231_000002_keyvouch_contract_owners"), "{stderr}");
}

#[test]
fn an_invalid_database_file_is_named() {
    let home = Home::new();
    std::fs::write(home.path().join("keyvouch.db"), "not a database, but longer than a header".repeat(99))
        .unwrap();
    let stderr = startup_error(&home, &["--set", "server.listen=127.0.0.1:0"]);
    assert!(stderr.contains("keyvouch.db"), "{stderr}");
}

#[test]
fn a_backend_in_memory_is_logged_as_a_warning() {
    let home = Home::new();
    home.serve(&["store.url=memory:", "telemetry.log_format=json"]);
    let is_warning = |entry: &Value| {
        entry["level"] == "WARN" && entry["message"].as_str().is_some_and(|it| it.contains("memory:"))
    };
    assert!(home.log().iter().any(is_warning), "{}", home.read("stderr"));
}

#[test]
fn a_second_signal_ends_the_drain() {
    let home = Home::new();
    let mut server = home.serve(&["server.drain_timeout=1h"]);
    let _silent = std::net::TcpStream::connect(&server.address).unwrap();
    // The drain waits only for connections that were accepted. A call on a later connection shows that this one
    // was.
    let is_healthy = || home.call(&server, &["healthcheck"]).status == 0;
    assert!(is_healthy());
    server.signal(Signal::TERM);
    wait_for("the drain", || (!is_healthy()).then_some(()));
    server.signal(Signal::INT);
    assert_eq!(server.ended(), Some(1));
}

#[test]
fn log_entries_are_json_with_the_method_and_the_request_id() {
    let home = Home::new();
    let mut server = home.serve(&["telemetry.log_format=json", "telemetry.log_filter=info,keyvouch=debug"]);
    home.json(&server, &["key", "list"]);
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), Some(0));
    let log = home.log();
    let call = log.iter().find(|entry| entry["span"]["method"] == "keyvouch.v1.KeyStore/ListKeys").unwrap();
    assert!(!call["span"]["request_id"].as_str().unwrap().is_empty());
}

/// Returns the entries of the log about rejected callers.
fn audit_log(home: &Home) -> Vec<Value> {
    home.log().into_iter().filter(|entry| entry["target"] == "keyvouch::audit").collect()
}

#[test]
fn rejected_callers_are_logged_with_their_method() {
    let home = Home::new();
    let server = home.serve(&["telemetry.log_format=json"]);
    let writer = home.create_key(&server, &["--scope", "keyvouch.write"]);
    let secret = writer["secret"].as_str().unwrap();
    std::fs::write(home.path().join("key"), secret).unwrap();
    let with_key = |command: &[&str]| home.call(&server, &[command, &["--token-file", "key"]].concat());
    let create = ["key", "create", "--name", "n", "--owner", "o", "--scope", "keyvouch.admin"];
    for command in [&create[..], &["key", "list"]] {
        let done = with_key(command);
        assert_eq!(done.status, 1, "{}", done.stdout);
    }
    let row = json!({
        "hash": "07".repeat(32), "name": "n", "owner_id": "o", "scopes": ["keyvouch.admin"],
    });
    std::fs::write(home.path().join("rows.jsonl"), format!("{row}\n")).unwrap();
    assert_eq!(with_key(&["import", "--from", "rows.jsonl"]).status, 3, "the row has to be rejected");
    let actor = format!("key:{}", writer["key"]["id"].as_str().unwrap());
    let entries = audit_log(&home);
    let logged: Vec<_> = entries
        .iter()
        .map(|entry| (entry["actor"].as_str().unwrap(), entry["method"].as_str().unwrap()))
        .collect();
    let expected = ["CreateKey", "ListKeys", "ImportKeys"].map(|it| format!("keyvouch.v1.KeyStore/{it}"));
    let expected = expected.each_ref().map(String::as_str);
    assert_eq!(logged, expected.map(|method| (actor.as_str(), method)));
    assert!(!home.read("stderr").contains(secret));
}

/// The call is allowed when it begins, and rejected after a scope was removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejection_within_an_open_stream_is_logged() {
    let home = Home::new();
    let server = home.serve(&["telemetry.log_format=json", "cache.local.enabled=false"]);
    let writer = home.create_key(&server, &["--scope", "keyvouch.write"]);
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
    let logged = audit_log(&home);
    assert_eq!(logged.len(), 1, "{logged:?}");
    assert_eq!(logged[0]["actor"], format!("key:{id}"));
    assert_eq!(logged[0]["method"], "keyvouch.v1.KeyStore/ImportKeys");
    assert_eq!(logged[0]["code"], "PermissionDenied");
    assert_eq!(logged[0]["peer"], "127.0.0.1");
}

#[test]
fn a_signal_ends_a_startup_that_waits_for_its_database() {
    let home = Home::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("store.url=postgres://u:p@{}/d", silent.local_addr().unwrap());
    let mut server = home.spawn_server(&[&url, "store.connect_timeout=10min", TOKEN]);
    let _connection = silent.accept().unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), Some(0), "{}", home.read("stderr"));
    assert_eq!(home.read("stdout"), "", "the server must not announce an address");
}

#[test]
fn the_printed_commands_can_be_run() {
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
fn a_startup_waits_for_its_backend_and_logs_it() {
    let home = Home::new();
    let mut redis = Redis::Alone.start(&[]);
    redis.servers[0].kill();
    let url = format!("store.url={}", redis.url);
    let settings = [url.as_str(), "store.connect_timeout=10min", TOKEN, "telemetry.log_format=json"];
    let mut server = home.spawn_server(&settings);
    wait_for("the first attempt", || {
        let is_retry = |entry: &Value| entry["level"] == "WARN" && entry["patience"].is_string();
        home.log().iter().any(is_retry).then_some(())
    });
    redis.servers[0].restart(&[]);
    server.wait_until_ready(&home);
    drop(server);
    // With a short timeout, the startup fails and names the setting.
    redis.servers[0].kill();
    let stderr = startup_error(
        &home,
        &["--set", &url, "--set", "store.connect_timeout=1s", "--set", "admin.insecure=true"],
    );
    assert!(stderr.contains("store.url"), "{stderr}");
}
