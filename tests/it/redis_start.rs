//! Tests of which Redis servers are accepted, and how they are reached.

use std::path::{Path, PathBuf};

use keyvouch::domain::KeyHash;
use keyvouch::repository::{
    ClientCertificate, ErrorKind, KeyRepository as _, RedisFiles, RedisOptions, RedisRepository,
};
use tempfile::TempDir;

use crate::databases::authority;
use crate::redis_faults::{context, open, quick};
use crate::redis_servers::{Redis, RedisServers, cli, free_port};
use crate::sql::key;
use crate::support::until;

#[tokio::test(flavor = "multi_thread")]
async fn strict_options_reject_a_server_that_may_lose_keys() {
    let strict = || RedisOptions { strict: true, ..quick() };
    for settings in [
        ["--maxmemory-policy", "allkeys-lru", "--appendonly", "yes"],
        ["--maxmemory-policy", "noeviction", "--appendonly", "no"],
    ] {
        let servers = Redis::Alone.start(&settings);
        let error = RedisRepository::open(&servers.url, strict()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unusable);
        open(&servers, quick()).await;
    }
    let settings = ["--appendonly", "yes", "--appendfsync", "no"];
    let error = RedisRepository::open(&Redis::Alone.start(&settings).url, strict()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    let servers = Redis::Alone.start(&["--appendonly", "yes"]);
    open(&servers, strict()).await;
    // In a Cluster, every primary is checked.
    let servers = Redis::Cluster.start(&["--appendonly", "yes"]);
    open(&servers, strict()).await;
    for server in &servers.servers {
        if cli(server.port, &["ROLE"]).starts_with("master") {
            cli(server.port, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
            break;
        }
    }
    assert_eq!(RedisRepository::open(&servers.url, strict()).await.unwrap_err().kind(), ErrorKind::Unusable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_rejected_at_startup() {
    let servers = Redis::Sentinel.start(&[]);
    let url = format!("redis://127.0.0.1:{}", servers.servers[1].port);
    let error = RedisRepository::open(&url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(format!("{error:?}").contains("the URL of the primary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_use_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let servers = Redis::Alone.start(&["--unixsocket", socket.to_str().unwrap()]);
    let repository =
        RedisRepository::open(&format!("redis+unix://{}", socket.display()), quick()).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(open(&servers, quick()).await.get(created.id).await.unwrap(), Some(created));
}

/// A user with a password and a database number are used, and no error contains the password.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_and_never_shown() {
    let servers = Redis::Alone.start(&[]);
    let user = ["ACL", "SETUSER", "vouch", "on", ">hunter2", "~*", "&*", "+@all"];
    assert_eq!(cli(servers.servers[0].port, &user), "OK");
    let url =
        |user: &str, database: u8| format!("redis://{user}@127.0.0.1:{}/{database}", servers.servers[0].port);
    let repository = RedisRepository::open(&url("vouch:hunter2", 3), quick()).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    let other = RedisRepository::open(&url("vouch:hunter2", 4), quick()).await.unwrap();
    assert_eq!(other.get_by_hash(&created.hash).await.unwrap(), None);
    assert!(!format!("{repository:?} {repository}").contains("hunter2"));
    for wrong in [
        url("vouch:hunter2x", 0),
        url("x:hunter2", 0),
        "redis://u:hunter2@127.0.0.1:1/0".to_owned(),
        "redis://u:hunter2@127.0.0.1:port".to_owned(),
        "redis-sentinel://u:hunter2@127.0.0.1:1".to_owned(),
    ] {
        let error = RedisRepository::open(&wrong, quick()).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unusable | ErrorKind::Timeout),
            "{error:?}"
        );
    }
    assert_eq!(repository.get_by_hash(&KeyHash::of("none")).await.unwrap(), None);
}

/// A server with TLS for `localhost`, and the files of the test.
struct TlsServer {
    folder: TempDir,
    ca: PathBuf,
    certificate: ClientCertificate,
    port: u16,
    servers: RedisServers,
}

impl TlsServer {
    fn start(auth_clients: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (ca, certificate) = authority();
        let ca = write(&folder, "ca.pem", &ca);
        let (certificate, key) = certificate.write(folder.path());
        let port = free_port();
        let servers = Redis::Alone.start(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            certificate.to_str().unwrap(),
            "--tls-key-file",
            key.to_str().unwrap(),
            "--tls-ca-cert-file",
            ca.to_str().unwrap(),
            "--tls-auth-clients",
            auth_clients,
        ]);
        Self { folder, ca, certificate: ClientCertificate { certificate, key }, port, servers }
    }

    fn url(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}", self.port)
    }
}

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn with_files(files: RedisFiles) -> RedisOptions {
    RedisOptions { files, ..quick() }
}

/// Only a certificate of the right authority for the right name is accepted.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_verified() {
    let server = TlsServer::start("no");
    let other_ca = write(&server.folder, "other.pem", &authority().0);
    let none = write(&server.folder, "none.pem", "");
    let with = |ca: &Path| with_files(RedisFiles { ca: Some(ca.to_owned()), ..RedisFiles::default() });
    let url = |scheme, host| server.url(scheme, host);
    let repository = RedisRepository::open(&url("rediss", "localhost"), with(&server.ca)).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();
    assert_eq!(repository.get_by_hash(&created.hash).await.unwrap(), Some(created));
    for (url, file, kind) in [
        (url("rediss", "127.0.0.1"), &server.ca, ErrorKind::Unavailable),
        (url("rediss", "localhost"), &other_ca, ErrorKind::Unavailable),
        (url("rediss", "localhost"), &none, ErrorKind::Unusable),
        (url("redis", "localhost"), &server.ca, ErrorKind::Unusable),
    ] {
        let error = RedisRepository::open(&url, with(file)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{url} {error:?}");
    }
}

/// By default, a Redis server with TLS requires a certificate of its clients. The files are read again for
/// each connection.
#[tokio::test(flavor = "multi_thread")]
async fn the_client_certificate_is_sent_and_can_change() {
    let server = TlsServer::start("yes");
    let url = server.url("rediss", "localhost");
    let client = ClientCertificate {
        certificate: server.folder.path().join("client.pem"),
        key: server.folder.path().join("client.key"),
    };
    let copy = |from: &ClientCertificate| {
        std::fs::copy(&from.certificate, &client.certificate).unwrap();
        std::fs::copy(&from.key, &client.key).unwrap();
    };
    let with = |client_certificate| {
        with_files(RedisFiles { ca: Some(server.ca.clone()), client_certificate, ..RedisFiles::default() })
    };
    let missing = RedisRepository::open(&url, with(Some(client.clone()))).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unusable, "{missing:?}");
    let without = RedisRepository::open(&url, with(None)).await.unwrap_err();
    assert_eq!(without.kind(), ErrorKind::Unavailable, "{without:?}");
    copy(&server.certificate);
    let repository = RedisRepository::open(&url, with(Some(client.clone()))).await.unwrap();
    let created = repository.create(key("a"), &context()).await.unwrap();

    let (other_ca, other) = authority();
    let other_folder = tempfile::tempdir().unwrap();
    let (certificate, other_key) = other.write(other_folder.path());
    let other_ca = write(&other_folder, "ca.pem", &other_ca);
    let port = server.servers.servers[0].port;
    assert_eq!(cli(port, &["CONFIG", "SET", "tls-ca-cert-file", other_ca.to_str().unwrap()]), "OK");
    cli(port, &["CLIENT", "KILL", "TYPE", "normal"]);
    until("the old certificate to be refused", async || repository.ping().await.is_err()).await;
    copy(&ClientCertificate { certificate, key: other_key });
    until("the new certificate", async || repository.get_by_hash(&created.hash).await.is_ok()).await;
    until("changes", async || repository.create(key("b"), &context()).await.is_ok()).await;
}

/// The error names the right scheme.
#[tokio::test(flavor = "multi_thread")]
async fn the_url_has_to_match_the_mode_of_the_server() {
    let servers = Redis::Alone.start(&["--cluster-enabled", "yes"]);
    let error = RedisRepository::open(&servers.url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
    // A cluster that is not created yet may come up, so a startup waits for it.
    let unmade = servers.url.replace("redis:", "redis-cluster:");
    let error = RedisRepository::open(&unmade, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    let servers = Redis::Alone.start(&[]);
    let url = servers.url.replace("redis:", "redis-cluster:");
    let error = RedisRepository::open(&url, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
    assert!(format!("{error:?}").contains("use a redis: or rediss: URL"), "{error:?}");
    let error = RedisRepository::open(&format!("{}/99", servers.url), quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable, "{error:?}");
}
