//! Tests of `keyvouch import`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use sea_orm::{ConnectionTrait as _, Database};
use serde_json::{Value, json};

use super::program::{Done, Home, Server, tool, wait_for};
use crate::databases::Kind;

const FOREIGN: &str = "keys.foreign=[{ prefix = \"pyorg_\", length = 49 }]";

/// Returns a row of an import, and the secret of its key.
fn line(number: usize) -> (Value, String) {
    let secret = format!("pyorg_{number:043}");
    let hash = keyvouch::domain::KeyHash::of(&secret);
    let hash = data_encoding::HEXLOWER.encode(hash.as_bytes());
    (json!({ "hash": hash, "name": format!("key {number}"), "scopes": ["read"] }), secret)
}

fn import(home: &Home, server: &Server, arguments: &[&str]) -> Done {
    home.run(&[&["-o", "json", "import", "--addr", &server.address], arguments].concat())
}

fn counts(done: &Done) -> (u64, u64, u64) {
    let report: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{}", done.stderr));
    let count = |name: &str| report[name].as_u64().unwrap();
    (count("imported"), count("alreadyThere"), count("rejected"))
}

#[test]
fn json_lines_are_imported_once_however_often_they_are_sent() {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let mut lines: Vec<_> = (0..3_000).map(|number| line(number).0.to_string()).collect();
    lines[7] = "no json".into();
    lines[8] = json!({ "hash": "ab".repeat(32), "name": "", "owner_id": "o" }).to_string();
    std::fs::write(home.path().join("keys.jsonl"), lines.join("\n")).unwrap();
    let arguments = ["--from", "keys.jsonl", "--owner", "them"];

    let dry = import(&home, &server, &[&arguments[..], &["--dry-run"]].concat());
    assert_eq!((dry.status, counts(&dry)), (3, (2_998, 0, 2)));
    assert!(!home.run(&["key", "list", "--addr", &server.address]).stdout.contains("key 1"));

    let first = import(&home, &server, &arguments);
    assert_eq!((first.status, counts(&first)), (3, (2_998, 0, 2)));
    for told in ["rejected: line 8: row: not a JSON object", "rejected: line 9: key.name: must not be empty"]
    {
        assert!(first.stderr.contains(told), "{told}: {}", first.stderr);
    }
    let again = import(&home, &server, &arguments);
    assert_eq!((again.status, counts(&again)), (3, (0, 2_998, 2)));
    assert_eq!(home.validate(&server, &line(2_999).1), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &line(3_000).1), (3, "REASON_NOT_FOUND".into()));
}

/// The server is killed after half of the rows were acknowledged. A second run imports the rest.
#[test]
fn an_import_that_was_cut_off_goes_on_where_it_was() {
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
    let cut_off = importing.wait_with_output().unwrap();
    assert_eq!(cut_off.status.code(), Some(1));
    let told = String::from_utf8(cut_off.stderr).unwrap();
    assert!(told.contains("run it again") && told.contains("at line 10001"), "{told}");

    let server = home.serve(&[FOREIGN]);
    std::fs::write(home.path().join("keys.jsonl"), rows.concat()).unwrap();
    let again = import(&home, &server, &["--from", "keys.jsonl", "--owner", "o"]);
    assert_eq!((again.status, counts(&again)), (0, (10_000, 10_000, 0)));
    assert_eq!(home.validate(&server, &line(19_999).1).0, 0);
}

/// A row above the maximum message size is reported like any other invalid row.
#[test]
fn a_row_that_is_too_large_is_rejected_alone() {
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
        assert!(
            done.stderr.contains("rejected: line 2: metadata: has a value that is too long"),
            "{}",
            done.stderr
        );
    }
}

/// The credential is checked before standard input is read, which may never deliver anything.
#[test]
fn a_refused_credential_is_told_before_anything_is_read() {
    let home = Home::new();
    let server = home.serve(&[]);
    std::fs::write(home.path().join("token"), "not-the-token-of-this-server").unwrap();
    let mut command = home.command(&["import", "--from", "-", "--format", "jsonl", "--token-file", "token"]);
    command.args(["--addr", &server.address]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut importing = command.spawn().unwrap();
    let input = importing.stdin.take();
    let refused = importing.wait_with_output().unwrap();
    drop(input);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("Unauthenticated"));
}

#[test]
fn csv_is_imported_with_its_scopes() {
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
fn what_can_not_be_read_says_why() {
    let home = Home::new();
    let server = home.serve(&[]);
    for (from, told) in [
        ("nowhere.jsonl", "can't read nowhere.jsonl (--from)"),
        ("keys.txt", "--format"),
        ("sqlite://nowhere.db", "--owner"),
    ] {
        let done = import(&home, &server, &["--from", from]);
        assert!(done.status == 1 && done.stderr.contains(told), "{from}: {}", done.stderr);
    }
    let url = "postgres://u:hunter2@127.0.0.1:1/d";
    let done = import(&home, &server, &["--from", url, "--owner", "o"]);
    assert!(done.status == 1 && done.stderr.contains("can't connect"), "{}", done.stderr);
    assert!(!done.stderr.contains("hunter2") && !done.stdout.contains("hunter2"));
}

/// Fills a database with the original library. `alchemy` is its URL in the form of `SQLAlchemy`.
fn fill(alchemy: &str) -> BTreeMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/process/litestar_keys.py");
    let done = Command::new(tool("python")).args([script, alchemy]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Imports from `source`, a database of litestar-api-auth. Its keys keep their scopes, expiry and revocation.
fn takes_over(source: &str, secrets: &BTreeMap<String, String>) {
    let home = Home::new();
    let server = home.serve(&[FOREIGN]);
    let done = import(&home, &server, &["--from", source, "--owner", "legacy"]);
    assert_eq!((done.status, counts(&done)), (3, (604, 0, 3)), "{}", done.stderr);
    for told in ["key.scopes[0]", "key.name: is too long", "metadata_: already has the key litestar_key_id"] {
        assert!(done.stderr.contains(told), "{told}: {}", done.stderr);
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
    let scoped = |scope: &str| {
        let arguments = ["validate", "--scope", scope, "--addr", &server.address];
        home.run_with_input(&arguments, &secrets["active"]).status
    };
    assert_eq!((scoped("users:write"), scoped("users:delete")), (0, 3));

    let answer =
        home.run_with_input(&["-o", "json", "validate", "--addr", &server.address], &secrets["full"]);
    let answer: Value = serde_json::from_str(&answer.stdout).unwrap();
    let key = home.json(&server, &["key", "get", answer["key"]["id"].as_str().unwrap()]);
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
fn keys_of_litestar_api_auth_work_on_from_sqlite() {
    let home = Home::new();
    let file = home.path().join("app.db").display().to_string();
    let secrets = fill(&format!("sqlite+aiosqlite:///{file}"));
    takes_over(&format!("sqlite://{file}"), &secrets);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_litestar_api_auth_work_on_from_postgres() {
    let url = Kind::Postgres.database().await;
    tokio::task::spawn_blocking(move || {
        takes_over(&url, &fill(&url.replace("postgres://", "postgresql+asyncpg://")));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_litestar_api_auth_work_on_from_mariadb() {
    let url = Kind::MariaDb.database().await;
    let database = Database::connect(&url).await.unwrap();
    database.execute_unprepared("ALTER DATABASE CHARACTER SET utf8mb4").await.unwrap();
    tokio::task::spawn_blocking(move || {
        takes_over(&url, &fill(&url.replace("mysql://", "mysql+asyncmy://")));
    })
    .await
    .unwrap();
}
