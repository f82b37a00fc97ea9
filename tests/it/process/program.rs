//! Runs `keyvouch` in a temporary folder, as a server or as a command.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::signals;

/// Timeout of all waits, far more than any of them needs.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A temporary folder with the files of a server, in which commands are run.
pub(crate) struct Home {
    pub(crate) folder: TempDir,
    has_own_clock: bool,
}

/// A running server. Dropping it kills the server. Its output is collected in two files of the folder.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: String,
}

/// The exit status and the output of a command.
pub(crate) struct CommandOutput {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), has_own_clock: false }
    }

    /// Creates a folder whose servers have a wall clock that can be set.
    pub(crate) fn with_clock() -> Self {
        let home = Self { has_own_clock: true, ..Self::new() };
        home.step_clock(0);
        home
    }

    /// Sets the wall clock of servers in this folder to `seconds` after the true time. Their monotonic clock is
    /// not affected.
    pub(crate) fn step_clock(&self, seconds: i64) {
        let next = self.path().join("clock.next");
        std::fs::write(&next, format!("{seconds:+}")).unwrap();
        std::fs::rename(next, self.path().join("clock")).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(&[], arguments)
    }

    /// Returns the command, started by the program and the arguments in `starter`.
    fn command_by(&self, starter: &[&str], arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_keyvouch");
        let mut command = match starter {
            [] => Command::new(program),
            [starter, own @ ..] => {
                let mut command = Command::new(starter);
                command.args(own).arg(program);
                command
            }
        };
        command.current_dir(self.path()).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KEYVOUCH_") {
                command.env_remove(name);
            }
        }
        if self.has_own_clock {
            command
                .env("LD_PRELOAD", faketime())
                .env("FAKETIME_TIMESTAMP_FILE", self.path().join("clock"))
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// Starts `keyvouch serve` on a free port, and waits until it is ready.
    pub(crate) fn serve(&self, settings: &[&str]) -> Server {
        let mut server = self.spawn_server(settings);
        server.address = server.wait_until_ready(self);
        server
    }

    /// Starts the server like [`serve`](Self::serve), through another program that becomes the server.
    pub(crate) fn serve_by(&self, starter: &[&str], settings: &[&str]) -> Server {
        let mut server = self.spawn_server_by(starter, settings);
        server.address = server.wait_until_ready(self);
        server
    }

    /// Starts the server without waiting until it is ready. Its address is not set. Settings with secrets are passed in
    /// the environment, all others as flags.
    pub(crate) fn spawn_server(&self, settings: &[&str]) -> Server {
        self.spawn_server_by(&[], settings)
    }

    fn spawn_server_by(&self, starter: &[&str], settings: &[&str]) -> Server {
        let mut arguments = vec!["serve", "--set", "server.listen=127.0.0.1:0"];
        // Secrets are rejected on the command line.
        let is_secret = |setting: &&&str| setting.starts_with("admin.tokens=") || setting.contains('@');
        for setting in settings.iter().filter(|setting| !is_secret(setting)) {
            arguments.extend(["--set", setting]);
        }
        let secrets = settings.iter().filter(is_secret).map(|setting| {
            let (name, value) = setting.split_once('=').unwrap();
            (format!("KEYVOUCH__{}", name.to_uppercase().replace('.', "__")), value)
        });
        let log = File::options().create(true).append(true).open(self.path().join("stderr")).unwrap();
        let out = File::create(self.path().join("stdout")).unwrap();
        let child = self
            .command_by(starter, &arguments)
            .envs(secrets)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(log)
            .spawn()
            .unwrap();
        Server { child, address: String::new() }
    }

    /// Runs a command until it ends.
    pub(crate) fn run(&self, arguments: &[&str]) -> CommandOutput {
        self.run_with_input(arguments, "")
    }

    /// Runs a command until it ends, with `input` on its standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &str) -> CommandOutput {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that does not read its input may have closed it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        CommandOutput::of(child.wait_with_output().unwrap())
    }

    /// Runs a command against `server` until it ends.
    pub(crate) fn call(&self, server: &Server, arguments: &[&str]) -> CommandOutput {
        self.run(&[arguments, &["--addr", &server.address]].concat())
    }

    /// Runs a command against `server` that has to succeed. Returns the JSON that it prints.
    pub(crate) fn json(&self, server: &Server, arguments: &[&str]) -> Value {
        let done = self.call(server, &[&["--output", "json"], arguments].concat());
        assert_eq!(done.status, 0, "{arguments:?}: {}", done.stderr);
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// Creates a key with these options in addition to a name and an owner. Returns the response.
    pub(crate) fn create_key(&self, server: &Server, options: &[&str]) -> Value {
        self.json(server, &[&["key", "create", "--name", "n", "--owner", "o"], options].concat())
    }

    /// Runs `keyvouch validate` for `secret`. Returns its exit status and the reason.
    pub(crate) fn validate(&self, server: &Server, secret: &str) -> (i32, String) {
        let arguments = ["--output", "json", "validate", "--addr", &server.address];
        let done = self.run_with_input(&arguments, secret);
        let response: Value = serde_json::from_str(&done.stdout).unwrap();
        (done.status, response["reason"].as_str().unwrap().to_owned())
    }

    /// Reads a file of the folder. A missing file is empty.
    pub(crate) fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path().join(name)).unwrap_or_default()).into_owned()
    }

    /// Returns the log entries of all servers that ran in this folder with `telemetry.log_format=json`. Panics
    /// if a line is not JSON. Ignores a last line that is incomplete.
    pub(crate) fn log(&self) -> Vec<Value> {
        let log = self.read("stderr");
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        lines.map(parse).collect()
    }
}

