//! Private servers of Redis and Valkey: a single one, a Sentinel set and a Cluster, shared by the tests of this
//! process. Each test has a prefix of its own.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use keyvouch::repository::{RedisOptions, RedisRepository};
use tempfile::TempDir;

use crate::databases::{Watched, folder, run, watch};
use crate::process::program::{tool, wait_for};

/// A deployment of Redis, or of Valkey, which has the same protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Redis {
    Alone,
    Sentinel,
    Cluster,
    Valkey,
    ValkeyCluster,
}

/// Running servers. Dropping this stops them.
pub(crate) struct RedisServers {
    pub(crate) url: String,
    pub(crate) servers: Vec<RedisServer>,
}

/// A running server.
pub(crate) struct RedisServer {
    pub(crate) port: u16,
    pub(crate) watched: Watched,
    program: PathBuf,
    data: PathBuf,
    /// Processes that were killed. Dropping them would remove their files.
    others: Vec<Watched>,
}

impl Redis {
    /// Returns an empty repository on the shared servers.
    pub(crate) async fn repository(self) -> RedisRepository {
        let options = RedisOptions { key_prefix: next_prefix(), ..RedisOptions::default() };
        RedisRepository::open(&self.shared().url, options).await.unwrap()
    }

    fn shared(self) -> &'static RedisServers {
        static ALONE: OnceLock<RedisServers> = OnceLock::new();
        static SENTINEL: OnceLock<RedisServers> = OnceLock::new();
        static CLUSTER: OnceLock<RedisServers> = OnceLock::new();
        static VALKEY: OnceLock<RedisServers> = OnceLock::new();
        static VALKEY_CLUSTER: OnceLock<RedisServers> = OnceLock::new();
        let servers = match self {
            Self::Alone => &ALONE,
            Self::Sentinel => &SENTINEL,
            Self::Cluster => &CLUSTER,
            Self::Valkey => &VALKEY,
            Self::ValkeyCluster => &VALKEY_CLUSTER,
        };
        servers.get_or_init(|| self.start(&[]))
    }

    /// Returns whether keys are distributed over several servers.
    pub(crate) fn is_cluster(self) -> bool {
        matches!(self, Self::Cluster | Self::ValkeyCluster)
    }

    /// Returns the program of the server.
    fn program(self) -> PathBuf {
        match self {
            Self::Alone | Self::Sentinel | Self::Cluster => "redis-server".into(),
            Self::Valkey | Self::ValkeyCluster => tool("valkey-server"),
        }
    }

    /// Starts servers for a single test, with further `settings`.
    pub(crate) fn start(self, settings: &[&str]) -> RedisServers {
        match self {
            Self::Alone | Self::Valkey => {
                let server = server(&self.program(), settings);
                RedisServers { url: format!("redis://127.0.0.1:{}", server.port), servers: vec![server] }
            }
            Self::Sentinel => sentinel(&self.program(), settings),
            Self::Cluster | Self::ValkeyCluster => cluster(&self.program(), settings),
        }
    }
}

/// Returns the URL of the shared servers.
pub(crate) fn shared_url(kind: Redis) -> String {
    kind.shared().url.clone()
}

/// Returns a prefix that no other test uses.
pub(crate) fn next_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}:", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns the output of `redis-cli` for a command to the server at `port`.
pub(crate) fn cli(port: u16, command: &[&str]) -> String {
    let port = port.to_string();
    let done = Command::new("redis-cli").args(["-p", &port]).args(command).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("redis-cli: {error} (scripts/test installs it)"));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// Returns a port that is free together with the one of the cluster bus, 10,000 above. Both are below the
/// ports that systems assign.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes on one machine begin at different ports.
    let first = 20_000 + u16::try_from(std::process::id() % 100).unwrap() * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

fn server(program: &Path, settings: &[&str]) -> RedisServer {
    let port = free_port();
    let folder = folder("redis");
    let data = folder.path().to_owned();
    let watched = start(program, port, &data, folder, settings);
    RedisServer { port, watched, program: program.to_owned(), data, others: Vec::new() }
}

/// Starts a server whose files are in `data`, and whose log is in `folder`.
fn start(program: &Path, port: u16, data: &Path, folder: TempDir, settings: &[&str]) -> Watched {
    let watched = launch(program, port, data, folder, settings);
    wait_for("a Redis server", || {
        // A server that requires a password is up, too.
        let answer = cli(port, &["PING"]);
        (answer == "PONG" || answer.starts_with("NOAUTH")).then_some(())
    });
    watched
}

