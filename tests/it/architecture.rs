//! Checks that the modules of the crate use each other as the table in `docs/architecture.md` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Returns the names between backticks.
fn names(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

fn documented() -> Uses {
    let document = fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).unwrap();
    let table = document.lines().skip_while(|line| !line.starts_with("| module | uses |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split('|').skip(1);
        let module = names(cells.next().unwrap()).next().unwrap();
        (module, names(cells.next().unwrap()).collect())
    })
    .collect()
}

/// Adds the modules that the files in `folder` use to those of `module`. At the top level, `module` is unset,
/// and each file and folder is a module.
fn read(folder: &Path, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = module.unwrap_or(name);
        if path.is_dir() {
            read(&path, Some(module), uses);
        } else if !["lib", "main"].contains(&module) {
            let entry = uses.entry(module.to_owned()).or_default();
            let source = fs::read_to_string(&path).unwrap();
            // At the top level, `super` is another way to name the crate.
            let is_top = path.parent().unwrap().ends_with("src");
            let names_crate =
                |line: &str| line.starts_with("use super::") || line.starts_with("pub use super::");
            assert!(!(is_top && source.lines().any(names_crate)), "{}: write `crate::`", path.display());
            let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
            for rest in code.flat_map(|line| line.split("crate::").skip(1)) {
                assert!(!rest.starts_with('{'), "{}: write `use crate::module::…`", path.display());
                let end = rest.find(|it: char| !it.is_ascii_lowercase() && it != '_').unwrap_or(rest.len());
                entry.insert(rest[..end].to_owned());
            }
        }
    }
}

fn actual() -> Uses {
    let mut uses = Uses::new();
    read(&Path::new(ROOT).join("src"), None, &mut uses);
    let modules: BTreeSet<String> = uses.keys().cloned().collect();
    for (module, used) in &mut uses {
        // Paths in macros may begin with names that are not modules.
        used.retain(|name| modules.contains(name) && name != module);
    }
    uses
}

#[test]
fn modules_use_what_the_table_lists() {
    assert_eq!(actual(), documented());
}

#[test]
fn modules_form_no_cycle() {
    let mut uses = documented();
    while !uses.is_empty() {
        let Some(lowest) = uses.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| module.clone())
        else {
            panic!("a cycle: {uses:?}");
        };
        uses.remove(&lowest);
        for used in uses.values_mut() {
            used.remove(&lowest);
        }
    }
}