impl Server {
    pub(crate) fn wait_until_ready(&mut self, home: &Home) -> String {
        let address = wait_for("the address", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the server ended: {}", home.read("stderr"));
            let stdout = home.read("stdout");
            let line = stdout.lines().find(|line| line.contains(" listens on "))?;
            stdout.contains("key list").then(|| line.rsplit(' ').next().unwrap().to_owned())
        });
        wait_for("health", || (home.run(&["healthcheck", "--addr", &address]).status == 0).then_some(()));
        address
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signals::send(self.child.id(), signal);
    }

    /// Waits until the server has ended. Returns its exit status, or `None` if a signal ended it.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        wait_for("the end of the server", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl CommandOutput {
    fn of(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// Returns a program that `scripts/test` installs from `PyPI`. `KEYVOUCH_TEST_TOOLS` overrides the `bin`
/// folder.
pub(crate) fn tool(name: &str) -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/venv/bin");
    let tool = std::env::var_os("KEYVOUCH_TEST_TOOLS").map_or(installed, PathBuf::from).join(name);
    assert!(tool.exists(), "{} is missing: run scripts/test, which installs it", tool.display());
    tool
}

/// Checks that the files which `script` generates from the program's settings are up to date.
pub(crate) fn check_generated(script: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let check =
        Command::new(tool("python")).arg(script).args(["--check", env!("CARGO_BIN_EXE_keyvouch")]).output();
    let check = check.unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

/// Returns the folder in which `scripts/test` installs packages for Node.js. `KEYVOUCH_TEST_NODE_MODULES`
/// overrides it.
pub(crate) fn node_modules() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/node/node_modules");
    let folder = std::env::var_os("KEYVOUCH_TEST_NODE_MODULES").map_or(installed, PathBuf::from);
    assert!(folder.exists(), "{} is missing: run scripts/test, which installs it", folder.display());
    folder
}

/// Returns a program that `scripts/test` downloads. `KEYVOUCH_TEST_DOWNLOADS` overrides the folder.
pub(crate) fn downloaded(name: &str) -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin");
    let program = std::env::var_os("KEYVOUCH_TEST_DOWNLOADS").map_or(installed, PathBuf::from).join(name);
    assert!(program.exists(), "{} is missing: run scripts/test, which installs it", program.display());
    program
}

/// Returns the library that replaces the system's clock.
pub(crate) fn faketime() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    installed
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .unwrap_or_else(|| panic!("libfaketime is missing: run scripts/test, which installs it"))
}

/// Calls `poll` until it returns a value.
#[expect(clippy::disallowed_methods, reason = "a bound on waiting for another process")]
pub(crate) fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(begun.elapsed() < TIMEOUT, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns all bytes of all files in the folder whose names begin with `prefix`.
pub(crate) fn bytes_of_files(folder: &Path, prefix: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            File::open(entry.path()).unwrap().read_to_end(&mut bytes).unwrap();
        }
    }
    bytes
}
