//! Tests of the program `keyvouch-migration` through its command line.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::Command;

/// Runs the program and returns its exit status and its output.
fn run(url: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyvouch-migration"));
    let done = command.env("DATABASE_URL", url).args(arguments).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (done.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn it_brings_a_database_up_and_down() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/kv.db?mode=rwc", folder.path().display());
    let migration = "m20261123_000001_create_key_tables";
    let told = |arguments: &[&str], status: i32, text: &str| {
        let (code, printed) = run(&url, arguments);
        assert!(code == Some(status) && printed.contains(text), "{arguments:?}: {code:?} {printed}");
    };
    told(&["status"], 3, migration);
    told(&["up", "--dry-run", "--table-prefix", "a_"], 0, "\"a_api_key\"");
    told(&["status"], 3, migration);
    let last = "m20261128_000002_change_ids";
    told(&["up"], 0, &format!("applied: {migration}\napplied: {last}"));
    told(&["up"], 0, "applied: none");
    told(&["status"], 0, "pending: none");
    told(&["status", "--table-prefix", "a_"], 3, migration);
    told(&["down", "--dry-run"], 0, "DROP TABLE");
    told(&["down"], 0, &format!("undone: {last}"));
    told(&["status"], 3, last);
    told(&["down"], 0, &format!("undone: {migration}"));
    told(&["status"], 3, migration);
    told(&["up"], 0, &format!("applied: {migration}\napplied: {last}"));
}

#[test]
fn its_errors_hold_no_password() {
    for url in ["postgres://u:hunter2@127.0.0.1:1/d", "mysql://u:hunter2@127.0.0.1:x/d", "hunter2"] {
        let (code, printed) = run(url, &["status"]);
        assert_eq!(code, Some(1), "{printed}");
        assert!(printed.contains("can't connect") && !printed.contains("hunter2"), "{printed}");
    }
    assert_eq!(run("sqlite::memory:", &["status", "--table-prefix", "A-"]).0, Some(1));
}
