//! Processes of servers, which end with this process.
//!
//! A shell between a server and this process reads a pipe that this process holds open. When the pipe is closed, however this
//! process ends, the shell stops the server and removes its folder.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::Instant;

use super::NEVER;
use crate::signals;

/// The processes of a server. They are stopped when this is dropped, or when this process ends.
pub(crate) struct Watched {
    /// The server's files. They are removed at the end.
    folder: PathBuf,
    /// The shell that watches the pipe. This process holds the pipe open.
    _watcher: Child,
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
    pub(super) fn shut_down(&self, signal: Signal) {
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

/// Creates a folder that other users can access.
pub(crate) fn folder(name: &str) -> TempDir {
    let folder = tempfile::Builder::new().prefix(&format!("keyvouch-{name}-")).tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs a command that has to succeed.
pub(crate) fn run(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/test installs it)"));
    let output = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output));
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
pub(super) fn wait_for(ready: &str, folder: &Path) {
    let begun = Instant::now();
    let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
    while !log().contains(ready) {
        assert!(begun.elapsed() < NEVER, "the server does not start: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}
