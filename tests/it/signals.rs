//! Sends signals to processes without an external program.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// Sends `signal` to the process `pid`.
pub(crate) fn send(pid: u32, signal: Signal) {
    kill_process(to_pid(pid), signal).unwrap_or_else(|error| panic!("{signal:?} to {pid}: {error}"));
}

/// Sends `signal` to the process `pid` and all its descendants.
pub(crate) fn send_to_tree(pid: u32, signal: Signal) {
    for pid in tree(pid) {
        // A child may have ended meanwhile.
        let _ = kill_process(to_pid(pid), signal);
    }
}

/// Returns whether the process `pid` is running. A zombie process is not running.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !matches!(rest.trim_start().as_bytes(), [b'Z' | b'X', ..]))
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Returns the process `pid` and all its descendants.
pub(crate) fn tree(pid: u32) -> Vec<u32> {
    let processes: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let folder = entry.unwrap().path();
            Some((folder.file_name()?.to_str()?.parse().ok()?, parent(&folder)?))
        })
        .collect();
    let mut tree = vec![pid];
    let mut at = 0;
    while let Some(&parent) = tree.get(at) {
        tree.extend(processes.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    tree
}

/// Returns the parent of the process with this folder in `/proc`, which is the second field after the name in
/// parentheses.
fn parent(folder: &Path) -> Option<u32> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
