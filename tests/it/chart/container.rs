//! A container without a container engine. The files of the last stage of the Dockerfile and the volumes are
//! the root of a process, which runs as the user of the image and can't write outside its volumes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The content of the last stage of the Dockerfile.
#[derive(Debug)]
pub(super) struct Image {
    /// Copied files: the source in the build, the target in the image, and the owner.
    pub(super) copies: Vec<(String, String, Option<String>)>,
    pub(super) user: u32,
    pub(super) folder: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) command: Vec<String>,
    pub(super) healthcheck: Vec<String>,
}

/// The libraries of the last stage's base image that the program may use.
const LIBRARIES: [&str; 5] =
    ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];
/// Path of the program in the build stage.
const PROGRAM: &str = "/image/keyvouch";

impl Image {
    pub(super) fn read() -> Self {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap();
        let text = text.replace("\\\n", " ");
        let last_stage = text.rsplit("\nFROM ").next().unwrap();
        let lines = |instruction: &str| {
            let instruction = format!("{instruction} ");
            last_stage
                .lines()
                .filter_map(|line| line.strip_prefix(&instruction))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let one = |instruction: &str| {
            let found = lines(instruction);
            assert_eq!(found.len(), 1, "{instruction}");
            found[0].clone()
        };
        let list = |text: &str| serde_json::from_str::<Vec<String>>(text).unwrap();
        let copies = lines("COPY").into_iter().map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let owner = words.iter().find_map(|word| word.strip_prefix("--chown="));
            let paths: Vec<_> = words.iter().filter(|word| !word.starts_with("--")).collect();
            (paths[0].to_string(), paths[1].to_string(), owner.map(str::to_owned))
        });
        Self {
            copies: copies.collect(),
            user: one("USER").split(':').next().unwrap().parse().unwrap(),
            folder: one("WORKDIR"),
            entrypoint: list(&one("ENTRYPOINT")),
            command: list(&one("CMD")),
            healthcheck: list(one("HEALTHCHECK").split_once("CMD ").unwrap().1),
        }
    }
}

/// The files of a container, and a way to run programs in it.
pub(super) struct Container {
    pub(super) image: Image,
    root: TempDir,
    /// Folders that are mounted writable, and their paths in the container.
    writable: Vec<(TempDir, String)>,
}

impl Container {
    pub(super) fn new() -> Self {
        let container =
            Self { image: Image::read(), root: tempfile::tempdir().unwrap(), writable: Vec::new() };
        make_accessible(container.root.path());
        for path in libraries() {
            container.copy(&path, &path.display().to_string());
        }
        for folder in ["/proc", "/dev", "/etc/ssl/certs", "/tmp"] {
            std::fs::create_dir_all(container.at(folder)).unwrap();
        }
        for (from, to, owner) in &container.image.copies {
            match from.as_str() {
                // The program is large, so it is mounted instead of copied.
                PROGRAM => container.write(to, ""),
                folder if folder.starts_with("/image/") => {
                    std::fs::create_dir_all(container.at(to)).unwrap();
                    assert_eq!(owner.as_deref(), Some("65532:65532"), "{to}");
                    own(&container.at(to), container.image.user);
                }
                file => container.copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file), to),
            }
        }
        container
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn copy(&self, file: &Path, path: &str) {
        let target = self.at(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, target).unwrap();
    }

    /// Writes a file that the container can only read.
    pub(super) fn write(&self, path: &str, text: &str) {
        let target = self.at(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, text).unwrap();
    }

    /// Sets the mode and the group of a file, and root as its owner. Does nothing unless this process is root.
    pub(super) fn restrict(&self, path: &str, mode: u64, group: u64) {
        let (target, mode) = (self.at(path), u32::try_from(mode).unwrap());
        if rustix::process::geteuid().is_root() {
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(target, Some(0), Some(u32::try_from(group).unwrap())).unwrap();
        }
    }

    /// Creates a folder that the container can write to.
    pub(super) fn make_writable(&mut self, path: &str) {
        std::fs::create_dir_all(self.at(path)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        own(folder.path(), self.image.user);
        self.writable.push((folder, path.to_owned()));
    }

    /// Returns the command that runs the image's entry point with `arguments`, and with only these
    /// environment variables.
    pub(super) fn command(&self, arguments: &[String], variables: &[(String, String)]) -> Command {
        self.program(&[&self.image.entrypoint[..], arguments].concat(), variables)
    }

    /// Returns the command that runs a program of the container.
    pub(super) fn program(&self, words: &[String], variables: &[(String, String)]) -> Command {
        let root = self.root.path().display();
        let program = self.image.copies.iter().find(|(from, ..)| from == PROGRAM).unwrap();
        let mut script = format!(
            "set -e; mount --bind {root} {root}; mount --rbind /proc {root}/proc; \
             mount --bind {} {root}{};",
            env!("CARGO_BIN_EXE_keyvouch"),
            program.1,
        );
        for (folder, path) in &self.writable {
            script += &format!(" mount --bind {} {root}{path};", folder.path().display());
        }
        let (user, folder) = (self.image.user, &self.image.folder);
        script += &format!(" mount -o remount,bind,ro {root}; ");
        let is_root = rustix::process::geteuid().is_root();
        script += &if is_root {
            format!("exec unshare --root={root} --wd={folder} --setgid={user} --setuid={user} -- \"$@\"")
        } else {
            format!(
                "exec unshare --user --map-user={user} --map-group={user} --root={root} --wd={folder} -- \"$@\""
            )
        };
        let mut command = Command::new("unshare");
        if !is_root {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--", "sh", "-c", &script, "sh"]).args(words);
        command
            .env_clear()
            .envs(variables.iter().cloned())
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }
}

fn make_accessible(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Makes a folder accessible, and makes `user` its owner if this process is root.
fn own(path: &Path, user: u32) {
    make_accessible(path);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    }
}

/// Returns the libraries that the program is linked to.
fn libraries() -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(env!("CARGO_BIN_EXE_keyvouch")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let paths: Vec<_> = paths.map(PathBuf::from).collect();
    assert!(!paths.is_empty(), "{listed}");
    for path in &paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(LIBRARIES.contains(&name), "{name} is missing in the base image");
    }
    paths
}
