//! Private database servers, one of each kind for all tests of this process, with a separate database for
//! each test.
//!
//! A server uses a temporary folder and a free port. A shell between it and this process reads a pipe that
//! this process holds open. When the pipe is closed, however this process ends, the shell stops the server
//! and removes the folder.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keyvouch::repository::{SqlOptions, SqlRepository};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustix::process::Signal;
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::signals;

/// Creates a test of each function that takes a [`Kind`], on each kind of server.
macro_rules! on_each_server {
    ($($test:ident,)*) => {
        mod postgres {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(Kind::Postgres).await; })*
        }
        mod mariadb {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(Kind::MariaDb).await; })*
        }
    };
}
pub(crate) use on_each_server;

/// Timeout for the start of a server, far more than it needs.
const NEVER: Duration = Duration::from_mins(1);

/// A running server. Dropping it stops the server.
pub(crate) struct Server {
    /// URL of the server without the name of a database.
    pub(crate) url: String,
    product: Product,
    next_database: AtomicU32,
    watched: Watched,
    /// Command that starts the server.
    command: Command,
    data: PathBuf,
    port: u16,
    /// Processes that were killed. Dropping them would remove their files.
    others: Vec<Watched>,
}

/// Differences between the kinds of database servers, apart from their command.
struct Product {
    /// Name of a database that always exists.
    maintenance: &'static str,
    /// Text that the server logs when it accepts connections.
    ready: &'static str,
    /// Signal that shuts the server down without waiting for its clients.
    shutdown: Signal,
}

/// The processes of a server. They are stopped when this is dropped, or when this process ends.
pub(crate) struct Watched {
    /// The server's files. They are removed at the end.
    folder: PathBuf,
    /// The shell that watches the pipe. This process holds the pipe open.
    _watcher: Child,
}

/// A kind of database server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
}

impl Kind {
    /// Returns the URL of a new, empty database.
    pub(crate) async fn database(self) -> String {
        self.server().database().await
    }

    /// Returns a repository in a new database with tables.
    pub(crate) async fn repository(self) -> SqlRepository {
        let mut options = patient();
        // All tests together have to fit into the server's connections.
        options.pool.max_readers = 4;
        options.pool.max_writers = 2;
        let repository = SqlRepository::open(&self.database().await, options).await.unwrap();
        repository.migrate().await.unwrap();
        repository
    }

    fn server(self) -> &'static Server {
        static POSTGRES: OnceLock<Server> = OnceLock::new();
        static MARIADB: OnceLock<Server> = OnceLock::new();
        match self {
            Self::Postgres => POSTGRES.get_or_init(|| self.start(None)),
            Self::MariaDb => MARIADB.get_or_init(|| self.start(None)),
        }
    }

    /// Starts a server for a single test. If it has a certificate, it accepts only TLS connections.
    pub(crate) fn start(self, certificate: Option<&Certificate>) -> Server {
        match self {
            Self::Postgres => start_postgres(certificate),
            Self::MariaDb => start_mariadb(certificate),
        }
    }
}

/// Returns options for tests that don't measure time, so that a machine that stalls for some seconds fails no
/// test.
pub(crate) fn patient() -> SqlOptions {
    let mut options = SqlOptions { timeout: NEVER, lock_timeout: NEVER, ..SqlOptions::default() };
    options.pool.acquire_timeout = NEVER;
    options.pool.connect_timeout = NEVER;
    options
}

/// The certificate of a server and its key, as PEM.
pub(crate) struct Certificate {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Server {
    /// Starts a server with `command`, with its files in `data` of `folder`, and waits until it accepts
    /// connections.
    fn launch(product: Product, url: String, command: Command, folder: TempDir, port: u16) -> Self {
        let (log, data) = (folder.path().to_owned(), folder.path().join("data"));
        let watched = watch(&command, folder);
        wait_for(product.ready, &log);
        Self {
            url,
            product,
            next_database: AtomicU32::new(0),
            watched,
            command,
            data,
            port,
            others: Vec::new(),
        }
    }

