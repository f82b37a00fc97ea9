//! Checks that the macros of the conformance suites list every clause.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Reads the names of the clauses that `file` defines: its public asynchronous functions whose parameter is the
/// subject of the test.
fn defined(file: &Path, module: Option<&str>) -> BTreeSet<String> {
    let source = fs::read_to_string(file).unwrap();
    let names = source.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub async fn ")?;
        let (name, parameters) = rest.split_once(['(', '<'])?;
        (parameters.contains("Subject") || parameters.starts_with("api: Api)")).then_some(name)
    });
    names.map(|name| module.map_or_else(|| name.to_owned(), |module| format!("{module}::{name}"))).collect()
}

/// Reads the names of the clauses that the macro in `file` lists.
fn listed(file: &Path) -> BTreeSet<String> {
    let source = fs::read_to_string(file).unwrap();
    let (_, body) = source.split_once("macro_rules!").unwrap();
    let lines = body.lines().map(str::trim).filter_map(|line| line.strip_suffix(','));
    let is_path = |line: &&str| {
        line.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "_:".contains(it))
    };
    lines.filter(is_path).map(str::to_owned).collect()
}

#[test]
fn conformance_macros_list_every_clause() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
    for suite in ["repository", "api", "cache"] {
        let file = folder.join(suite).with_extension("rs");
        let mut clauses = defined(&file, None);
        if let Ok(parts) = fs::read_dir(folder.join(suite)) {
            for part in parts.map(|part| part.unwrap().path()) {
                clauses.extend(defined(&part, part.file_stem().unwrap().to_str()));
            }
        }
        assert!(clauses.len() > 5, "{suite}: {clauses:?}");
        assert_eq!(clauses, listed(&file), "{suite}");
    }
}
