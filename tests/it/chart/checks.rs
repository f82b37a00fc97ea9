//! Checks that hold for all rendered objects, whatever the values are.

use std::collections::BTreeSet;

use keyvouch::config::Config;
use serde_json::Value;

use super::helm::{find, items, of_kind, text};

/// Runs all checks.
pub(super) fn check(case: &str, objects: &[Value]) {
    names(objects);
    secrets(objects);
    let deployment = of_kind(objects, "Deployment").next().unwrap();
    let pod = &deployment["spec"]["template"];
    selectors(objects, pod);
    ports(&pod["spec"]);
    volumes(&pod["spec"]);
    let config = config(objects);
    shutdown_time(&pod["spec"], &config);
    replicas(case, objects, deployment);
    for object in objects {
        security(object);
    }
}

/// Checks that every pod satisfies the Pod Security Standard `restricted`, and further rules.
fn security(object: &Value) {
    let pod = match text(&object["kind"]) {
        "Pod" => &object["spec"],
        "Deployment" | "Job" => &object["spec"]["template"]["spec"],
        _ => return,
    };
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false);
    let context = &pod["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert!(context["runAsUser"].as_u64().unwrap() >= 10_000);
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    for container in containers(object) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert!(!container["resources"]["requests"]["memory"].is_null(), "{container}");
    }
    for volume in items(&pod["volumes"]) {
        let secret = &volume["secret"];
        // Volumes from the values are rendered unchanged.
        let is_own = !secret["items"].is_null();
        assert!(!is_own || secret["defaultMode"] == 0o440, "{volume}");
    }
}

fn names(objects: &[Value]) {
    let mut seen = BTreeSet::new();
    for object in objects {
        let name = text(&object["metadata"]["name"]);
        assert!(name.len() <= 63, "{name}");
        assert!(seen.insert((text(&object["kind"]), name)), "duplicate {name}");
        for (label, value) in object["metadata"]["labels"].as_object().into_iter().flatten() {
            assert!(text(value).len() <= 63, "{label}={value}");
        }
    }
}

/// Checks that the output contains no secret, and only refers to Secrets.
fn secrets(objects: &[Value]) {
    assert_eq!(of_kind(objects, "Secret").count(), 0);
    let all = serde_json::to_string(objects).unwrap();
    for scheme in ["postgres://", "mysql://", "redis://", "rediss://", "PRIVATE KEY"] {
        assert!(!all.contains(scheme), "{scheme}");
    }
    for container in objects.iter().flat_map(containers) {
        for variable in items(&container["env"]) {
            let name = text(&variable["name"]);
            assert!(
                !(name.ends_with("URL") || name.ends_with("TOKENS")) || variable["value"].is_null(),
                "{name} is not a reference"
            );
        }
    }
}

/// Returns the containers of an object, including its init containers.
fn containers(object: &Value) -> impl Iterator<Item = &Value> {
    let pod = if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
    items(&pod["initContainers"]).iter().chain(items(&pod["containers"]))
}

pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

pub(super) fn selectors(objects: &[Value], pod: &Value) {
    let labels = &pod["metadata"]["labels"];
    let others: Vec<_> = objects
        .iter()
        .filter_map(|object| match text(&object["kind"]) {
            "Pod" => Some(&object["metadata"]["labels"]),
            "Job" => Some(&object["spec"]["template"]["metadata"]["labels"]),
            _ => None,
        })
        .collect();
    for object in objects {
        let spec = &object["spec"];
        let selector = match text(&object["kind"]) {
            "Deployment" | "PodDisruptionBudget" | "PodMonitor" => &spec["selector"]["matchLabels"],
            "NetworkPolicy" => &spec["podSelector"]["matchLabels"],
            "Service" => &spec["selector"],
            "ServiceMonitor" => {
                let services = of_kind(objects, "Service");
                let selected = services.filter(|service| {
                    selects(&spec["selector"]["matchLabels"], &service["metadata"]["labels"])
                });
                let selected: Vec<_> = selected.collect();
                assert_eq!(selected.len(), 1);
                let ports = items(&selected[0]["spec"]["ports"]);
                assert!(ports.iter().any(|port| port["name"] == spec["endpoints"][0]["port"]));
                continue;
            }
            "HorizontalPodAutoscaler" => {
                find(objects, "Deployment", text(&spec["scaleTargetRef"]["name"]));
                continue;
            }
            _ => continue,
        };
        assert!(selects(selector, labels), "{selector}");
        for other in &others {
            assert!(!selects(selector, other), "{selector} selects a pod that is not a server");
        }
    }
    for service in of_kind(objects, "Service") {
        for port in items(&service["spec"]["ports"]) {
            let named = items(&pod["spec"]["containers"][0]["ports"]).iter();
            assert!(named.clone().any(|it| it["name"] == port["targetPort"]), "{port}");
        }
    }
    for constraint in items(&pod["spec"]["topologySpreadConstraints"]) {
        assert!(selects(&constraint["labelSelector"]["matchLabels"], labels));
    }
}

