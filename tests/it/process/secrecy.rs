//! Tests that secrets are never printed, even with the most verbose logs.

use data_encoding::{BASE64, HEXLOWER};
use keyvouch::domain::KeyHash;
use rustix::process::Signal;

use super::program::{Home, bytes_of_files};
use crate::redis_servers::Redis;

const PASSWORD: &str = "hunter2-of-the-cache";

/// Returns every form in which the secret or its digest could be printed.
fn forms(secret: &str) -> Vec<String> {
    let hash = KeyHash::of(secret);
    let decimal: Vec<_> = hash.as_bytes().iter().map(ToString::to_string).collect();
    vec![
        secret.to_owned(),
        // The body alone, without the prefix.
        secret.rsplit('_').next().unwrap().to_owned(),
        HEXLOWER.encode(hash.as_bytes()),
        BASE64.encode(hash.as_bytes()),
        decimal.join(", "),
    ]
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}

#[test]
fn secrets_hashes_and_tokens_are_neither_logged_nor_stored() {
    let home = Home::new();
    // The URL of the cache has a password, which redis-server requires.
    let redis = Redis::Alone.start(&["--requirepass", PASSWORD]);
    let cache = redis.url.replacen("redis://", &format!("redis://:{PASSWORD}@"), 1);
    for (format, cache) in [("text", String::new()), ("json", cache)] {
        let format = format!("telemetry.log_format={format}");
        let cache = format!("cache.redis.url={cache}");
        let mut server = home.serve(&["telemetry.log_filter=trace,h2=trace", &format, &cache]);
        let created = home.create_key(&server, &["--scope", "read"]);
        let id = created["key"]["id"].as_str().unwrap().to_owned();
        let rotated = home.json(&server, &["key", "rotate", &id, "--overlap", "1h"]);
        let secrets =
            [&created["secret"], &rotated["secret"]].map(|secret| secret.as_str().unwrap().to_owned());
        for secret in &secrets {
            assert_eq!(home.validate(&server, secret).0, 0);
        }
        let imported = format!("kv_{format:_>43}");
        let hash = HEXLOWER.encode(KeyHash::of(&imported).as_bytes());
        let row = format!("{{\"hash\": \"{hash}\", \"name\": \"n\", \"owner_id\": \"o\"}}\n");
        // The row is sent twice in one stream. One key is stored, and the other reported as already stored.
        std::fs::write(home.path().join("keys.jsonl"), format!("{row}{row}")).unwrap();
        let done = home.call(&server, &["-o", "json", "import", "--from", "keys.jsonl"]);
        let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!((&report["imported"], &report["alreadyThere"]), (&1.into(), &1.into()));
        for output in [&done.stdout, &done.stderr] {
            assert!(!output.contains(&hash), "{output}");
        }
        home.json(&server, &["key", "list"]);
        home.json(&server, &["key", "revoke", &id]);
        assert_eq!(home.validate(&server, &secrets[0]).0, 3);
        assert_eq!(home.validate(&server, "kv_not_a_valid_key_but_still_secret").0, 3);
        assert_ne!(home.call(&server, &["key", "get", "nonsense"]).status, 0);
        server.signal(Signal::TERM);
        assert_eq!(server.ended(), Some(0));

        let printed = [bytes_of_files(home.path(), "std"), home.read("stdout").into_bytes()].concat();
        assert!(contains(&printed, b"TRACE") && contains(&printed, b"keyvouch.v1.KeyStore/CreateKey"));
        let token = home.read("keyvouch.admin-token").trim().to_owned();
        assert!(!contains(&printed, PASSWORD.as_bytes()));
        for form in secrets.iter().chain([&token, &imported]).flat_map(|secret| forms(secret)) {
            assert!(!contains(&printed, form.as_bytes()), "the output has {form}");
        }
        assert!(!contains(&printed, b"not_a_valid_key_but_still_secret"));

        let stored = bytes_of_files(home.path(), "keyvouch.db");
        assert!(contains(&stored, KeyHash::of(&secrets[0]).as_bytes()), "the digest must be stored");
        for secret in &secrets {
            assert!(!contains(&stored, &secret.as_bytes()["kv_".len()..]), "the database has a secret");
        }
    }
}
