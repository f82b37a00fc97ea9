//! Tests that acknowledged changes survive a kill of the server.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::Value;

use super::program::{Home, Server, wait_for};

const WRITERS: usize = 4;
/// Number of keys after which the server is killed.
const KEYS_BEFORE_KILL: usize = 20;
/// Limit for the keys of a writer. A writer that reaches it was not stopped by the kill.
const MAX_KEYS: usize = 2_000;

#[test]
fn acknowledged_changes_survive_a_kill() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();

    let created = home.create_key(&server, &["--scope", "read"]);
    let (old_id, old_secret) = (text(&created["key"]["id"]), text(&created["secret"]));
    assert_eq!(home.validate(&server, &old_secret), (0, "REASON_VALID".into()));

    let rotated = home.json(&server, &["key", "rotate", &old_id, "--overlap", "1h"]);
    let (new_id, new_secret) = (text(&rotated["key"]["id"]), text(&rotated["secret"]));
    assert_eq!(home.validate(&server, &old_secret), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &new_secret), (0, "REASON_VALID".into()));

    home.json(&server, &["key", "revoke", &old_id, "--reason", "leaked"]);
    let kept = home.create_key(&server, &[]);
    let deleted = home.create_key(&server, &[]);
    home.json(&server, &["key", "delete", &text(&deleted["key"]["id"])]);
    server.signal(Signal::KILL);
    assert_eq!(server.ended(), None);

    let server = home.serve(&[]);
    assert_eq!(home.validate(&server, &old_secret), (3, "REASON_REVOKED".into()));
    assert_eq!(home.validate(&server, &new_secret), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &text(&kept["secret"])), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &text(&deleted["secret"])), (3, "REASON_NOT_FOUND".into()));
    let listed = home.json(&server, &["key", "list", "--owner", "o"]);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 3);
    let old = home.json(&server, &["key", "get", &old_id]);
    assert_eq!(old["key"]["replacedBy"], new_id.as_str());
    assert_eq!(old["key"]["revokeReason"], "leaked");
}

/// Creates keys until the server stops responding. Returns the secrets of the acknowledged keys.
fn create_until_killed(home: &Home, server: &Server, acknowledged: &AtomicUsize) -> Vec<String> {
    let mut secrets = Vec::new();
    while secrets.len() < MAX_KEYS {
        let create = ["-o", "json", "key", "create", "--name", "n", "--owner", "o"];
        let done = home.call(server, &create);
        if done.status != 0 {
            return secrets;
        }
        let response: Value = serde_json::from_str(&done.stdout).unwrap();
        secrets.push(response["secret"].as_str().unwrap().to_owned());
        acknowledged.fetch_add(1, Ordering::SeqCst);
    }
    panic!("the server was not killed");
}

#[test]
fn acknowledged_keys_survive_kills_during_concurrent_changes() {
    let home = Home::new();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut server = home.serve(&[]);
        let count = AtomicUsize::new(0);
        let created: Vec<String> = std::thread::scope(|scope| {
            let create = || create_until_killed(&home, &server, &count);
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(create)).collect();
            wait_for("some keys", || (count.load(Ordering::SeqCst) >= KEYS_BEFORE_KILL).then_some(()));
            server.signal(Signal::KILL);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        server.ended();
        acknowledged.extend(created);
        let server = home.serve(&[]);
        for secret in &acknowledged {
            assert_eq!(home.validate(&server, secret).0, 0, "lost in round {round}");
        }
    }
}