/// Checks that the ports of probes are numbers, which the API requires for some kinds, and ports of the
/// container.
fn ports(pod: &Value) {
    let container = &pod["containers"][0];
    let mut paths = BTreeSet::new();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert!(get["port"].is_u64(), "{probe}: {get}");
        assert!(
            items(&container["ports"]).iter().any(|port| port["containerPort"] == get["port"]),
            "{probe}"
        );
        paths.insert(text(&get["path"]));
    }
    assert_eq!(paths.len(), 3, "the probes must have different paths: {paths:?}");
}

fn volumes(pod: &Value) {
    let volumes: BTreeSet<_> = items(&pod["volumes"]).iter().map(|volume| text(&volume["name"])).collect();
    let mounted: BTreeSet<_> = items(&pod["initContainers"])
        .iter()
        .chain(items(&pod["containers"]))
        .flat_map(|container| items(&container["volumeMounts"]))
        .map(|mount| text(&mount["name"]))
        .collect();
    assert_eq!(volumes, mounted);
}

/// Returns the configuration. Panics if it has settings that are unknown to this release.
pub(super) fn config(objects: &[Value]) -> Config {
    let json = text(&find_config(objects)["data"]["keyvouch.json"]);
    let settings = without_nulls(serde_json::from_str(json).unwrap());
    serde_json::from_value(settings).unwrap_or_else(|error| panic!("{error}\n{json}"))
}

/// Returns the settings that are set.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let set = fields.into_iter().filter(|(_, value)| !value.is_null());
            set.map(|(name, value)| (name, without_nulls(value))).collect()
        }
        value => value,
    }
}

fn find_config(objects: &[Value]) -> &Value {
    let mut maps = of_kind(objects, "ConfigMap");
    maps.find(|map| !map["data"]["keyvouch.json"].is_null()).unwrap()
}

/// Checks that the kubelet waits as long as the settings allow a shutdown to take.
fn shutdown_time(pod: &Value, config: &Config) {
    let sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
    let settle = config.server.settle_delay.0.as_secs();
    assert!(sleep + settle >= 5, "the Service needs time to remove the endpoint");
    let needed = sleep + settle + config.server.drain_timeout.0.as_secs() + 10;
    assert_eq!(pod["terminationGracePeriodSeconds"], needed);
}

fn replicas(case: &str, objects: &[Value], deployment: &Value) {
    let autoscaler = of_kind(objects, "HorizontalPodAutoscaler").next();
    let replicas = deployment["spec"]["replicas"].as_u64();
    assert_eq!(
        replicas.is_some(),
        autoscaler.is_none(),
        "{case}: either the Deployment or the autoscaler sets the replicas"
    );
    let min_replicas = replicas.or(autoscaler.and_then(|it| it["spec"]["minReplicas"].as_u64())).unwrap();
    let budget = of_kind(objects, "PodDisruptionBudget").next();
    assert_eq!(budget.is_some(), min_replicas > 1, "{case}");
    if let Some(budget) = budget {
        assert!(
            budget["spec"]["maxUnavailable"].as_u64().unwrap() < min_replicas,
            "{case}: the budget allows to evict all pods"
        );
    }
    let strategy = &deployment["spec"]["strategy"];
    if min_replicas == 1 {
        assert_eq!(strategy["type"], "Recreate", "{case}");
    } else {
        assert_eq!(strategy["rollingUpdate"]["maxUnavailable"], 0, "{case}");
    }
}
