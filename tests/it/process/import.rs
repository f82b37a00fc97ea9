//! Tests of `keyvouch import`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use sea_orm::{ConnectionTrait as _, Database};
use serde_json::{Value, json};

use super::program::{CommandOutput, Home, Server, tool, wait_for};
use crate::databases::Kind;

const FOREIGN: &str = "keys.foreign=[{ prefix = \"pyorg_\", length = 49 }]";

/// Returns a row of an import, and the secret of its key.
fn line(number: usize) -> (Value, String) {
    let secret = format!("pyorg_{number:043}");
    let hash = keyvouch::domain::KeyHash::of(&secret);
    let hash = data_encoding::HEXLOWER.encode(hash.as_bytes());
    (json!({ "hash": hash, "name": format!("key {number}"), "scopes": ["read"] }), secret)
}

fn import(home: &Home, server: &Server, arguments: &[&str]) -> CommandOutput {
    home.call(server, &[&["-o", "json", "import"], arguments].concat())
}

/// Returns the numbers of imported, already stored and rejected keys.
fn counts(done: &CommandOutput) -> (u64, u64, u64) {
    let report: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr));
    let count = |name: &str| report[name].as_u64().unwrap();
    (count("imported"), count("alreadyThere"), count("rejected"))
}

#[test]
fn a_repeated_import_stores_each_key_once() {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let mut lines: Vec<_> = (0..3_000).map(|number| line(number).0.to_string()).collect();
    lines[7] = "not JSON".into();
    lines[8] = json!({ "hash": "ab".repeat(32), "name": "", "owner_id": "o" }).to_string();
    std::fs::write(home.path().join("keys.jsonl"), lines.join("\n")).unwrap();
    let arguments = ["--from", "keys.jsonl", "--owner", "them"];

    let dry = import(&home, &server, &[&arguments[..], &["--dry-run"]].concat());
    assert_eq!((dry.status, counts(&dry)), (3, (2_998, 0, 2)));
    assert_eq!(home.json(&server, &["key", "list"])["keys"], json!([]), "a dry run must store nothing");

    let first = import(&home, &server, &arguments);
    assert_eq!((first.status, counts(&first)), (3, (2_998, 0, 2)));
    for rejected in ["line 8: row: ", "line 9: key.name: "] {
        assert!(first.stderr.contains(rejected), "{rejected}: {}", first.stderr);
    }
    let again = import(&home, &server, &arguments);
    assert_eq!((again.status, counts(&again)), (3, (0, 2_998, 2)));
    assert_eq!(home.validate(&server, &line(2_999).1), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &line(3_000).1), (3, "REASON_NOT_FOUND".into()));
}

