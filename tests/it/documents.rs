//! Checks of the wording, of links, and of generated tables.

use std::collections::BTreeSet;
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

/// Returns the lines outside of code blocks.
fn prose(document: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    document.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Returns the targets of all links.
fn links(document: &str) -> Vec<String> {
    let text = prose(document).collect::<Vec<_>>().join("\n");
    let targets = text.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0.to_owned());
    targets.collect()
}

/// Returns the anchors of all headings, by the rules of GitHub.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = prose(document).filter(|line| line.starts_with('#'));
    let is_kept = |&letter: &char| letter.is_alphanumeric() || "-_ ".contains(letter);
    headings
        .map(|heading| {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            text.chars().filter(is_kept).map(|letter| if letter == ' ' { '-' } else { letter }).collect()
        })
        .collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = Vec::new();
    for place in ["docs", "helm", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] {
        files(&root.join(place), &["md"], &mut documents);
    }
    let (mut checked, mut broken) = (0, Vec::new());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let leads_there = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !leads_there {
                broken.push(format!("{}: {link}", document.display()));
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_indexes_list_every_page() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for folder in [docs.clone(), docs.join("adr")] {
        let listed = links(&fs::read_to_string(folder.join("README.md")).unwrap());
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_page = path.extension().is_some_and(|it| it == "md") && name != "README.md";
            assert!(
                !is_page || listed.contains(&name),
                "{}/README.md does not list {name}",
                folder.display()
            );
        }
    }
}

#[test]
fn the_table_of_settings_is_generated_from_their_doc_comments() {
    check_generated("settings");
}
