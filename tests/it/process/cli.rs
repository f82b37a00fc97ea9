//! Tests of the commands, their output and their exit statuses.

use super::program::Home;

#[test]
fn validate_tells_by_its_exit_status() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o", "--scope", "read"]);
    let secret = created["secret"].as_str().unwrap();
    std::fs::write(home.path().join("key"), format!("{secret}\n")).unwrap();
    let validate = |more: &[&str]| {
        let base = ["validate", "--addr", &server.address, "--key-file", "key"];
        home.run(&[&base[..], more].concat())
    };
    let allowed = validate(&["--scope", "read"]);
    assert_eq!((allowed.status, allowed.stdout.contains("allowed")), (0, true));
    let denied = validate(&["--scope", "write"]);
    assert_eq!((denied.status, denied.stdout.contains("denied: insufficient scope")), (3, true));
    assert_eq!(validate(&["--scope", "write", "--scope", "read", "--any"]).status, 0);
    assert_eq!(home.run(&["validate", "--addr", "127.0.0.1:1", "--key-file", "key"]).status, 1);
    assert_eq!(home.run(&["validate", "--addr", &server.address, "--key-file", "nowhere"]).status, 1);
    let empty = home.run(&["validate", "--addr", &server.address]);
    assert_eq!((empty.status, empty.stderr.contains("standard input is empty")), (1, true));
    assert_eq!(home.run(&["validate", secret]).status, 2, "a key is no argument");
}

#[test]
fn keys_are_administered_from_the_shell() {
    let home = Home::new();
    let server = home.serve(&[]);
    let create = [
        "key",
        "create",
        "--name",
        "n",
        "--owner",
        "o",
        "--description",
        "d",
        "--scope",
        "a",
        "--scope",
        "b",
        "--metadata",
        "k=v=w",
        "--prefix",
        "kv_",
        "--ttl",
        "30d",
        "--addr",
        &server.address,
    ];
    let created = home.run(&create);
    assert_eq!(created.status, 0, "{}", created.stderr);
    for shown in ["secret: kv_", "a b", "k=v=w", "active"] {
        assert!(created.stdout.contains(shown), "{shown}: {}", created.stdout);
    }
    let id = created.stdout.lines().next().unwrap().split_whitespace().nth(1).unwrap().to_owned();

    let updated =
        home.json(&server, &["key", "update", &id, "--name", "m", "--no-scopes", "--never-expires"]);
    assert_eq!(updated["key"]["name"], "m");
    assert_eq!(updated["key"]["scopes"], serde_json::json!([]));
    assert!(updated["key"].get("expireTime").is_none());
    assert_eq!(updated["key"]["description"], "d");
    let late = home.run(&[
        "key",
        "update",
        &id,
        "--name",
        "x",
        "--expected-revision",
        "1",
        "--addr",
        &server.address,
    ]);
    assert_eq!((late.status, late.stderr.contains("REVISION_MISMATCH")), (1, true), "{}", late.stderr);
    assert_eq!(home.run(&["key", "update", &id, "--addr", &server.address]).status, 1);

    for _ in 0..2 {
        home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    }
    let list = |more: &[&str]| home.run(&[&["key", "list", "--addr", &server.address], more].concat()).stdout;
    assert!(list(&["--page-size", "2"]).contains("--page-token "));
    assert_eq!(list(&["--all"]).lines().count(), 3);
    assert!(list(&["--state", "revoked"]).contains("no keys"));
    let stream = home.run(&["-o", "json", "key", "list", "--all", "--addr", &server.address]).stdout;
    assert!(stream.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));

    assert!(home.run(&["key", "revoke", &id, "--addr", &server.address]).stdout.contains("revoked"));
    assert!(home.run(&["key", "delete", &id, "--addr", &server.address]).stdout.contains("deleted"));
    let gone = home.run(&["key", "get", &id, "--addr", &server.address]);
    assert_eq!((gone.status, gone.stderr.contains("KEY_NOT_FOUND")), (1, true), "{}", gone.stderr);
}