/// The server is killed after half of the keys were stored. The error names the first row without a response,
/// and a second run imports the rest.
#[test]
fn an_interrupted_import_is_completed_by_a_second_run() {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let rows: Vec<_> = (0..20_000).map(|number| line(number).0.to_string() + "\n").collect();
    let mut importing = home.command(&["import", "--from", "-", "--format", "jsonl", "--owner", "o"]);
    importing
        .args(["--addr", &server.address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut importing = importing.spawn().unwrap();
    let mut input = importing.stdin.take().unwrap();
    input.write_all(rows[..10_000].concat().as_bytes()).unwrap();
    wait_for("half of the keys", || (home.validate(&server, &line(9_999).1).0 == 0).then_some(()));
    drop(server);
    // The process may have ended already.
    let _ = input.write_all(rows[10_000..].concat().as_bytes());
    drop(input);
    let interrupted = importing.wait_with_output().unwrap();
    assert_eq!(interrupted.status.code(), Some(1));
    let stderr = String::from_utf8(interrupted.stderr).unwrap();
    assert!(stderr.contains("line 10001:"), "{stderr}");

    let server = home.serve(&[FOREIGN]);
    std::fs::write(home.path().join("keys.jsonl"), rows.concat()).unwrap();
    let again = import(&home, &server, &["--from", "keys.jsonl", "--owner", "o"]);
    assert_eq!((again.status, counts(&again)), (0, (10_000, 10_000, 0)));
    assert_eq!(home.validate(&server, &line(19_999).1).0, 0);
}

/// A row above the maximum message size is reported like any other invalid row, and does not end the import.
#[test]
fn a_row_above_the_message_size_limit_is_rejected() {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let mut large = line(1).0;
    large["metadata"] = json!({ "k": "v".repeat(500_000) });
    let rows = [line(0).0.to_string(), large.to_string(), "x".repeat(2_000_000), line(2).0.to_string()];
    std::fs::write(home.path().join("keys.jsonl"), rows.join("\n")).unwrap();
    for dry_run in [&["--dry-run"][..], &[]] {
        let arguments = [&["--from", "keys.jsonl", "--owner", "o"], dry_run].concat();
        let done = import(&home, &server, &arguments);
        assert_eq!((done.status, counts(&done)), (3, (2, 0, 2)), "{}", done.stderr);
        assert!(done.stderr.contains("line 2: metadata: "), "{}", done.stderr);
    }
}

/// The credential is checked before standard input is read, which may never deliver anything.
#[test]
fn a_rejected_credential_is_reported_before_the_source_is_read() {
    let home = Home::new();
    let server = home.serve(&[]);
    std::fs::write(home.path().join("token"), "not-the-token-of-this-server").unwrap();
    let mut command = home.command(&["import", "--from", "-", "--format", "jsonl", "--token-file", "token"]);
    command.args(["--addr", &server.address]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut importing = command.spawn().unwrap();
    let input = importing.stdin.take();
    let rejected = importing.wait_with_output().unwrap();
    drop(input);
    assert_eq!(rejected.status.code(), Some(1));
    assert!(String::from_utf8(rejected.stderr).unwrap().contains("Unauthenticated"));
}

#[test]
fn csv_rows_are_imported_with_their_scopes() {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let (row, secret) = line(1);
    let hash = row["hash"].as_str().unwrap();
    let text = format!("hash,name,owner_id,scopes,metadata\n{hash},n,o,read write,\"{{\"\"a\"\": 1}}\"\n");
    std::fs::write(home.path().join("keys.csv"), text).unwrap();
    let done = import(&home, &server, &["--from", "keys.csv"]);
    assert_eq!((done.status, counts(&done)), (0, (1, 0, 0)), "{}", done.stderr);
    let validate = ["validate", "--scope", "write", "--addr", &server.address];
    assert_eq!(home.run_with_input(&validate, &secret).status, 0);
}

#[test]
fn an_unreadable_source_is_an_error_that_names_the_option() {
    let home = Home::new();
    let server = home.serve(&[]);
    for (from, named) in [
        ("nowhere.jsonl", &["nowhere.jsonl", "--from"][..]),
        ("keys.txt", &["--from", "--format"]),
        ("sqlite://nowhere.db", &["--owner"]),
    ] {
        let done = import(&home, &server, &["--from", from]);
        assert_eq!(done.status, 1, "{from}");
        assert!(named.iter().all(|name| done.stderr.contains(name)), "{from}: {}", done.stderr);
    }
    let url = "postgres://u:hunter2@127.0.0.1:1/d";
    let done = import(&home, &server, &["--from", url, "--owner", "o"]);
    assert!(done.status == 1 && done.stderr.contains("--from"), "{}", done.stderr);
    assert!(!done.stderr.contains("hunter2") && !done.stdout.contains("hunter2"));
}

/// Creates keys in a database with litestar-api-auth itself. `alchemy` is the URL of the database in the form
/// of `SQLAlchemy`. Returns the secrets of the keys by their ids.
fn fill(alchemy: &str) -> BTreeMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/process/litestar_keys.py");
    let done = Command::new(tool("python")).args([script, alchemy]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Imports the keys of litestar-api-auth from the database `source`, and checks their scopes, expiry,
/// revocation and metadata.
fn check_import_from(source: &str, secrets: &BTreeMap<String, String>) {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let done = import(&home, &server, &["--from", source, "--owner", "legacy"]);
    assert_eq!((done.status, counts(&done)), (3, (604, 0, 3)), "{}", done.stderr);
    for rejected in [": key.scopes[0]: ", ": key.name: ", ": metadata_: "] {
        assert_eq!(done.stderr.matches(rejected).count(), 1, "{rejected}: {}", done.stderr);
    }
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["foreign"], json!([{ "prefix": "pyorg_", "length": 49 }]));
    assert!(!format!("{}{}", done.stdout, done.stderr).contains("postgres@"));

    let reason = |key_id: &str| home.validate(&server, &secrets[key_id]).1;
    assert_eq!(reason("active"), "REASON_VALID");
    assert_eq!(reason("many-599"), "REASON_VALID");
    assert_eq!(reason("expired"), "REASON_EXPIRED");
    assert_eq!(reason("revoked"), "REASON_REVOKED");
    assert_eq!(reason("bad-scope"), "REASON_NOT_FOUND");
    let validate_scope = |scope: &str| {
        let arguments = ["validate", "--scope", scope, "--addr", &server.address];
        home.run_with_input(&arguments, &secrets["active"]).status
    };
    assert_eq!((validate_scope("users:write"), validate_scope("users:delete")), (0, 3));

    let validated =
        home.run_with_input(&["-o", "json", "validate", "--addr", &server.address], &secrets["full"]);
    let validated: Value = serde_json::from_str(&validated.stdout).unwrap();
    let key = home.json(&server, &["key", "get", validated["key"]["id"].as_str().unwrap()]);
    let expected = json!({
        "litestar_key_id": "full", "team": "blue", "quota": "7", "tags": "[\"a\",\"b\"]", "nothing": "null",
        "🔑": "ключ",
    });
    assert_eq!(key["key"]["metadata"], expected);
    assert_eq!(key["key"]["ownerId"], "legacy");
    assert_eq!(key["key"]["expireTime"], "2100-01-01T00:00:00Z");
    assert_eq!(key["key"]["lastUsedTime"], "2025-03-01T10:00:00Z");
    let created = key["key"]["createTime"].as_str().unwrap();
    assert!(created.starts_with("2024-02-29T23:59:58"), "{created}");

    let again = import(&home, &server, &["--from", source, "--owner", "legacy"]);
    assert_eq!(counts(&again), (0, 604, 3));
}

#[test]
fn keys_of_litestar_api_auth_are_imported_from_sqlite() {
    let home = Home::new();
    let file = home.path().join("app.db").display().to_string();
    let secrets = fill(&format!("sqlite+aiosqlite:///{file}"));
    check_import_from(&format!("sqlite://{file}"), &secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_litestar_api_auth_are_imported_from_postgres() {
    let url = Kind::Postgres.database().await;
    tokio::task::spawn_blocking(move || {
        check_import_from(&url, &fill(&url.replace("postgres://", "postgresql+asyncpg://")));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_litestar_api_auth_are_imported_from_mariadb() {
    let url = Kind::MariaDb.database().await;
    let database = Database::connect(&url).await.unwrap();
    database.execute_unprepared("ALTER DATABASE CHARACTER SET utf8mb4").await.unwrap();
    tokio::task::spawn_blocking(move || {
        check_import_from(&url, &fill(&url.replace("mysql://", "mysql+asyncmy://")));
    })
    .await
    .unwrap();
}
