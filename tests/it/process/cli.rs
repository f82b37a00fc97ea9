//! Tests of the commands, their output and their exit statuses.

use keyvouch::domain::{Clock as _, KeyHash, SystemClock};
use serde_json::{Value, json};

use super::program::{Home, wait_for};

/// Returns the value of a row of a command's text output.
fn field<'o>(stdout: &'o str, name: &str) -> Option<&'o str> {
    stdout.lines().find_map(|line| line.trim_start().strip_prefix(name)).map(str::trim)
}

#[test]
fn an_old_name_of_a_setting_is_accepted_with_a_warning() {
    let home = Home::new();
    std::fs::write(home.path().join("kv.toml"), "[store]\nmax_readers = 7\n").unwrap();
    let shown = home.run(&["config", "show", "--config", "kv.toml", "-o", "json"]);
    assert_eq!(shown.status, 0, "{}", shown.stderr);
    let settings: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(settings["store"]["sql"]["max_readers"], 7);
    for part in ["warning: kv.toml: ", "`store.max_readers`", "`store.sql.max_readers`"] {
        assert_eq!(shown.stderr.matches(part).count(), 1, "{}", shown.stderr);
    }
    let both = ["config", "check", "--config", "kv.toml", "--set", "store.sql.max_readers=8"];
    let both = home.run(&both);
    assert_eq!(both.status, 1);
    assert!(both.stderr.contains("`store.max_readers`") && both.stderr.contains("`store.sql.max_readers`"));
}

#[test]
fn validate_reports_the_verdict_by_its_exit_status() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.create_key(&server, &["--scope", "read"]);
    let secret = created["secret"].as_str().unwrap();
    std::fs::write(home.path().join("key"), format!("{secret}\n")).unwrap();
    let validate =
        |more: &[&str]| home.call(&server, &[&["validate", "--key-file", "key"][..], more].concat());
    let allowed = validate(&["--scope", "read"]);
    assert_eq!((allowed.status, field(&allowed.stdout, "verdict")), (0, Some("allowed")));
    let denied = validate(&["--scope", "write"]);
    assert_eq!((denied.status, field(&denied.stdout, "verdict")), (3, Some("denied: insufficient scope")));
    assert_eq!(validate(&["--scope", "write", "--scope", "read", "--any"]).status, 0);
    assert_eq!(home.run(&["validate", "--addr", "127.0.0.1:1", "--key-file", "key"]).status, 1);
    assert_eq!(home.call(&server, &["validate", "--key-file", "nowhere"]).status, 1);
    let empty = home.call(&server, &["validate"]);
    assert_eq!((empty.status, empty.stderr.contains("standard input")), (1, true), "{}", empty.stderr);
    assert_eq!(home.run(&["validate", secret]).status, 2, "a key can't be passed as an argument");
}

#[test]
fn commands_create_read_update_revoke_and_delete_keys() {
    let home = Home::new();
    let server = home.serve(&[]);
    let required = ["key", "create", "--name", "n", "--owner", "o"];
    let scopes = ["--scope", "a", "--scope", "b"];
    let others = ["--description", "d", "--metadata", "k=v=w", "--prefix", "kv_", "--ttl", "30d"];
    let created = home.call(&server, &[&required[..], &scopes, &others].concat());
    assert_eq!(created.status, 0, "{}", created.stderr);
    let shown = |name: &str| field(&created.stdout, name).unwrap_or_else(|| panic!("{}", created.stdout));
    assert!(shown("secret:").starts_with("kv_"), "{}", created.stdout);
    assert_eq!((shown("scopes"), shown("metadata"), shown("state")), ("a b", "k=v=w", "active"));
    let id = shown("id").to_owned();

    let updated =
        home.json(&server, &["key", "update", &id, "--name", "m", "--no-scopes", "--never-expires"]);
    assert_eq!(updated["key"]["name"], "m");
    assert_eq!(updated["key"]["scopes"], json!([]));
    assert!(updated["key"].get("expireTime").is_none());
    assert_eq!(updated["key"]["description"], "d");
    let outdated = home.call(&server, &["key", "update", &id, "--name", "x", "--expected-revision", "1"]);
    assert!(outdated.status == 1 && outdated.stderr.contains("REVISION_MISMATCH"), "{}", outdated.stderr);
    assert_eq!(home.call(&server, &["key", "update", &id]).status, 1, "nothing to update");

    for _ in 0..2 {
        home.create_key(&server, &[]);
    }
    let list = |more: &[&str]| home.call(&server, &[&["key", "list"], more].concat()).stdout;
    assert!(list(&["--page-size", "2"]).contains("--page-token "));
    assert_eq!(list(&["--all"]).lines().count(), 3);
    let revoked = list(&["--state", "revoked"]);
    assert!(revoked.lines().count() == 1 && !revoked.contains(&id), "{revoked}");
    let stream = home.call(&server, &["-o", "json", "key", "list", "--all"]).stdout;
    assert!(stream.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{stream}");

    let revoked = home.call(&server, &["key", "revoke", &id]);
    assert_eq!((revoked.status, field(&revoked.stdout, "state")), (0, Some("revoked")));
    assert_eq!(home.call(&server, &["key", "delete", &id]).status, 0);
    let deleted = home.call(&server, &["key", "get", &id]);
    assert!(deleted.status == 1 && deleted.stderr.contains("KEY_NOT_FOUND"), "{}", deleted.stderr);
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
    assert!(unknown.status == 1 && unknown.stderr.contains("`server.listen`"), "{}", unknown.stderr);
    let variable = home.command(&["config", "check"]).env("KEYVOUCH__KEYS__PREFIXX", "x").output().unwrap();
    assert_eq!(variable.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&variable.stderr).contains("`keys.prefix`"));
    std::fs::write(home.path().join("bad.toml"), "[admin]\ntokens = [\"hunter2\"]\n").unwrap();
    let bad = home.run(&["config", "check", "--config", "bad.toml"]);
    assert_eq!((bad.status, bad.stderr.contains("hunter2")), (1, false), "{}", bad.stderr);
}

