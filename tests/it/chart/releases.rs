//! Installs releases of the chart and runs their containers, with exactly the commands, variables, `ConfigMap`
//! and Secrets that the chart renders.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::{ConnectionTrait as _, Database};
use serde_json::{Value, json};

use super::alerts::missing_metrics;
use super::helm::{Helm, text};
use super::pods::{Node, Secrets};
use crate::databases::Kind;
use crate::process::program::{Home, wait_for};
use crate::redis_servers::Redis;
use crate::server::certificates::{Authority, Pair};
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

fn text_of(output: &Output) -> String {
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

/// Creates a key with the admin token. Returns its secret.
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
fn a_release_on_postgres_and_redis_serves_calls() {
    let node = postgres_and_redis();
    let pod = node.pod();
    let migrate = pod.run(&pod.init_containers()[0]);
    assert!(migrate.status.success(), "{}", text_of(&migrate));
    let again = pod.run(&pod.init_containers()[0]);
    assert!(again.status.success(), "the migration of a second pod must succeed: {}", text_of(&again));

    let mut server = pod.start();
    server.wait_until_ready();
    let admin = format!("{}:50052", node.address);
    let secret = create_key(&["--addr", &admin]);
    assert!(secret.starts_with("acme_"), "config.keys.prefix must be used");
    assert!(!server.log().contains(&secret) && !server.log().contains(TOKEN));
    let public = Home::new().run(&["key", "list", "--addr", &format!("{}:50051", node.address)]);
    assert!(
        public.stderr.contains("METHOD_UNKNOWN"),
        "KeyStore must be served only on its own port: {}",
        public.stderr
    );

    let mut tested = node.clone();
    let key = BTreeMap::from([("secret".to_owned(), secret)]);
    tested.secrets.insert("keyvouch-test-key".to_owned(), key);
    let test = tested.test();
    assert_eq!(test.containers().len(), 2);
    for container in test.containers() {
        let outcome = test.run(container);
        assert!(outcome.status.success(), "{}", text_of(&outcome));
    }
    tested
        .secrets
        .get_mut("keyvouch-test-key")
        .unwrap()
        .insert("secret".to_owned(), "acme_nothing".to_owned());
    let test = tested.test();
    assert!(!test.run(&test.containers()[1]).status.success(), "helm test must fail with an unknown key");
    server.end();
}

/// A pod fails to start if a letter is missing in the name of any variable.
#[test]
fn a_misspelt_variable_is_an_error_that_names_the_setting() {
    let node = postgres_and_redis();
    let pod = node.pod();
    let migrate = &pod.init_containers()[0];
    assert!(pod.run(migrate).status.success());
    let mut mistyped = migrate.clone();
    mistyped["env"][0]["name"] = json!("KEYVOUCH__STORE__UR");
    let outcome = pod.run(&mistyped);
    assert!(!outcome.status.success() && text_of(&outcome).contains("store.ur"), "{}", text_of(&outcome));
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
        let log = pod.start().try_wait_until_ready().unwrap_err();
        let setting = name.trim_start_matches("KEYVOUCH__").to_lowercase().replace("__", ".");
        assert!(log.contains(&setting), "{name}: {log}");
    }
}

/// Keys are administered through `kubectl exec`, without any further setting.
#[test]
fn a_default_release_on_sqlite_serves_calls() {
    let node = install("default", &[], &[]);
    let mut server = node.pod().start();
    server.wait_until_ready();
    let socket = ["--addr", "unix:/run/keyvouch/admin.sock"];
    let created =
        server.exec(&[&["-o", "json", "key", "create", "--name", "n", "--owner", "o"][..], &socket].concat());
    assert!(created.status.success(), "{}", text_of(&created));
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    let address = format!("{}:50051", node.address);
    let done = Home::new().run_with_input(&["validate", "--addr", &address], text(&created["secret"]));
    assert_eq!(done.status, 0, "{}", done.stderr);
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", text_of(&outcome));
    server.end();
}

#[test]
fn a_release_on_mariadb_is_migrated_by_a_job() {
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
    let log = node.pod().start().try_wait_until_ready().unwrap_err();
    assert!(log.contains("keyvouch migrate up"), "the server must not start before the job: {log}");
    let job = node.job();
    let migrated = job.run(&job.containers()[0]);
    assert!(migrated.status.success(), "{}", text_of(&migrated));
    let mut server = node.pod().start();
    server.wait_until_ready();
    create_key(&["--addr", &format!("{}:50052", node.address)]);
    server.end();
}

#[test]
fn a_release_on_a_redis_cluster_serves_calls() {
    let servers = Redis::Cluster.start(&["--appendonly", "yes"]);
    let settings = [
        "--set",
        "config.store.redis.ca_file=",
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
    server.wait_until_ready();
    create_key(&["--addr", &format!("{}:50052", node.address)]);
    server.end();
}

/// A server with TLS and client certificates exports all metrics that alerts and panels query.
#[test]
fn a_release_with_mutual_tls_exports_all_queried_metrics() {
    const SERVICE: &str = "kv-keyvouch.prod.svc";
    let (servers, clients) = (Authority::new(), Authority::new());
    let Pair(certificate, key) = servers.issue(SERVICE, 4096);
    let Pair(admin, admin_key) = clients.issue("spiffe://example.com/ns/platform/sa/admin", 4096);
    let Pair(test, test_key) = clients.issue("test.example.com", 4096);
    let url = block_on(Kind::Postgres.database());
    let mut node = install(
        "mtls-cert-manager",
        &["--set", "config.reload.interval=50ms"],
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
        server.wait_until_ready();
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
    server.wait_until_ready();
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", text_of(&outcome));
    // Another replica makes a change, which this one reads, and a client connects without TLS.
    let mut other = node.clone();
    other.move_to(address());
    let mut second = other.pod().start();
    second.wait_until_ready();
    let address = format!("https://{}:50052", other.address);
    let as_admin = ["--addr", &address, "--ca-file", "ca", "--server-name", SERVICE];
    let own = ["--cert-file", "admin", "--cert-key-file", "admin.key"];
    let revoke = ["key", "revoke", text(&created["key"]["id"]), "--reason", "leaked"];
    assert_eq!(home.run(&[&revoke[..], &as_admin, &own].concat()).status, 0);
    assert_ne!(home.run(&["healthcheck", "--addr", &format!("{}:50051", node.address)]).status, 0);
    let metrics = json!({ "path": "/metrics", "port": 9464 });
    wait_for("all metrics that are queried", || {
        let missing = missing_metrics(&node.get(&metrics)?.1);
        missing.is_empty().then_some(())
    });
    second.end();
    server.end();
}

/// The user provides the certificate, and its root is in another Secret.
#[test]
fn a_release_with_a_provided_certificate_serves_tls_only() {
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
    server.wait_until_ready();
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", text_of(&outcome));
    let plain = Home::new().run(&["healthcheck", "--addr", &format!("{}:50051", node.address)]);
    assert_ne!(plain.status, 0, "plaintext must be rejected");
    server.end();
}

#[test]
fn a_minimal_release_in_memory_serves_calls() {
    let node = install("minimal", &[], &[]);
    let mut server = node.pod().start();
    server.wait_until_ready();
    let test = node.test();
    let outcome = test.run(&test.containers()[0]);
    assert!(outcome.status.success(), "{}", text_of(&outcome));
    server.end();
}
