//! Private database servers, one of each kind for all tests of this process, with a separate database for
//! each test.
//!
//! A server uses a temporary folder and a free port, and is stopped when this process ends ([`watched`]).

mod certificate;
mod commands;
mod watched;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use keyvouch::repository::{SqlOptions, SqlRepository};
use rustix::process::Signal;
use sea_orm::{ConnectOptions, ConnectionTrait as _, Database};
use tempfile::TempDir;
use tokio::time::Instant;

use self::commands::{start_downloaded_postgres, start_mariadb, start_postgres};
use self::watched::wait_for;

pub(crate) use certificate::{Certificate, authority};
pub(crate) use commands::PgBouncer;
pub(crate) use watched::{Watched, folder, run, watch};

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
        self.server().repository().await
    }

    /// Returns the URL of the server, without the name of a database.
    pub(crate) fn url(self) -> &'static str {
        &self.server().url
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

/// Another version of PostgreSQL than that of Debian.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PostgresVersion {
    V14,
    V18,
}

impl PostgresVersion {
    /// Returns the server of this version.
    pub(crate) fn server(self) -> &'static Server {
        static V14: OnceLock<Server> = OnceLock::new();
        static V18: OnceLock<Server> = OnceLock::new();
        match self {
            Self::V14 => V14.get_or_init(|| start_downloaded_postgres("14")),
            Self::V18 => V18.get_or_init(|| start_downloaded_postgres("18")),
        }
    }
}

/// Returns options for a test with few connections, because all tests together have to fit into the server's.
pub(crate) fn few_connections() -> SqlOptions {
    let mut options = patient();
    options.pool.max_readers = 4;
    options.pool.max_writers = 2;
    options
}

/// Returns options for tests that don't measure time, so that a machine that stalls for some seconds fails no
/// test.
pub(crate) fn patient() -> SqlOptions {
    let mut options = SqlOptions { timeout: NEVER, lock_timeout: NEVER, ..SqlOptions::default() };
    options.pool.acquire_timeout = NEVER;
    options.pool.connect_timeout = NEVER;
    options
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
            assert!(begun.elapsed() < NEVER, "the server still accepts connections");
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

    /// Returns a repository in a new database with tables.
    pub(crate) async fn repository(&self) -> SqlRepository {
        let repository = SqlRepository::open(&self.database().await, few_connections()).await.unwrap();
        repository.migrate().await.unwrap();
        repository
    }

    /// Returns the Unix socket of a MariaDB server.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data.with_file_name("socket")
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
