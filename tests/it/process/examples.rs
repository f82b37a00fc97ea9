//! Runs the examples as programs.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sea_orm::{ConnectionTrait as _, Database};

use super::program::{Home, wait_for};
use crate::databases::Kind;

/// Returns the path of an example. Examples are built beside the tests.
fn example(name: &str) -> PathBuf {
    let example = std::env::current_exe().unwrap().parent().unwrap().join("../examples").join(name);
    assert!(example.exists(), "{} is missing: run scripts/test", example.display());
    example
}

#[test]
fn the_validate_example_reports_the_verdict() {
    let home = Home::new();
    let server = home.serve(&[]);
    let create = ["key", "create", "--name", "n", "--owner", "alice", "--scope", "read"];
    let created = home.json(&server, &create);
    let run = |secret: &str| {
        let output = Command::new(example("validate"))
            .env("KEYVOUCH_URL", format!("http://{}", server.address))
            .env("API_KEY", secret)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (is_allowed, text) = run(created["secret"].as_str().unwrap());
    assert!(is_allowed && text.contains("alice"), "{text}");
    let (is_allowed, text) = run("nonsense");
    assert!(!is_allowed && text.contains("REASON_MALFORMED"), "{text}");
}

#[test]
fn the_list_by_owner_example_lists_the_keys_of_an_owner() {
    let home = Home::new();
    let server = home.serve(&[]);
    for (name, owner) in [("first", "alice"), ("second", "alice"), ("other", "bob")] {
        home.json(&server, &["key", "create", "--name", name, "--owner", owner]);
    }
    let done = Command::new(example("list_by_owner")).arg("alice").current_dir(home.path()).output().unwrap();
    let stdout = String::from_utf8(done.stdout).unwrap();
    let names: Vec<_> = stdout.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(names, ["second", "first"]);
}

/// A process. Dropping it kills the process.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The backend stores keys in files, so they survive a kill of the server.
#[test]
fn the_custom_backend_example_keeps_keys_across_restarts() {
    let home = Home::new();
    let start = || {
        let out = std::fs::File::create(home.path().join("out")).unwrap();
        let process = Command::new(example("custom_backend"))
            .current_dir(home.path())
            .env("KEYVOUCH__SERVER__LISTEN", "127.0.0.1:0")
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = wait_for("the address", || {
            home.read("out")
                .lines()
                .next()?
                .rsplit_once(" listens on ")
                .map(|(_, address)| address.to_owned())
        });
        wait_for("health", || (home.run(&["healthcheck", "--addr", &address]).status == 0).then_some(()));
        (Running(process), address)
    };
    let (server, address) = start();
    let created =
        home.run(&["-o", "json", "key", "create", "--name", "n", "--owner", "o", "--addr", &address]);
    let created: serde_json::Value = serde_json::from_str(&created.stdout).unwrap();
    let id = created["key"]["id"].as_str().unwrap();
    assert!(home.path().join(format!("keys/{id}.json")).exists());
    let validate = |address: &str| {
        home.run_with_input(&["validate", "--addr", address], created["secret"].as_str().unwrap()).status
    };
    assert_eq!(validate(&address), 0);
    drop(server);

    let (_server, address) = start();
    assert_eq!(validate(&address), 0);
    assert_eq!(home.run(&["key", "revoke", id, "--addr", &address]).status, 0);
    assert_eq!(validate(&address), 3);
}

/// The migrator of another program creates its own tables and those of Keyvouch, and a server uses them.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_uses_the_tables_of_the_own_migrator_example() {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let url = kind.database().await;
        let migrate = || Command::new(example("own_migrator")).env("DATABASE_URL", &url).output().unwrap();
        for done in [migrate(), migrate()] {
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let database = Database::connect(&url).await.unwrap();
        database.execute_unprepared("SELECT * FROM note").await.unwrap();
        let settings = [
            format!("store.url={url}"),
            "store.sql.table_prefix=vouch_".into(),
            "store.sql.migrations_table=migration".into(),
        ];
        tokio::task::spawn_blocking(move || {
            let home = Home::new();
            let mut settings: Vec<_> = settings.iter().map(String::as_str).collect();
            settings.push("admin.insecure=true");
            let server = home.serve(&settings);
            home.create_key(&server, &[]);
        })
        .await
        .unwrap();
    }
}