#[test]
fn settings_are_checked_and_shown_without_secrets() {
    let home = Home::new();
    std::fs::write(home.path().join("kv.toml"), "[admin]\ntokens = [\"root:hunter2-hunter2-hunter2\"]\n")
        .unwrap();
    let shown = home.run(&["config", "show", "--config", "kv.toml", "--set", "keys.prefix=a_,b_"]);
    assert_eq!(shown.status, 0, "{}", shown.stderr);
    assert!(shown.stdout.contains("prefix = [\"a_\", \"b_\"]") && !shown.stdout.contains("hunter2"));
    assert_eq!(home.run(&["config", "check", "--config", "kv.toml"]).status, 0);
    let unknown = home.run(&["config", "check", "--set", "server.lisen=x"]);
    assert_eq!((unknown.status, unknown.stderr.contains("did you mean `server.listen`?")), (1, true));
    let variable = home.command(&["config", "check"]).env("KEYVOUCH__KEYS__PREFIXX", "x").output().unwrap();
    assert!(String::from_utf8_lossy(&variable.stderr).contains("did you mean `keys.prefix`?"));
    std::fs::write(home.path().join("bad.toml"), "[admin]\ntokens = [\"hunter2\"]\n").unwrap();
    let bad = home.run(&["config", "check", "--config", "bad.toml"]);
    assert_eq!((bad.status, bad.stderr.contains("hunter2")), (1, false), "{}", bad.stderr);
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let home = Home::new();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    for command in [&["healthcheck"][..], &["key", "list"], &["key", "get", "x"]] {
        let done = home.run(&[command, &["--addr", &address, "--timeout", "200ms"]].concat());
        assert_eq!(done.status, 1, "{command:?}");
    }
}

#[test]
fn a_secret_that_could_not_be_printed_is_told() {
    let home = Home::new();
    let server = home.serve(&[]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let create = ["key", "create", "--name", "n", "--owner", "o", "--addr", &server.address];
    let done = home.command(&create).stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("its secret could not be printed"));
}

#[test]
fn the_version_is_that_of_the_package() {
    let home = Home::new();
    assert_eq!(home.run(&["version"]).stdout.trim(), env!("CARGO_PKG_VERSION"));
    assert!(home.run(&["-o", "json", "version"]).stdout.contains("\"version\""));
}

#[test]
fn a_token_that_nobody_named_is_found_beside_the_server_alone() {
    let home = Home::new();
    let server = home.serve(&[]);
    let elsewhere = Home::new();
    let refused = elsewhere.run(&["key", "list", "--addr", &server.address]);
    assert_eq!((refused.status, refused.stderr.contains("--token-file")), (1, true), "{}", refused.stderr);
    let named = home.path().join("keyvouch.admin-token");
    let named = named.to_str().unwrap();
    assert_eq!(elsewhere.run(&["key", "list", "--addr", &server.address, "--token-file", named]).status, 0);
}

#[test]
fn keys_are_not_deleted_by_the_way() {
    let home = Home::new();
    let server = home.serve(&[]);
    home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    drop(server);
    let refused = home.run(&["migrate", "down"]);
    assert!(refused.status == 1 && refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert_eq!(home.run(&["migrate", "down", "--dry-run"]).status, 0);
    assert_eq!(home.run(&["migrate", "status"]).status, 0);
    assert_eq!(home.run(&["migrate", "down", "--steps", "2", "--yes"]).status, 0);
    assert_eq!(home.run(&["migrate", "status"]).status, 3);
    assert_eq!(home.run(&["migrate", "up"]).status, 0);
    assert_eq!(home.run(&["migrate", "down"]).status, 0, "there is nothing to lose");
}

#[test]
fn the_audit_trail_is_read_from_the_shell() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    let id = created["key"]["id"].as_str().unwrap();
    home.json(&server, &["key", "update", id, "--name", "m", "--description", "d"]);
    home.json(&server, &["key", "delete", id]);
    let trail = home.run(&["events", "--key", id, "--addr", &server.address]);
    assert_eq!(trail.status, 0, "{}", trail.stderr);
    for shown in ["deleted", "updated: name description", "created", "token:first-start", id] {
        assert!(trail.stdout.contains(shown), "{shown}: {}", trail.stdout);
    }
    let page = home.json(&server, &["events", "--owner", "o", "--page-size", "2"]);
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    let token = page["nextPageToken"].as_str().unwrap();
    let rest = home.json(&server, &["events", "--owner", "o", "--page-size", "2", "--page-token", token]);
    assert_eq!(rest["events"][0]["kind"], "EVENT_KIND_CREATED");
    assert!(home.run(&["events", "--owner", "x", "--addr", &server.address]).stdout.contains("no events"));
}

