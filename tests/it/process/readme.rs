//! Runs the commands of the README's quick tour literally.

use std::path::Path;
use std::process::Command;

use super::program::Home;

/// Returns the shell block of the section `title`.
fn block(title: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("## {title}\n")).unwrap();
    let (_, rest) = section.split_once("```sh\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_quick_tour_of_the_readme_runs_as_written() {
    let home = Home::new();
    let server = home.serve(&[]);
    let binary = Path::new(env!("CARGO_BIN_EXE_keyvouch")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euc", &block("Quick tour")])
        .current_dir(home.path())
        // The test server has another port than the README's.
        .env("KEYVOUCH_ADDR", &server.address)
        .env("PATH", path)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    let verdicts: Vec<_> = stdout
        .lines()
        .filter_map(|line| line.trim().strip_prefix("verdict").or(line.strip_prefix("exit status")))
        .map(str::trim)
        .collect();
    assert_eq!(verdicts, ["allowed", "denied: insufficient scope", "3", "denied: revoked", "3"]);
    // The reason of the revocation, and a secret.
    assert!(stdout.contains("found in a log") && stdout.contains("secret: kv_"), "{stdout}");
}
