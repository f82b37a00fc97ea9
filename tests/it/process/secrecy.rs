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
fn neither_secrets_nor_hashes_nor_tokens_are_logged_or_stored() {
    let home = Home::new();
    // The URL of the cache has a password, which redis-server requires.
    let redis = Redis::Alone.start(&["--requirepass", PASSWORD]);
    let cache = redis.url.replacen("redis://", &format!("redis://:{PASSWORD}@"), 1);
    for (format, cache) in [("text", String::new()), ("json", cache)] {
        let format = format!("telemetry.log_format={format}");
        let cache = format!("cache.redis.url={cache}");
        let mut server = home.serve(&["telemetry.log_filter=trace,h2=trace", &format, &cache]);
        let created =
            home.json(&server, &["key", "create", "--name", "n", "--owner", "o", "--scope", "read"]);
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
        // The row is sent twice in one stream. One is stored, and the other rejected.
        std::fs::write(home.path().join("keys.jsonl"), format!("{row}{row}")).unwrap();
        let done = home.run(&["import", "--from", "keys.jsonl", "--addr", &server.address]);
        assert_eq!(done.stdout.lines().next(), Some("1 imported, 1 already stored, 0 rejected"));
        assert!(!done.stderr.contains(&hash), "{}", done.stderr);
        home.json(&server, &["key", "list"]);
        home.json(&server, &["key", "revoke", &id]);
        assert_eq!(home.validate(&server, &secrets[0]).0, 3);
        assert_eq!(home.validate(&server, "kv_not_a_key_but_secret_all_the_same").0, 3);
        assert_ne!(home.run(&["key", "get", "nonsense", "--addr", &server.address]).status, 0);
        server.signal(Signal::TERM);
        assert_eq!(server.ended(), Some(0));

        let printed = [bytes_of_files(home.path(), "std"), home.read("stdout").into_bytes()].concat();
        assert!(contains(&printed, b"TRACE") && contains(&printed, b"keyvouch.v1.KeyStore/CreateKey"));
        let token = home.read("keyvouch.admin-token").trim().to_owned();
        assert!(!contains(&printed, PASSWORD.as_bytes()));
        for form in secrets.iter().chain([&token, &imported]).flat_map(|secret| forms(secret)) {
            assert!(!contains(&printed, form.as_bytes()), "the log shows {form}");
        }
        assert!(!contains(&printed, b"not_a_key_but_secret_all_the_same"));

        let stored = bytes_of_files(home.path(), "keyvouch.db");
        assert!(contains(&stored, KeyHash::of(&secrets[0]).as_bytes()), "the digest is what is stored");
        for secret in &secrets {
            assert!(!contains(&stored, &secret.as_bytes()["kv_".len()..]), "the database holds a secret");
        }
    }
}