#[test]
fn expired_keys_are_pruned_by_hand_or_by_the_server() {
    let home = Home::new();
    let server = home.serve(&["prune.expired_for=1h", "prune.interval=100ms"]);
    let names = || {
        let listed = home.json(&server, &["key", "list"]);
        let keys = listed["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let row = |name: &str, expire_time: &str| {
        let hash = data_encoding::HEXLOWER.encode(keyvouch::domain::KeyHash::of(name).as_bytes());
        serde_json::json!({ "hash": hash, "name": name, "owner_id": "o", "expire_time": expire_time })
            .to_string()
    };
    let soon = keyvouch::domain::Clock::now(&keyvouch::domain::SystemClock).as_micros() / 1_000_000 - 60;
    let just_now = prost_types::Timestamp { seconds: soon, nanos: 0 }.to_string();
    let rows = [
        row("long ago", "2020-01-01T00:00:00Z"),
        row("just now", &just_now),
        row("later", "2100-01-01T00:00:00Z"),
    ];
    std::fs::write(home.path().join("keys.jsonl"), rows.join("\n")).unwrap();
    assert_eq!(home.run(&["import", "--from", "keys.jsonl", "--addr", &server.address]).status, 0);
    super::program::wait_for("the server to prune", || {
        (!names().contains(&"long ago".to_owned())).then_some(())
    });
    assert_eq!(names().len(), 2);
    let trail = home.run(&["events", "--addr", &server.address]).stdout;
    assert!(trail.contains("system:prune"), "{trail}");

    let future = home.run(&["prune", "--expired-before", "2050-01-01T00:00:00Z", "--addr", &server.address]);
    assert!(future.status == 1 && future.stderr.contains("must not be in the future"), "{}", future.stderr);
    let prune = |more: &[&str]| {
        let base = ["prune", "--expired-before", just_now.as_str()];
        home.json(&server, &[&base[..], more].concat())["deleted"].as_u64().unwrap()
    };
    assert_eq!(prune(&["--dry-run"]), 1);
    assert_eq!(names().len(), 2);
    assert_eq!(prune(&[]), 1);
    assert_eq!(names(), ["later"]);
}

/// The command sends its credential, from a named or a discovered file, if the call requires one.
#[test]
fn validate_can_ask_for_less_staleness() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.json(&server, &["key", "create", "--name", "n", "--owner", "o"]);
    let secret = created["secret"].as_str().unwrap();
    let ask = |arguments: &[&str]| {
        let all = [&["--output", "json", "validate", "--addr", &server.address], arguments].concat();
        let done = home.run_with_input(&all, secret);
        assert_eq!(done.status, 0, "{}", done.stderr);
        let answer: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        answer["freshness"]["tier"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(&[]), "TIER_LOCAL_CACHE");
    assert_eq!(ask(&["--max-staleness", "0s"]), "TIER_STORE");
    let named = ["--token-file", "keyvouch.admin-token", "--max-staleness", "100ms"];
    assert!(["TIER_LOCAL_CACHE", "TIER_STORE"].contains(&ask(&named).as_str()));
}

#[test]
fn a_profile_names_a_server_and_its_credential() {
    let home = Home::new();
    let server = home.serve(&[]);
    let profiles = home.path().join("profiles.toml");
    let text = format!("[here]\naddr = '{}'\ntoken_file = 'keyvouch.admin-token'\n", server.address);
    std::fs::write(&profiles, text).unwrap();
    let profiles = profiles.display().to_string();
    let done = home.run(&["key", "list", "--profile", "here", "--profiles", &profiles]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let done = home.run(&["key", "list", "--profile", "there", "--profiles", &profiles]);
    assert!(done.status == 1 && done.stderr.contains("it has: here"), "{}", done.stderr);
}

#[test]
fn completions_and_manual_pages_know_the_commands() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let done = home.run(&["completions", shell]);
        assert!(done.status == 0 && done.stdout.contains("healthcheck"), "{shell}: {}", done.stderr);
    }
    let folder = home.path().join("man");
    let done = home.run(&["man", folder.to_str().unwrap()]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    for page in ["keyvouch.1", "keyvouch-serve.1", "keyvouch-key-create.1"] {
        let page = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(page.contains(".TH"), "{page}");
    }
}