#[test]
fn calls_to_a_silent_server_time_out() {
    let home = Home::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for command in [&["healthcheck"][..], &["key", "list"], &["key", "get", "x"]] {
        let done = home.run(&[command, &["--addr", &address, "--timeout", "200ms"]].concat());
        assert_eq!(done.status, 1, "{command:?}");
    }
}

/// The error names the key that was created, so that the user can delete or rotate it.
#[test]
fn a_secret_that_can_not_be_printed_is_an_error_with_the_id_of_its_key() {
    let home = Home::new();
    let server = home.serve(&[]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let create = ["key", "create", "--name", "n", "--owner", "o", "--addr", &server.address];
    let done = home.command(&create).stdout(full).output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    let listed = home.json(&server, &["key", "list"]);
    let id = listed["keys"][0]["id"].as_str().unwrap();
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(stderr.contains(id), "{id}: {stderr}");
}

#[test]
fn version_prints_the_version_of_the_package() {
    let home = Home::new();
    assert_eq!(home.run(&["version"]).stdout.trim(), env!("CARGO_PKG_VERSION"));
    let printed: Value = serde_json::from_str(&home.run(&["-o", "json", "version"]).stdout).unwrap();
    assert_eq!(printed["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_default_token_file_is_read_from_the_working_directory_only() {
    let home = Home::new();
    let server = home.serve(&[]);
    let elsewhere = Home::new();
    let rejected = elsewhere.call(&server, &["key", "list"]);
    assert!(rejected.status == 1 && rejected.stderr.contains("--token-file"), "{}", rejected.stderr);
    let file = home.path().join("keyvouch.admin-token");
    let file = file.to_str().unwrap();
    assert_eq!(elsewhere.call(&server, &["key", "list", "--token-file", file]).status, 0);
}

#[test]
fn migrate_down_deletes_keys_only_with_yes() {
    let home = Home::new();
    let server = home.serve(&[]);
    home.create_key(&server, &[]);
    drop(server);
    let rejected = home.run(&["migrate", "down"]);
    assert!(rejected.status == 1 && rejected.stderr.contains("--yes"), "{}", rejected.stderr);
    assert_eq!(home.run(&["migrate", "down", "--dry-run"]).status, 0);
    assert_eq!(home.run(&["migrate", "status"]).status, 0);
    assert_eq!(home.run(&["migrate", "down", "--steps", "2", "--yes"]).status, 0);
    assert_eq!(home.run(&["migrate", "status"]).status, 3);
    assert_eq!(home.run(&["migrate", "up"]).status, 0);
    assert_eq!(home.run(&["migrate", "down"]).status, 0, "--yes is not needed without keys");
}

#[test]
fn events_lists_the_audit_trail() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.create_key(&server, &[]);
    let id = created["key"]["id"].as_str().unwrap();
    home.json(&server, &["key", "update", id, "--name", "m", "--description", "d"]);
    home.json(&server, &["key", "delete", id]);
    let trail = home.call(&server, &["events", "--key", id]);
    assert_eq!(trail.status, 0, "{}", trail.stderr);
    for shown in ["deleted", "updated: name description", "created", "token:first-start", id] {
        assert!(trail.stdout.contains(shown), "{shown}: {}", trail.stdout);
    }
    let page = home.json(&server, &["events", "--owner", "o", "--page-size", "2"]);
    assert_eq!(page["events"].as_array().unwrap().len(), 2);
    let token = page["nextPageToken"].as_str().unwrap();
    let rest = home.json(&server, &["events", "--owner", "o", "--page-size", "2", "--page-token", token]);
    assert_eq!(rest["events"][0]["kind"], "EVENT_KIND_CREATED");
    let none = home.call(&server, &["events", "--owner", "x"]);
    assert!(none.status == 0 && none.stdout.lines().count() == 1, "{}", none.stdout);
}

#[test]
fn expired_keys_are_pruned_by_the_command_and_by_the_server() {
    let home = Home::new();
    let server = home.serve(&["prune.expired_for=1h", "prune.interval=100ms"]);
    let names = || {
        let listed = home.json(&server, &["key", "list"]);
        let keys = listed["keys"].as_array().cloned().unwrap_or_default();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let row = |name: &str, expire_time: &str| {
        let hash = data_encoding::HEXLOWER.encode(KeyHash::of(name).as_bytes());
        json!({ "hash": hash, "name": name, "owner_id": "o", "expire_time": expire_time }).to_string()
    };
    let a_minute_ago = SystemClock.now().as_micros() / 1_000_000 - 60;
    let a_minute_ago = prost_types::Timestamp { seconds: a_minute_ago, nanos: 0 }.to_string();
    let rows = [
        row("long ago", "2020-01-01T00:00:00Z"),
        row("a minute ago", &a_minute_ago),
        row("later", "2100-01-01T00:00:00Z"),
    ];
    std::fs::write(home.path().join("keys.jsonl"), rows.join("\n")).unwrap();
    assert_eq!(home.call(&server, &["import", "--from", "keys.jsonl"]).status, 0);
    wait_for("the server to prune", || (!names().contains(&"long ago".to_owned())).then_some(()));
    assert_eq!(names().len(), 2);
    let trail = home.json(&server, &["events"]);
    assert!(
        trail["events"].as_array().unwrap().iter().any(|event| event["actor"] == "system:prune"),
        "{trail}"
    );

    let future = home.call(&server, &["prune", "--expired-before", "2050-01-01T00:00:00Z"]);
    assert!(future.status == 1 && future.stderr.contains("--expired-before"), "{}", future.stderr);
    assert_eq!(names().len(), 2);
    let prune = |more: &[&str]| {
        let arguments = ["prune", "--expired-before", a_minute_ago.as_str()];
        home.json(&server, &[&arguments[..], more].concat())["deleted"].as_u64().unwrap()
    };
    assert_eq!(prune(&["--dry-run"]), 1);
    assert_eq!(names().len(), 2);
    assert_eq!(prune(&[]), 1);
    assert_eq!(names(), ["later"]);
}

/// The command sends its credential, from a named file or the default file, if the call requires one.
#[test]
fn validate_limits_the_staleness_of_its_result() {
    let home = Home::new();
    let server = home.serve(&[]);
    let created = home.create_key(&server, &[]);
    let secret = created["secret"].as_str().unwrap();
    let tier = |arguments: &[&str]| {
        let all = [&["--output", "json", "validate", "--addr", &server.address], arguments].concat();
        let done = home.run_with_input(&all, secret);
        assert_eq!(done.status, 0, "{}", done.stderr);
        let response: Value = serde_json::from_str(&done.stdout).unwrap();
        response["freshness"]["tier"].as_str().unwrap().to_owned()
    };
    assert_eq!(tier(&[]), "TIER_LOCAL_CACHE");
    assert_eq!(tier(&["--max-staleness", "0s"]), "TIER_STORE");
    let with_file = ["--token-file", "keyvouch.admin-token", "--max-staleness", "100ms"];
    assert!(["TIER_LOCAL_CACHE", "TIER_STORE"].contains(&tier(&with_file).as_str()));
}

#[test]
fn a_profile_sets_the_address_and_the_credential() {
    let home = Home::new();
    let server = home.serve(&[]);
    let profiles = home.path().join("profiles.toml");
    let text = format!("[staging]\naddr = '{}'\ntoken_file = 'keyvouch.admin-token'\n", server.address);
    std::fs::write(&profiles, text).unwrap();
    let profiles = profiles.display().to_string();
    let done = home.run(&["key", "list", "--profile", "staging", "--profiles", &profiles]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    let unknown = home.run(&["key", "list", "--profile", "production", "--profiles", &profiles]);
    assert_eq!(unknown.status, 1);
    for named in ["--profile production", &profiles, "staging"] {
        assert!(unknown.stderr.contains(named), "{named}: {}", unknown.stderr);
    }
}

#[test]
fn completions_and_manual_pages_cover_the_commands() {
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