/// Starts a server like [`start`], without waiting until it responds.
fn launch(program: &Path, port: u16, data: &Path, folder: TempDir, settings: &[&str]) -> Watched {
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(data);
    command.args(["--save", "", "--appendonly", "no"]).args(settings);
    watch(&command, folder)
}

impl RedisServer {
    /// Kills the server, as a power loss would.
    pub(crate) fn kill(&self) {
        self.watched.kill();
        let port = self.port;
        wait_for("its end", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err().then_some(()));
    }

    /// Copies the server's files. The server is stopped meanwhile.
    pub(crate) fn keep_a_copy(&mut self, settings: &[&str]) {
        self.kill();
        let copy = self.data.join("copy");
        run(Command::new("cp").arg("-a").arg(self.data.join("appendonlydir")).arg(&copy));
        self.restart(settings);
    }

    /// Starts the killed server with the copied files.
    pub(crate) fn start_the_copy(&mut self, settings: &[&str]) {
        run(Command::new("rm").arg("-rf").arg(self.data.join("appendonlydir")));
        run(Command::new("mv").arg(self.data.join("copy")).arg(self.data.join("appendonlydir")));
        self.restart(settings);
    }

    /// Restarts the server on the same port with the same files.
    pub(crate) fn restart(&mut self, settings: &[&str]) {
        let again = start(&self.program, self.port, &self.data, folder("redis"), settings);
        self.others.push(std::mem::replace(&mut self.watched, again));
    }
}

impl RedisServer {
    /// Restarts the server like [`restart`](Self::restart), but returns while it loads its files.
    pub(crate) fn restart_loading(&mut self, settings: &[&str]) {
        let again = launch(&self.program, self.port, &self.data, folder("redis"), settings);
        self.others.push(std::mem::replace(&mut self.watched, again));
        let port = self.port;
        wait_for("the loading", || cli(port, &["PING"]).starts_with("LOADING").then_some(()));
    }
}

/// Starts a primary, a replica and three sentinels.
fn sentinel(program: &Path, settings: &[&str]) -> RedisServers {
    let primary = server(program, settings);
    let primary_port = primary.port.to_string();
    let replica = server(program, &[settings, &["--replicaof", "127.0.0.1", &primary_port]].concat());
    let mut servers = vec![primary, replica];
    let mut ports = Vec::new();
    for _ in 0..3 {
        let port = free_port();
        let folder = folder("sentinel");
        let data = folder.path().to_owned();
        let conf = sentinel_conf(&data, port, &primary_port);
        let mut command = Command::new(program);
        command.arg(conf).arg("--sentinel");
        let watched = watch(&command, folder);
        servers.push(RedisServer { port, watched, program: program.to_owned(), data, others: Vec::new() });
        ports.push(port);
    }
    for port in &ports {
        wait_for("sentinels that know each other", || {
            let known = cli(*port, &["SENTINEL", "MASTER", "main"]);
            let mut lines = known.lines();
            let mut value = |name: &str| lines.find(|line| *line == name).and_then(|_| lines.next());
            (value("num-slaves") == Some("1") && value("num-other-sentinels") == Some("2")).then_some(())
        });
    }
    let url = format!(
        "redis-sentinel://127.0.0.1:{}/0?sentinelServiceName=main&node=127.0.0.1:{}&node=127.0.0.1:{}",
        ports[0], ports[1], ports[2]
    );
    RedisServers { url, servers }
}

fn sentinel_conf(folder: &Path, port: u16, primary_port: &str) -> PathBuf {
    let path = folder.join("sentinel.conf");
    let conf = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {primary_port} 2\n\
         sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n",
        folder.display()
    );
    std::fs::write(&path, conf).unwrap();
    path
}

/// Starts three primaries with a replica each.
fn cluster(program: &Path, settings: &[&str]) -> RedisServers {
    let cluster =
        ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000"];
    let servers: Vec<_> = (0..6).map(|_| server(program, &[&cluster[..], settings].concat())).collect();
    let addresses: Vec<_> = servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(&addresses);
    run(create.args(["--cluster-replicas", "1", "--cluster-yes"]));
    for server in &servers {
        wait_for("the cluster", || {
            let is_ok = cli(server.port, &["CLUSTER", "INFO"]).contains("cluster_state:ok");
            // A replica is ready once it is in sync with its primary.
            let replication = cli(server.port, &["INFO", "replication"]);
            let is_linked =
                replication.contains("role:master") || replication.contains("master_link_status:up");
            (is_ok && is_linked).then_some(())
        });
    }
    let others: Vec<_> = addresses[1..].iter().map(|address| format!("node={address}")).collect();
    RedisServers { url: format!("redis-cluster://{}?{}", addresses[0], others.join("&")), servers }
}
