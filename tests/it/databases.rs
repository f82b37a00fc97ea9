//! Private database servers, one of each kind for all tests of this process, and a database of its own for each test.
//!
//! A server lives in a temporary folder on a free port. A shell stands between it and this process: it reads a pipe that
//! this process holds open, and when that ends, however this process ends, stops the server and removes the folder.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keyvouch::repository::{SqlOptions, SqlRepository};
use sea_orm::{ConnectionTrait as _, Database};
use tokio::time::Instant;

/// Far more than a server needs to start.
const NEVER: Duration = Duration::from_mins(1);

/// A running server.
struct Server {
    /// Its URL up to the name of the database.
    url: String,
    /// A database that is always there.
    maintenance: &'static str,
    next_database: AtomicU32,
    /// Holds the pipe open.
    _watcher: Child,
}

/// A kind of database server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
}

impl Kind {
    /// The URL of a new, empty database.
    pub(crate) async fn database(self) -> String {
        let server = self.server();
        let name = format!("test_{}", server.next_database.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}/{}", server.url, server.maintenance);
        let maintenance = Database::connect(url).await.unwrap();
        maintenance.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        maintenance.close().await.unwrap();
        format!("{}/{name}", server.url)
    }

    /// A repository in a new database, its tables made.
    pub(crate) async fn repository(self) -> SqlRepository {
        let mut options = SqlOptions::default();
        // All tests together have to fit into the server's connections.
        options.pool.max_readers = 4;
        options.pool.max_writers = 2;
        // Where many writers stand in a queue on a busy machine, only the order matters here.
        options.timeout = NEVER;
        options.lock_timeout = NEVER;
        options.pool.acquire_timeout = NEVER;
        let repository = SqlRepository::open(&self.database().await, options).await.unwrap();
        repository.migrate().await.unwrap();
        repository
    }

    fn server(self) -> &'static Server {
        static POSTGRES: OnceLock<Server> = OnceLock::new();
        static MARIADB: OnceLock<Server> = OnceLock::new();
        match self {
            Self::Postgres => POSTGRES.get_or_init(start_postgres),
            Self::MariaDb => MARIADB.get_or_init(start_mariadb),
        }
    }
}

fn start_postgres() -> Server {
    let folder = folder("postgres");
    let data = folder.join("data");
    let bin = postgres_bin();
    // PostgreSQL refuses to run as root.
    let is_root = rustix::process::geteuid().is_root();
    let command = |program: &str| {
        let program = bin.join(program);
        if is_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        }
    };
    if is_root {
        run(Command::new("chown").arg("postgres:").arg(&folder));
    }
    run(command("initdb").arg("-D").arg(&data).args([
        "-A",
        "trust",
        "-U",
        "postgres",
        "--no-sync",
        "--no-instructions",
        "-E",
        "UTF8",
        "--locale=C",
    ]));
    let port = free_port();
    let mut server = command("postgres");
    server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k"]).arg(&folder);
    for setting in
        ["listen_addresses=127.0.0.1", "fsync=off", "full_page_writes=off", "synchronous_commit=off"]
    {
        server.args(["-c", setting]);
    }
    server.args(["-c", "max_connections=300"]);
    let watcher = watch(server, &folder);
    let url = format!("postgres://postgres@127.0.0.1:{port}");
    wait_for(port, &folder);
    Server { url, maintenance: "postgres", next_database: AtomicU32::new(0), _watcher: watcher }
}

fn start_mariadb() -> Server {
    let folder = folder("mariadb");
    let data = folder.join("data");
    let socket = folder.join("socket");
    run(Command::new("mariadb-install-db")
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display())));
    let port = free_port();
    let mut server = Command::new("mariadbd");
    server.args([
        "--no-defaults",
        "--bind-address=127.0.0.1",
        "--skip-log-bin",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--skip-name-resolve",
        "--max-connections=300",
        // What a careless server would have: the tables name their own.
        "--character-set-server=latin1",
    ]);
    if rustix::process::geteuid().is_root() {
        server.arg("--user=root");
    }
    server
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--port={port}"));
    let watcher = watch(server, &folder);
    let url = format!("mysql://root@127.0.0.1:{port}");
    wait_for(port, &folder);
    Server { url, maintenance: "mysql", next_database: AtomicU32::new(0), _watcher: watcher }
}

/// A folder that other users can reach.
fn folder(name: &str) -> PathBuf {
    let folder = tempfile::Builder::new().prefix(&format!("keyvouch-{name}-")).tempdir().unwrap().keep();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn postgres_bin() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = installed.map(|version| version.unwrap().path().join("bin")).collect();
    versions.retain(|bin| bin.join("initdb").exists());
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("PostgreSQL is not installed: scripts/test installs it"))
}

fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/test installs it)"));
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Starts `server`, to be stopped when this process ends.
fn watch(server: Command, folder: &Path) -> Child {
    let script = r#"
        folder=$1; shift
        "$@" </dev/null >"$folder/log" 2>&1 &
        server=$!
        cat >/dev/null
        kill "$server"
        wait "$server"
        rm -rf "$folder"
    "#;
    Command::new("sh")
        .args(["-c", script, "watcher"])
        .arg(folder)
        .arg(server.get_program())
        .args(server.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(port: u16, folder: &Path) {
    let begun = Instant::now();
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(begun.elapsed() < NEVER, "the server does not start: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
