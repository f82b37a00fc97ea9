//! The commands that start PostgreSQL, MariaDB and `PgBouncer`.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::certificate::Certificate;
use super::watched::{Watched, folder, run, wait_for, watch};
use super::{Product, Server};
use crate::process::program::downloaded;

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

/// Starts PostgreSQL 14 or 18, which `scripts/test` downloads.
pub(super) fn start_downloaded_postgres(version: &str) -> Server {
    let temporary = folder("postgres");
    // The user `postgres` may not be allowed to read the folder of downloads.
    let native = temporary.path().join("native");
    run(Command::new("cp")
        .arg("-a")
        .arg(downloaded(&format!("postgres-{version}")).join("native"))
        .arg(&native));
    start_postgres_in(temporary, &native.join("bin"), None)
}

pub(super) fn start_postgres(certificate: Option<&Certificate>) -> Server {
    start_postgres_in(folder("postgres"), &postgres_bin(), certificate)
}

fn start_postgres_in(temporary: TempDir, bin: &Path, certificate: Option<&Certificate>) -> Server {
    let folder = temporary.path().to_owned();
    let data = folder.join("data");
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

pub(super) fn start_mariadb(certificate: Option<&Certificate>) -> Server {
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

/// A release of `PgBouncer`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PgBouncer {
    /// 1.18 of Debian 12, which does not support prepared statements in transaction mode.
    Debian,
    /// 1.24, which `scripts/test` builds.
    Current,
}

impl PgBouncer {
    /// Starts it in front of the server of `url`, with its defaults, which include session pooling, apart from
    /// `settings`. Returns the URL of `url`'s database through it.
    pub(crate) fn start(self, url: &str, settings: &[&str]) -> (Watched, String) {
        let temporary = folder("pgbouncer");
        let program = match self {
            Self::Debian => PathBuf::from("/usr/sbin/pgbouncer"),
            Self::Current => {
                // The user `postgres` may not be allowed to read the folder of downloads.
                let program = temporary.path().join("pgbouncer");
                run(Command::new("cp").arg(downloaded("pgbouncer-1.24")).arg(&program));
                program
            }
        };
        start_pgbouncer(&program, temporary, url, settings)
    }
}

fn start_pgbouncer(program: &Path, temporary: TempDir, url: &str, settings: &[&str]) -> (Watched, String) {
    let (server, name) = url.rsplit_once('/').unwrap();
    let (user, address) = server.trim_start_matches("postgres://").split_once('@').unwrap();
    let (host, server_port) = address.split_once(':').unwrap();
    let folder = temporary.path().to_owned();
    let port = free_port();
    let users = folder.join("users");
    std::fs::write(&users, format!("\"{user}\" \"\"\n")).unwrap();
    let configuration = folder.join("pgbouncer.ini");
    let settings = settings.join("\n");
    let settings = format!(
        "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\n{settings}\n",
        users.display()
    );
    std::fs::write(&configuration, settings).unwrap();
    let mut command = as_postgres(program);
    command.arg(&configuration);
    let watched = watch(&command, temporary);
    wait_for("process up", &folder);
    (watched, format!("postgres://{user}@127.0.0.1:{port}/{name}"))
}

fn postgres_bin() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = installed.map(|version| version.unwrap().path().join("bin")).collect();
    versions.retain(|bin| bin.join("initdb").exists());
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("PostgreSQL is not installed: scripts/test installs it"))
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
