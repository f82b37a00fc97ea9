//! Tests of the image without a container engine: its files, its user and its commands.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use keyvouch::domain::KeyHash;
use rustix::io::Errno;
use rustix::process::Signal;

use super::container::{Container, Image};
use crate::process::program::wait_for;

#[test]
fn the_files_of_the_image_suffice_to_migrate_and_to_serve() {
    let mut container = Container::new();
    container.make_writable("/var/lib/keyvouch");
    let migrated = container.command(&["migrate", "up"].map(str::to_owned), &[]).output().unwrap();
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

    // The port is that of the image. The address is unique to this process.
    let address = format!("127.{}.0.1:50051", 2 + std::process::id() % 200);
    let listen = [("KEYVOUCH__SERVER__LISTEN".to_owned(), address.clone())];
    let mut server = container.command(&container.image.command.clone(), &listen);
    let mut server = server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let at = [("KEYVOUCH_ADDR".to_owned(), address)];
    let healthcheck = || container.program(&container.image.healthcheck, &at).output().unwrap();
    wait_for("health", || healthcheck().status.success().then_some(()));
    let create = ["key", "create", "--name", "n", "--owner", "o"].map(str::to_owned);
    let created = container.command(&create, &at).output().unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));

    crate::signals::send(server.id(), Signal::TERM);
    assert!(server.wait().unwrap().success());
    assert!(!healthcheck().status.success(), "the healthcheck must fail without a server");
}

#[test]
fn the_user_of_the_image_can_write_only_to_volumes() {
    let image = Image::read();
    assert!(image.user >= 10_000, "the user id must be unused on the node");
    let container = Container::new();
    for folder in ["/", "/var/lib/keyvouch", "/tmp", "/etc"] {
        let man = ["man".to_owned(), format!("{folder}/pages")];
        let written = container.command(&man, &[]).output().unwrap();
        let stderr = String::from_utf8_lossy(&written.stderr).into_owned();
        let error = format!("os error {}", Errno::ROFS.raw_os_error());
        assert!(!written.status.success() && stderr.contains(&error), "{folder}: {stderr}");
    }
}

#[test]
fn the_image_has_no_shell() {
    let container = Container::new();
    for shell in ["/bin/sh", "/bin/bash", "/busybox/sh"] {
        assert!(!container.program(&[shell.to_owned()], &[]).output().unwrap().status.success());
    }
}

/// `scripts/base-images` writes the digest of each base image into the Dockerfile.
#[test]
fn the_base_images_can_be_pinned_by_digest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let (dockerfile, docker) = (folder.path().join("Dockerfile"), folder.path().join("docker"));
    std::fs::copy(root.join("Dockerfile"), &dockerfile).unwrap();
    // Stands in for `docker buildx imagetools inspect IMAGE`.
    let script = "#!/bin/sh\nsum=$(printf %s \"$4\" | sha256sum | cut -c -64)\n\
                  printf 'Name: %s\\nDigest:    sha256:%s\\n\\nManifests:\\n  Digest: sha256:0\\n' \"$4\" \"$sum\"\n";
    std::fs::write(&docker, script).unwrap();
    std::fs::set_permissions(&docker, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let done = Command::new(root.join("scripts/base-images"))
        .arg("--write")
        .envs([("PATH", path.as_ref()), ("DOCKERFILE", dockerfile.as_os_str())])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let text = std::fs::read_to_string(&dockerfile).unwrap();
    let images: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(images.len(), 2, "{text}");
    for image in images {
        let (name, argument) = image.split(' ').next().unwrap().split_once("${").unwrap();
        let digest = HEXLOWER.encode(KeyHash::of(name).as_bytes());
        let pinned = format!("ARG {}=@sha256:{digest}", argument.trim_end_matches('}'));
        assert!(text.lines().any(|line| line == pinned), "{pinned} is missing in {text}");
    }
}

/// The build context contains all files that the build reads, and no unlisted ones.
#[test]
fn the_build_context_has_the_files_that_the_build_reads() {
    let read =
        |file: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (ignored, dockerfile, script) = (read(".dockerignore"), read("Dockerfile"), read("build.rs"));
    assert!(ignored.lines().any(|line| line == "*"));
    let (build, _) = dockerfile.split_once("\nFROM gcr.io/").unwrap();
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY ")).flat_map(str::split_whitespace);
    let copied: Vec<_> = copied.collect();
    let roots = script.lines().filter_map(|line| line.split_once("_ROOT: &str = \"")?.1.strip_suffix("\";"));
    let roots: Vec<_> = roots.collect();
    assert_eq!(roots.len(), 2, "{roots:?}");
    for path in ["Cargo.toml", "Cargo.lock", "build.rs", "src", "migration"].into_iter().chain(roots) {
        assert!(
            ignored.lines().any(|line| line.strip_prefix('!') == Some(path)),
            "{path} is missing in the build context"
        );
        assert!(copied.contains(&path), "{path} is not copied");
    }
    // Cargo requires the files of all targets of the manifest to exist, even if they are empty.
    for target in read("Cargo.toml").split("[[bench]]\nname = \"").skip(1) {
        let name = target.split('"').next().unwrap();
        assert!(build.contains(&format!("benches/{name}.rs")), "{name}");
    }
    for target in read("Cargo.toml").split("[[test]]\n").skip(1) {
        let path = target.lines().find_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"')).unwrap();
        assert!(build.contains(path), "{path}");
    }
}
