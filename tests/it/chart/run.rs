//! Runs the containers of the chart with exactly the commands, variables, `ConfigMap` and Secrets that it
//! renders.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::{ConnectionTrait as _, Database};
use serde_json::{Value, json};

use super::alerts::missing_metrics;
use super::helm::{Helm, text};
use super::kubelet::{Node, Secrets};
use crate::databases::Kind;
use crate::process::program::{Home, wait_for};
use crate::redis_servers::Redis;
use crate::server::tls::{Authority, Pair};
use crate::support::TOKEN;

/// Returns a loopback address that no other test uses, because the chart's ports are fixed.
fn address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = (std::process::id() % 50_000) * 256 + NEXT.fetch_add(1, Ordering::Relaxed) % 256;
    let [_, b, c, d] = number.to_be_bytes();
    Ipv4Addr::new(127, b.wrapping_add(16), c, d)
}

/// Installs a release of `case` on a node of its own.
fn install(case: &str, arguments: &[&str], secrets: &[(&str, &str, &str)]) -> Node {
    let address = address();
    let listen = format!("listenAddress={address}");
    let objects = Helm::Four.render(case, &[&["--set", &listen], arguments].concat(), &[]);
    let mut all = Secrets::new();
    for (name, key, value) in secrets {
        all.entry((*name).to_owned()).or_default().insert((*key).to_owned(), (*value).to_owned());
    }
    Node { objects, secrets: all, address }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn told(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// Returns the URL of a database's owner, and of a user who can only read and write its tables.
async fn database_with_two_users() -> (String, String) {
    let owner = Kind::Postgres.database().await;
    let connection = Database::connect(&owner).await.unwrap();
    let user = format!("server_{}", owner.rsplit('_').next().unwrap());
    for statement in [
        format!("CREATE ROLE {user} LOGIN"),
        format!("ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {user}"),
        format!("ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO {user}"),
    ] {
        connection.execute_unprepared(&statement).await.unwrap();
    }
    connection.close().await.unwrap();
    let server = owner.replacen("postgres@", &format!("{user}@"), 1);
    (owner, server)
}

fn postgres_and_redis() -> Node {
    let (owner, server) = block_on(database_with_two_users());
    let redis = crate::redis_servers::shared_url(Redis::Alone);
    install(
        "postgres-redis-ha",
        // No collector listens at this address, which must not delay anything.
        &["--set", "extraEnv[0].value=http://127.0.0.1:9"],
        &[
            ("keyvouch-database", "url", &server),
            ("keyvouch-database-owner", "owner-url", &owner),
            ("keyvouch-redis", "url", &redis),
            ("keyvouch-admin", "tokens", &format!("ops:{TOKEN}\n")),
        ],
    )
}

/// Creates a key as an administrator does, and returns its secret.
fn create_key(options: &[&str]) -> String {
    let home = Home::new();
    std::fs::write(home.path().join("token"), TOKEN).unwrap();
    let arguments = ["-o", "json", "key", "create", "--name", "n", "--owner", "o", "--token-file", "token"];
    let created = home.run(&[&arguments[..], options].concat());
    assert_eq!(created.status, 0, "{}", created.stderr);
    let created: Value = serde_json::from_str(&created.stdout).unwrap();
    text(&created["secret"]).to_owned()
}

#[test]
fn on_postgres_and_redis() {
    let node = postgres_and_redis();
    let pod = node.pod();
    let migrate = pod.run(&pod.init_containers()[0]);
    assert!(migrate.status.success(), "{}", told(&migrate));
    let again = pod.run(&pod.init_containers()[0]);
    assert!(again.status.success(), "another pod starts as well: {}", told(&again));

    let mut server = pod.start();
    server.is_ready().unwrap();
    let admin = format!("{}:50052", node.address);
    let secret = create_key(&["--addr", &admin]);
    assert!(secret.starts_with("acme_"), "by config.keys.prefix");
    assert!(!server.log().contains(&secret) && !server.log().contains(TOKEN));
    let public = Home::new().run(&["key", "list", "--addr", &format!("{}:50051", node.address)]);
    assert!(public.stderr.contains("METHOD_UNKNOWN"), "KeyStore has a port of its own: {}", public.stderr);

    let mut tested = node.clone();
    let key = BTreeMap::from([("secret".to_owned(), secret)]);
    tested.secrets.insert("keyvouch-test-key".to_owned(), key);
    let test = tested.test();
    assert_eq!(test.containers().len(), 2);
    for container in test.containers() {
        let outcome = test.run(container);
        assert!(outcome.status.success(), "{}", told(&outcome));
    }
    tested
        .secrets
        .get_mut("keyvouch-test-key")
        .unwrap()
        .insert("secret".to_owned(), "acme_nothing".to_owned());
    let test = tested.test();
    assert!(!test.run(&test.containers()[1]).status.success(), "helm test can fail");
    server.end();
}

/// A pod does not start if the name of any variable lacks a letter.
#[test]
fn a_typo_in_a_variable_s_name_is_found() {
    let node = postgres_and_redis();
    let pod = node.pod();
    let migrate = &pod.init_containers()[0];
    assert!(pod.run(migrate).status.success());
    let mut mistyped = migrate.clone();
    mistyped["env"][0]["name"] = json!("KEYVOUCH__STORE__UR");
    let outcome = pod.run(&mistyped);
    assert!(!outcome.status.success() && told(&outcome).contains("store.ur"), "{}", told(&outcome));
    for index in [0, 1] {
        let mut pod = node.pod();
        let mut name = String::new();
        pod.change(|spec| {
            let variable = &mut spec["containers"][0]["env"][index]["name"];
            text(variable).clone_into(&mut name);
            assert!(name.starts_with("KEYVOUCH__"));
            name.pop();
            *variable = json!(name);
        });
        let log = pod.start().is_ready().unwrap_err();
        let setting = name.trim_start_matches("KEYVOUCH__").to_lowercase().replace("__", ".");
        assert!(log.contains(&setting), "{name}: {log}");
    }
}

/// The server is administered by `kubectl exec`, with nothing but the chart.
#[test]
fn on_sqlite_by_default() {
    let node = install("default", &[], &[]);
    let mut server = node.pod().start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    let socket = ["--addr", "unix:/run/keyvouch/admin.sock"];
    let created =
        server.exec(&[&["-o", "json", "key", "create", "--name", "n", "--owner", "o"][..], &socket].concat());
    assert!(created.status.success(), "{}", told(&created));
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let address = format!("{}:50051", node.address);
    let done = Home::new().run_with_input(&["validate", "--addr", &address], text(&created["secret"]));
    assert_eq!(done.status, 0, "{}", done.stderr);
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", told(&outcome));
    server.end();
}

#[test]
fn on_mariadb_with_a_migration_job() {
    let url = block_on(Kind::MariaDb.database());
    let node = install(
        "mysql",
        &[],
        &[
            ("keyvouch-database", "url", &url),
            ("keyvouch-database-replica", "url", &url),
            ("keyvouch-admin", "tokens", &format!("ops:{TOKEN}\n")),
        ],
    );
    let log = node.pod().start().is_ready().unwrap_err();
    assert!(log.contains("keyvouch migrate up"), "without the job it waits: {log}");
    let job = node.job();
    let migrated = job.run(&job.containers()[0]);
    assert!(migrated.status.success(), "{}", told(&migrated));
    let mut server = node.pod().start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    create_key(&["--addr", &format!("{}:50052", node.address)]);
    server.end();
}

#[test]
fn on_a_redis_cluster_alone() {
    let servers = Redis::Cluster.start(&["--appendonly", "yes"]);
    let settings = [
        "--set",
        "config.store.redis_ca_file=",
        "--set-json",
        "extraVolumes=[]",
        "--set-json",
        "extraVolumeMounts=[]",
    ];
    let node = install(
        "redis-cluster",
        &settings,
        &[
            ("keyvouch-redis-cluster", "url", &servers.url),
            ("keyvouch-admin", "tokens", &format!("ops:{TOKEN}\n")),
        ],
    );
    let mut server = node.pod().start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    create_key(&["--addr", &format!("{}:50052", node.address)]);
    server.end();
}

/// TLS has certificates on both sides. The server exports all metrics that alerts and panels query.
#[test]
fn with_certificates_on_both_sides() {
    const SERVICE: &str = "kv-keyvouch.prod.svc";
    let (servers, clients) = (Authority::new(), Authority::new());
    let Pair(certificate, key) = servers.issue(SERVICE, 4096);
    let Pair(admin, admin_key) = clients.issue("spiffe://example.com/ns/platform/sa/admin", 4096);
    let Pair(test, test_key) = clients.issue("test.example.com", 4096);
    let url = block_on(Kind::Postgres.database());
    let mut node = install(
        "mtls-cert-manager",
        &["--set", "config.server.tls.reload_interval=50ms"],
        &[
            ("keyvouch-database", "url", &url),
            ("kv-keyvouch-tls", "tls.crt", &certificate),
            ("kv-keyvouch-tls", "tls.key", &key),
            ("kv-keyvouch-tls", "ca.crt", &servers.pem()),
            ("clients-ca", "ca.crt", &clients.pem()),
            ("keyvouch-test-tls", "tls.crt", &test),
            ("keyvouch-test-tls", "tls.key", &test_key),
        ],
    );
    let home = Home::new();
    for (name, text) in [("ca", servers.pem()), ("admin", admin), ("admin.key", admin_key)] {
        std::fs::write(home.path().join(name), text).unwrap();
    }
    let migrate = node.pod();
    assert!(migrate.run(&migrate.init_containers()[0]).status.success());
    let created = {
        let mut server = node.pod().start();
        server.is_ready().unwrap_or_else(|log| panic!("{log}"));
        let address = format!("https://{}:50052", node.address);
        let as_admin = ["--addr", &address, "--ca-file", "ca", "--server-name", SERVICE];
        let own = ["--cert-file", "admin", "--cert-key-file", "admin.key", "--scope", "keyvouch.validate"];
        let create = ["-o", "json", "key", "create", "--name", "n", "--owner", "o"];
        let created = home.run(&[&create[..], &as_admin, &own].concat());
        assert_eq!(created.status, 0, "{}", created.stderr);
        server.end();
        serde_json::from_str::<Value>(&created.stdout).unwrap()
    };
    let secret = text(&created["secret"]).to_owned();
    node.secrets
        .insert("keyvouch-test-credential".to_owned(), BTreeMap::from([("token".to_owned(), secret)]));

    let mut server = node.pod().start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", told(&outcome));
    // Another replica makes a change, which this one reads, and a client connects without TLS.
    let mut other = node.clone();
    other.move_to(address());
    let mut second = other.pod().start();
    second.is_ready().unwrap_or_else(|log| panic!("{log}"));
    let address = format!("https://{}:50052", other.address);
    let as_admin = ["--addr", &address, "--ca-file", "ca", "--server-name", SERVICE];
    let own = ["--cert-file", "admin", "--cert-key-file", "admin.key"];
    let revoke = ["key", "revoke", text(&created["key"]["id"]), "--reason", "leaked"];
    assert_eq!(home.run(&[&revoke[..], &as_admin, &own].concat()).status, 0);
    assert_ne!(home.run(&["healthcheck", "--addr", &format!("{}:50051", node.address)]).status, 0);
    let metrics = json!({ "path": "/metrics", "port": 9464 });
    wait_for("all metrics that are asked for", || {
        let missing = missing_metrics(&node.get(&metrics)?.1);
        if missing.is_empty() { Some(()) } else { None }
    });
    second.end();
    server.end();
}

/// The certificate is provided by the user, and its root is in another file.
#[test]
fn with_a_certificate_of_one_s_own() {
    let servers = Authority::new();
    let Pair(certificate, key) = servers.issue("kv-keyvouch.prod.svc", 4096);
    let url = block_on(Kind::Postgres.database());
    let node = install(
        "tls",
        &[],
        &[
            ("keyvouch-database", "url", &url),
            ("keyvouch-admin", "tokens", &format!("ops:{TOKEN}\n")),
            ("keyvouch-tls", "tls.crt", &certificate),
            ("keyvouch-tls", "tls.key", &key),
            ("company-roots", "roots.pem", &servers.pem()),
        ],
    );
    let pod = node.pod();
    assert!(pod.run(&pod.init_containers()[0]).status.success());
    let mut server = pod.start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", told(&outcome));
    let plain = Home::new().run(&["healthcheck", "--addr", &format!("{}:50051", node.address)]);
    assert_ne!(plain.status, 0, "never plaintext");
    server.end();
}

#[test]
fn in_memory() {
    let node = install("minimal", &[], &[]);
    let mut server = node.pod().start();
    server.is_ready().unwrap_or_else(|log| panic!("{log}"));
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", told(&outcome));
    server.end();
}
