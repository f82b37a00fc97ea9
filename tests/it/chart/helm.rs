//! Renders the chart.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::databases;
use crate::process::program::{downloaded, tool};

/// The versions of Helm that the chart supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helm {
    Three,
    Four,
}

/// The files of values in `ci/`.
pub(super) const CASES: [&str; 7] =
    ["default", "minimal", "postgres-redis-ha", "redis-cluster", "mysql", "tls", "mtls-cert-manager"];

/// The release and the namespace of all tests.
pub(super) const RELEASE: &str = "kv";
pub(super) const NAMESPACE: &str = "prod";

pub(super) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/keyvouch")
}

pub(super) fn values_of(case: &str) -> PathBuf {
    chart().join(format!("ci/{case}-values.yaml"))
}

impl Helm {
    pub(super) const ALL: [Self; 2] = [Self::Three, Self::Four];

    /// Returns the command of this version, isolated from the settings of the user who runs the tests.
    pub(super) fn command(self) -> Command {
        let mut command = Command::new(downloaded(match self {
            Self::Three => "helm-3",
            Self::Four => "helm-4",
        }));
        let nowhere = std::env::temp_dir().join("keyvouch-no-helm-settings");
        for variable in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME"] {
            command.env(variable, &nowhere);
        }
        command.env_remove("KUBECONFIG");
        command
    }

    /// Runs `helm template` for a release, with a file of values and more arguments.
    pub(super) fn template(self, case: &str, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(["template", RELEASE]).arg(chart()).args(["--namespace", NAMESPACE, "--values"]);
        command.arg(values_of(case)).args(arguments).output().unwrap()
    }

    /// Returns the rendered objects. Checks each against the schemas of the versions in `kubernetes`.
    pub(super) fn render(self, case: &str, arguments: &[&str], kubernetes: &[&str]) -> Vec<Value> {
        let rendered = self.template(case, arguments);
        assert!(rendered.status.success(), "{case}: {}", String::from_utf8_lossy(&rendered.stderr));
        let folder = databases::folder("chart");
        let yaml = folder.path().join("rendered.yaml");
        std::fs::write(&yaml, rendered.stdout).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chart/objects.py");
        let mut python = Command::new(tool("python"));
        python.arg(script).args(kubernetes).stdin(std::fs::File::open(yaml).unwrap());
        let checked = python.output().unwrap();
        assert!(checked.status.success(), "{case}: {}", String::from_utf8_lossy(&checked.stderr));
        serde_json::from_slice(&checked.stdout).unwrap()
    }
}

/// Returns the object of `kind` with `name`.
pub(super) fn find<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("{kind} {name} not found"))
}

pub(super) fn of_kind<'o>(objects: &'o [Value], kind: &'o str) -> impl Iterator<Item = &'o Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// Returns the items of a list, or an empty slice if the list is missing.
pub(super) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}