    /// Kills the server, as a power loss would.
    pub(crate) fn kill(&self) {
        self.watched.kill();
        let (begun, address) = (Instant::now(), (Ipv4Addr::LOCALHOST, self.port));
        while std::net::TcpStream::connect(address).is_ok() {
            assert!(begun.elapsed() < NEVER, "the server goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Copies the server's files. The server is shut down meanwhile, so every commit is in the copy.
    pub(crate) fn keep_a_copy(&mut self) {
        self.watched.shut_down(self.product.shutdown);
        let copy = self.data.with_extension("copy");
        run(Command::new("rm").arg("-rf").arg(&copy));
        run(Command::new("cp").arg("-a").arg(&self.data).arg(&copy));
        self.start_again();
    }

    /// Starts the killed server with the copied files.
    pub(crate) fn start_the_copy(&mut self) {
        run(Command::new("rm").arg("-rf").arg(&self.data));
        run(Command::new("cp").arg("-a").arg(self.data.with_extension("copy")).arg(&self.data));
        self.start_again();
    }

    fn start_again(&mut self) {
        // A killed server leaves these files. PostgreSQL does not start while a process has the id in them,
        // and an ended process keeps its id until its parent waits for it.
        let socket = self.data.with_file_name(format!(".s.PGSQL.{}.lock", self.port));
        for left in [self.data.join("postmaster.pid"), socket] {
            let _ = std::fs::remove_file(left);
        }
        let temporary = folder("again");
        let log = temporary.path().to_owned();
        let mut command = Command::new(self.command.get_program());
        command.args(self.command.get_args());
        let again = watch(&command, temporary);
        self.others.push(std::mem::replace(&mut self.watched, again));
        wait_for(self.product.ready, &log);
    }

    /// Suspends the server. See [`Watched::freeze`].
    pub(crate) fn freeze(&self) {
        self.watched.freeze();
    }

    /// Resumes the suspended server.
    pub(crate) fn thaw(&self) {
        self.watched.thaw();
    }

    /// Returns the URL of a new, empty database.
    pub(crate) async fn database(&self) -> String {
        let name = format!("test_{}", self.next_database.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}/{}", self.url, self.product.maintenance);
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).acquire_timeout(NEVER);
        let maintenance = Database::connect(options).await.unwrap();
        maintenance.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        maintenance.close().await.unwrap();
        format!("{}/{name}", self.url)
    }
}

impl Watched {
    /// Suspends all processes. Their connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the suspended processes.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the processes.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Shuts the server down with `signal`, and waits until it has ended.
    fn shut_down(&self, signal: Signal) {
        let processes = signals::tree(self.pid());
        self.signal(signal);
        let begun = Instant::now();
        while processes.iter().any(|pid| signals::is_running(*pid)) {
            assert!(begun.elapsed() < NEVER, "the server does not shut down");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        signals::send_to_tree(self.pid(), signal);
    }

    fn pid(&self) -> u32 {
        std::fs::read_to_string(self.folder.join("pid")).unwrap().trim().parse().unwrap()
    }
}

/// Returns a command that runs `program` as a user other than root, because PostgreSQL and `PgBouncer` refuse
/// to run as root.
fn as_postgres(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn start_postgres(certificate: Option<&Certificate>) -> Server {
    let temporary = folder("postgres");
    let folder = temporary.path().to_owned();
    let data = folder.join("data");
    let bin = postgres_bin();
    let command = |program: &str| as_postgres(&bin.join(program));
    let tls = certificate.map(|certificate| certificate.write(&folder));
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").args(["-R", "postgres:"]).arg(&folder));
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
    if let Some((certificate, key)) = tls {
        server.args(["-c", "ssl=on", "-c"]).arg(format!("ssl_cert_file={}", certificate.display()));
        server.arg("-c").arg(format!("ssl_key_file={}", key.display()));
        let rule = "hostssl all all 127.0.0.1/32 trust\n";
        std::fs::write(data.join("pg_hba.conf"), rule).unwrap();
    }
    let product = Product {
        maintenance: "postgres",
        ready: "database system is ready to accept connections",
        shutdown: Signal::INT,
    };
    Server::launch(product, format!("postgres://postgres@127.0.0.1:{port}"), server, temporary, port)
}

fn start_mariadb(certificate: Option<&Certificate>) -> Server {
    let temporary = folder("mariadb");
    let folder = temporary.path().to_owned();
    let data = folder.join("data");
    let socket = folder.join("socket");
    // At startup, MariaDB deletes all files in `tmpdir` that look like temporary tables, even those of
    // another running server.
    let temporary_tables = format!("--tmpdir={}", folder.display());
    run(Command::new("mariadb-install-db")
        .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(&temporary_tables)
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
        // A default that a careless administrator would leave. The tables specify their own character set.
        "--character-set-server=latin1",
    ]);
    if rustix::process::geteuid().is_root() {
        server.arg("--user=root");
    }
    if let Some(certificate) = certificate {
        let (certificate, key) = certificate.write(&folder);
        server.arg("--require-secure-transport=ON").arg(format!("--ssl-cert={}", certificate.display()));
        server.arg(format!("--ssl-key={}", key.display()));
    }
    server
        .arg(temporary_tables)
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--port={port}"));
    let product = Product { maintenance: "mysql", ready: "ready for connections", shutdown: Signal::TERM };
    Server::launch(product, format!("mysql://root@127.0.0.1:{port}"), server, temporary, port)
}

/// Starts `PgBouncer` in front of the shared PostgreSQL server, with its defaults, which include session
/// pooling. Returns the URL of `url`'s database through it.
pub(crate) fn pgbouncer(url: &str) -> (Watched, String) {
    let (server, name) = url.rsplit_once('/').unwrap();
    let (user, address) = server.trim_start_matches("postgres://").split_once('@').unwrap();
    let (host, server_port) = address.split_once(':').unwrap();
    let temporary = folder("pgbouncer");
    let folder = temporary.path().to_owned();
    let port = free_port();
    let users = folder.join("users");
    std::fs::write(&users, format!("\"{user}\" \"\"\n")).unwrap();
    let configuration = folder.join("pgbouncer.ini");
    let settings = format!(
        "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\n",
        users.display()
    );
    std::fs::write(&configuration, settings).unwrap();
    let mut command = as_postgres(Path::new("/usr/sbin/pgbouncer"));
    command.arg(&configuration);
    let watched = watch(&command, temporary);
    wait_for("process up", &folder);
    (watched, format!("postgres://{user}@127.0.0.1:{port}/{name}"))
}

/// Returns a certificate authority, and a certificate that it issued for the name `localhost`.
pub(crate) fn authority() -> (String, Certificate) {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    // OpenSSL treats a certificate whose issuer has the same name as self-signed.
    params.distinguished_name.push(rcgen::DnType::CommonName, "tests");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (authority.pem(), Certificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

impl Certificate {
    /// Writes both files into `folder`, and returns their paths.
    pub(crate) fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&certificate, &self.certificate).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        (certificate, key)
    }
}

/// Creates a folder that other users can access.
pub(crate) fn folder(name: &str) -> TempDir {
    let folder = tempfile::Builder::new().prefix(&format!("keyvouch-{name}-")).tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn postgres_bin() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = installed.map(|version| version.unwrap().path().join("bin")).collect();
    versions.retain(|bin| bin.join("initdb").exists());
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("PostgreSQL is not installed: scripts/test installs it"))
}

pub(crate) fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/test installs it)"));
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Starts `server`, to be stopped when this process ends. `folder` is removed then.
pub(crate) fn watch(server: &Command, folder: TempDir) -> Watched {
    let script = r#"
        folder=$1; shift
        "$@" </dev/null >"$folder/log" 2>&1 &
        server=$!
        echo "$server" >"$folder/pid"
        cat >/dev/null
        kill "$server"
        wait "$server"
        rm -rf "$folder"
    "#;
    let folder = folder.keep();
    let watcher = Command::new("sh")
        .args(["-c", script, "watcher"])
        .arg(&folder)
        .arg(server.get_program())
        .args(server.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Watched { folder, _watcher: watcher }
}

/// Waits until the server's log contains `ready`, because a server whose port is open may not be ready.
fn wait_for(ready: &str, folder: &Path) {
    let begun = Instant::now();
    let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    while !log().contains(ready) {
        assert!(begun.elapsed() < NEVER, "the server does not start: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
