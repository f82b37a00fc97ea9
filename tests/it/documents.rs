//! Checks of the wording, and of generated tables.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::program::check_generated;

/// Phrases that are not allowed, because `docs/glossary.md` has another word for the same concept, or because they
/// are hard to read.
const BANNED: [&str; 9] = [
    " is no ",
    " are no ",
    " is none",
    "ook-up",
    " let go ",
    " at one time",
    "stands for",
    "belongs into",
    "time-out",
];
/// Phrases that contain a banned phrase and are allowed.
const ALLOWED: [&str; 4] = ["is no longer", "are no longer", "here is no ", "here are no "];

fn files(path: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), extensions, found);
        }
    } else if path.extension().is_some_and(|it| extensions.contains(&it.to_str().unwrap())) {
        found.push(path.to_owned());
    }
}

#[test]
fn no_banned_phrase_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = Vec::new();
    for path in [
        "src",
        "migration/src",
        "examples",
        "benches",
        "tests",
        "proto",
        "helm",
        "docs",
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        files(&root.join(path), &["rs", "proto", "md", "yaml", "tpl", "txt", "json"], &mut checked);
    }
    // This file contains the phrases.
    checked.retain(|file| *file != root.join("tests/it/documents.rs"));
    assert!(checked.len() > 100);
    let mut found = Vec::new();
    for file in checked {
        for (number, line) in (1..).zip(fs::read_to_string(&file).unwrap().lines()) {
            let text = ALLOWED.iter().fold(line.to_owned(), |text, allowed| text.replace(allowed, ""));
            if let Some(phrase) = BANNED.iter().find(|phrase| text.contains(**phrase)) {
                found.push(format!("{}:{number}: {phrase:?}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_table_of_settings_is_generated_from_their_doc_comments() {
    check_generated("settings");
}
