//! Tests from the first key to a killed server that restarts.

use super::program::Home;
use rustix::process::Signal;

#[test]
fn what_was_acknowledged_survives_a_killed_server() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();

    let created =
        home.json(&server, &["key", "create", "--name", "first", "--owner", "me", "--scope", "read"]);
    let (old_id, old_secret) = (text(&created["key"]["id"]), text(&created["secret"]));
    assert_eq!(home.validate(&server, &old_secret), (0, "REASON_VALID".into()));

    let rotated = home.json(&server, &["key", "rotate", &old_id, "--overlap", "1h"]);
    let (new_id, new_secret) = (text(&rotated["key"]["id"]), text(&rotated["secret"]));
    assert_eq!(home.validate(&server, &old_secret), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &new_secret), (0, "REASON_VALID".into()));

    home.json(&server, &["key", "revoke", &old_id, "--reason", "leaked"]);
    let kept = home.json(&server, &["key", "create", "--name", "kept", "--owner", "me"]);
    let deleted = home.json(&server, &["key", "create", "--name", "deleted", "--owner", "me"]);
    home.json(&server, &["key", "delete", &text(&deleted["key"]["id"])]);
    server.signal(Signal::KILL);
    assert_eq!(server.ended(), None);

    let server = home.serve(&[]);
    assert_eq!(home.validate(&server, &old_secret), (3, "REASON_REVOKED".into()));
    assert_eq!(home.validate(&server, &new_secret), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &text(&kept["secret"])), (0, "REASON_VALID".into()));
    assert_eq!(home.validate(&server, &text(&deleted["secret"])), (3, "REASON_NOT_FOUND".into()));
    let listed = home.json(&server, &["key", "list", "--owner", "me"]);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 3);
    let old = home.json(&server, &["key", "get", &old_id]);
    assert_eq!(old["key"]["replacedBy"], new_id.as_str());
    assert_eq!(old["key"]["revokeReason"], "leaked");
}

#[test]
fn every_acknowledged_key_is_there_after_kills_in_the_middle_of_work() {
    let home = Home::new();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut server = home.serve(&[]);
        let stop = std::sync::atomic::AtomicUsize::new(0);
        let created: Vec<String> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut secrets = Vec::new();
                        loop {
                            let arguments =
                                ["-o", "json", "key", "create", "--name", "n", "--owner", "o", "--addr"];
                            let done = home.run(&[&arguments[..], &[&server.address]].concat());
                            if done.status != 0 {
                                return secrets;
                            }
                            let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
                            secrets.push(answer["secret"].as_str().unwrap().to_owned());
                            stop.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            super::program::wait_for("some keys", || {
                (stop.load(std::sync::atomic::Ordering::SeqCst) >= 20).then_some(())
            });
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
