//! Tests of the alerts and the dashboard.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::helm::{chart, items};
use crate::process::program::downloaded;

fn promtool(arguments: &[&str]) {
    let done = Command::new(downloaded("promtool")).args(arguments).output().unwrap();
    let output = [&done.stdout[..], &done.stderr].map(String::from_utf8_lossy).concat();
    assert!(done.status.success() && output.contains("SUCCESS"), "{output}");
}

fn rules() -> String {
    std::fs::read_to_string(chart().join("rules/keyvouch.yaml")).unwrap()
}

fn dashboard() -> String {
    std::fs::read_to_string(chart().join("dashboards/keyvouch.json")).unwrap()
}

/// Returns the names of metrics in `text` that a server has to export.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words =
        text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'));
    let is_metric = |word: &&str| word.starts_with("keyvouch_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

/// Returns the metrics that alerts and panels query, but that are missing in the `exposition` of a server.
pub(super) fn missing_metrics(exposition: &str) -> Vec<String> {
    let exported: BTreeSet<_> = exposition
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect();
    let expressions =
        rules().lines().filter(|line| !line.contains("description:")).collect::<Vec<_>>().join("\n");
    let queried = metrics_in(&expressions).into_iter().chain(metrics_in(&dashboard()));
    queried.filter(|metric| !exported.contains(metric.as_str())).collect()
}

#[test]
fn alerts_fire_as_their_tests_expect() {
    let folder = tempfile::tempdir().unwrap();
    let rules_file = folder.path().join("rules.yaml");
    std::fs::write(&rules_file, rules()).unwrap();
    promtool(&["check", "rules", rules_file.to_str().unwrap()]);
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chart/alerts.yaml");
    let copied = folder.path().join("alerts.yaml");
    std::fs::copy(tests, &copied).unwrap();
    promtool(&["test", "rules", copied.to_str().unwrap()]);
    let alerts = rules();
    let tested = std::fs::read_to_string(tests).unwrap();
    let documented =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        // A flow mapping tests that an alert does not fire, and a block tests that it fires.
        assert!(tested.contains(&format!("{{alertname: {alert},")), "no test in which {alert} does not fire");
        assert!(tested.contains(&format!("- alertname: {alert}\n")), "no test in which {alert} fires");
        assert!(documented.contains(alert), "docs/operations.md does not describe {alert}");
    }
}

#[test]
fn every_panel_of_the_dashboard_queries_metrics() {
    let dashboard: Value = serde_json::from_str(&dashboard()).unwrap();
    let mut numbers = BTreeSet::new();
    for panel in items(&dashboard["panels"]) {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()));
        if panel["type"] == "row" {
            continue;
        }
        for target in items(&panel["targets"]) {
            let expression = target["expr"].as_str().unwrap();
            assert!(!metrics_in(expression).is_empty(), "{expression}");
            assert!(expression.contains("$namespace") && expression.contains("$job"), "{expression}");
        }
        assert!(!items(&panel["targets"]).is_empty(), "{}", panel["title"]);
    }
    assert!(numbers.len() > 20);
}
