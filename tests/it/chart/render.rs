//! Tests of the rendered objects of each case.

use std::collections::BTreeMap;

use serde_json::Value;

use super::checks::{check, config, selectors, selects};
use super::helm::{CASES, Helm, RELEASE, chart, find, items, of_kind, text, values_of};
use crate::process::program::check_generated;

/// The oldest supported version. It does not support `preStop.sleep`.
const OLDEST: &str = "1.29";
const OTHERS: [&str; 8] = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

#[test]
fn each_case_is_valid_with_each_version_of_kubernetes_and_helm() {
    let mut passed = String::new();
    for case in CASES {
        let [three, four] = Helm::ALL.map(|helm| {
            let lint = helm
                .command()
                .args(["lint", "--strict", "--values"])
                .arg(values_of(case))
                .arg(chart())
                .output();
            let lint = lint.unwrap();
            assert!(lint.status.success(), "{helm:?} {case}: {}", String::from_utf8_lossy(&lint.stdout));
            let oldest = helm.render(case, &["--kube-version", OLDEST], &[OLDEST]);
            let others = helm.render(case, &["--kube-version", OTHERS[0]], &OTHERS);
            (oldest, others)
        });
        assert_eq!(three, four, "{case}: both versions of Helm render the same");
        for objects in [&three.0, &three.1] {
            check(case, objects);
        }
        passed += &format!("{case:<20} Helm 3.17.3 and 4.2.3, Kubernetes {OLDEST} {}\n", OTHERS.join(" "));
    }
    // scripts/test prints this file.
    std::fs::write(concat!(env!("CARGO_TARGET_TMPDIR"), "/chart-cases"), passed).unwrap();
}

#[test]
fn the_chart_can_be_packaged() {
    let folder = tempfile::tempdir().unwrap();
    for helm in Helm::ALL {
        let packed =
            helm.command().arg("package").arg(chart()).arg("--destination").arg(folder.path()).output();
        assert!(packed.unwrap().status.success(), "{helm:?}");
        let package = folder.path().join(format!("keyvouch-{}.tgz", env!("CARGO_PKG_VERSION")));
        let shown = helm.command().args(["show", "readme"]).arg(&package).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains("store.existingSecret"));
        std::fs::remove_file(package).unwrap();
    }
}

#[test]
fn the_readme_and_the_schema_are_generated_from_the_values() {
    check_generated("chart");
}

/// Each value of the README is used by a template, by itself or as part of a parent value.
#[test]
fn every_value_is_used() {
    let mut templates = String::new();
    for folder in ["templates", "templates/tests"] {
        for entry in std::fs::read_dir(chart().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                templates += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let readme = std::fs::read_to_string(chart().join("README.md")).unwrap();
    let values: Vec<_> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(values.len() > 80, "{values:?}");
    let names = |value: &str| {
        let end = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric());
        templates.split(&format!(".Values.{value}")).skip(1).any(end)
    };
    let whole = |value: &str| templates.contains(&format!("toYaml .Values.{value}"));
    for value in values {
        let around = value.rsplit_once('.').is_some_and(|(around, _)| whole(around));
        assert!(names(value) || around, "{value} is not used");
    }
}

#[test]
fn long_names_are_truncated() {
    let long = "a-release-with-a-name-as-long-as-helm-allows-it-to-be";
    assert_eq!(long.len(), 53);
    let fullname = ["--set", &format!("fullnameOverride={long}-and-more,migrations.mode=job")];
    check("postgres-redis-ha", &Helm::Four.render("postgres-redis-ha", &fullname, &OTHERS[..1]));
}

#[test]
fn the_cache_may_use_half_of_the_memory_limit() {
    for (limit, bytes) in [("512Mi", 1_u64 << 28), ("2Gi", 1 << 30), ("1G", 500_000_000), ("1.5Gi", 3 << 28)]
    {
        let set = format!("resources.limits.memory={limit}");
        let objects = Helm::Four.render("default", &["--set", &set], &[]);
        assert_eq!(config(&objects).cache.local.max_bytes, bytes, "{limit}");
    }
    let own = ["--set", "config.cache.local.max_bytes=1000"];
    assert_eq!(config(&Helm::Four.render("default", &own, &[])).cache.local.max_bytes, 1_000);
    let none = config(&Helm::Four.render("minimal", &[], &[]));
    assert_eq!(none.cache.local.max_bytes, 0);
}

#[test]
fn changed_settings_replace_the_pods() {
    let checksum = |arguments: &[&str]| {
        let objects = Helm::Four.render("default", arguments, &[]);
        let deployment = of_kind(&objects, "Deployment").next().unwrap();
        text(&deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]).to_owned()
    };
    assert_ne!(checksum(&[]), checksum(&["--set", "config.cache.ttl=1m"]));
    assert_eq!(checksum(&[]), checksum(&["--set", "commonLabels.team=b"]));
}

/// A hook that runs before the release refers only to objects that exist before it.
#[test]
fn the_migration_job_refers_only_to_existing_objects() {
    let objects = Helm::Four.render("mysql", &[], &[]);
    let job = of_kind(&objects, "Job").next().unwrap();
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-install,pre-upgrade");
    let pod = &job["spec"]["template"]["spec"];
    assert!(pod["serviceAccountName"].is_null() && pod["volumes"].is_null(), "{pod}");
    let mut secrets = BTreeMap::new();
    for variable in items(&pod["containers"][0]["env"]) {
        let reference = &variable["valueFrom"]["secretKeyRef"];
        if !reference.is_null() {
            secrets.insert(text(&variable["name"]), text(&reference["name"]));
        }
    }
    assert_eq!(secrets, BTreeMap::from([("KEYVOUCH__STORE__URL", "keyvouch-database")]));
    let deployment = of_kind(&objects, "Deployment").next().unwrap();
    assert!(deployment["spec"]["template"]["spec"]["initContainers"].is_null());
    let name = format!("{RELEASE}-keyvouch-migrate");
    assert_eq!(job["metadata"]["name"], name.as_str());
}

#[test]
fn extra_objects_are_rendered_as_templates() {
    let objects = Helm::Three.render("mtls-cert-manager", &[], &[]);
    assert_eq!(find(&objects, "ConfigMap", "kv-extra")["data"]["service"], "kv-keyvouch");
    let certificate = of_kind(&objects, "Certificate").next().unwrap();
    let names = items(&certificate["spec"]["dnsNames"]);
    for service in of_kind(&objects, "Service") {
        let name = format!("{}.prod.svc", text(&service["metadata"]["name"]));
        assert!(names.iter().any(|it| *it == name.as_str()), "{name}");
    }
}

/// Values that YAML could interpret as another type stay text, and duplicate names are rejected.
#[test]
fn values_keep_their_types() {
    let values = [
        "nameOverride=n1",
        "store.existingSecret=123",
        "store.key=yes",
        "admin.key=1",
        "priorityClassName=1000",
        "serviceAccount.name=true",
        "commonLabels.team=a",
        "podLabels.team=b",
        "commonLabels.app\\.kubernetes\\.io/instance=other",
        "podAnnotations.checksum/config=mine",
        "metrics.serviceMonitor.labels.team=c",
        "config.store.sql.max_readers=1000000",
        "resources.limits.memory=536870912",
        "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "extraContainers[0].name=side",
        "extraContainers[0].image=i",
        "extraEnvFrom[0].configMapRef.name=more",
        "migrations.mode=job",
    ];
    let mut arguments: Vec<_> = values.iter().flat_map(|value| ["--set", value]).collect();
    let strings = ["store.existingSecret=123", "store.key=yes", "admin.key=1", "priorityClassName=1000"];
    arguments.extend(strings.iter().flat_map(|value| ["--set-string", value]));
    arguments.extend(["--set-string", "serviceAccount.name=true"]);
    for helm in Helm::ALL {
        let objects = helm.render("postgres-redis-ha", &arguments, &OTHERS);
        let deployment = of_kind(&objects, "Deployment").next().unwrap();
        let pod = &deployment["spec"]["template"];
        selectors(&objects, pod);
        assert_eq!(pod["metadata"]["labels"]["team"], "b");
        assert_ne!(pod["metadata"]["annotations"]["checksum/config"], "mine");
        assert_eq!(of_kind(&objects, "ServiceMonitor").next().unwrap()["metadata"]["labels"]["team"], "c");
        assert_eq!(config(&objects).cache.local.max_bytes, 536_870_912 / 2);
        let job = of_kind(&objects, "Job").next().unwrap();
        let variables = items(&job["spec"]["template"]["spec"]["containers"][0]["env"]);
        let readers = variables.iter().find(|it| it["name"] == "KEYVOUCH__STORE__SQL__MAX_READERS").unwrap();
        assert_eq!(readers["value"], "1000000");
        let container = &pod["spec"]["containers"];
        assert!(text(&container[0]["image"]).ends_with(&format!("@sha256:{}", "0".repeat(64))));
        assert_eq!(
            (&container[1]["name"], &container[0]["envFrom"][0]["configMapRef"]["name"]),
            (&"side".into(), &"more".into())
        );
    }
}

#[test]
fn the_claim_is_kept_and_the_headless_service_has_no_address() {
    let objects =
        Helm::Four.render("default", &["--set-string", "store.persistence.storageClass=-"], &OTHERS);
    let claim = of_kind(&objects, "PersistentVolumeClaim").next().unwrap();
    assert_eq!(claim["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert_eq!(claim["spec"]["storageClassName"], "", "`-` must disable the default storage class");
    assert_eq!(find(&objects, "Service", "kv-keyvouch-headless")["spec"]["clusterIP"], "None");
    for port in of_kind(&objects, "Service").flat_map(|service| items(&service["spec"]["ports"])) {
        assert_eq!(port["appProtocol"] == "grpc", port["name"] != "metrics", "{port}");
    }
}

/// The alerts of a release select only the metrics of that release.
#[test]
fn alerts_select_only_their_release() {
    let objects = Helm::Four.render("postgres-redis-ha", &[], &[]);
    let rule = of_kind(&objects, "PrometheusRule").next().unwrap();
    let rules = items(&rule["spec"]["groups"][0]["rules"]);
    assert!(rules.len() > 8);
    for rule in rules {
        let (expression, own) =
            (text(&rule["expr"]), r#"namespace="prod", job=~"(prod/)?kv-keyvouch(-headless)?""#);
        assert_eq!(expression.matches("keyvouch_").count(), expression.matches(own).count(), "{expression}");
    }
}

#[test]
fn the_network_policy_allows_only_needed_traffic() {
    let objects = Helm::Four.render("postgres-redis-ha", &[], &[]);
    let spec = &of_kind(&objects, "NetworkPolicy").next().unwrap()["spec"];
    let ports = |rule: &Value| {
        items(&rule["ports"]).iter().map(|port| port["port"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let ingress = items(&spec["ingress"]);
    assert_eq!(ingress.iter().map(ports).collect::<Vec<_>>(), [vec![50_051], vec![50_052], vec![9_464]]);
    for rule in ingress {
        assert!(!items(&rule["from"]).is_empty(), "the rule allows all peers: {rule}");
    }
    let test = of_kind(&objects, "Pod").next().unwrap();
    assert!(selects(&ingress[0]["from"][0]["podSelector"]["matchLabels"], &test["metadata"]["labels"]));
    let egress = items(&spec["egress"]);
    let expected = [vec![53, 53], vec![5_432, 3_306, 6_379, 26_379], vec![6_379, 26_379], vec![4_317]];
    assert_eq!(
        egress.iter().map(ports).collect::<Vec<_>>(),
        expected,
        "DNS, the store, the cache, the collector"
    );
    let unset = ["--set", "networkPolicy.ingress.from=null,networkPolicy.ingress.metricsFrom=null"];
    assert!(
        !Helm::Four.template("postgres-redis-ha", &unset).status.success(),
        "null must not allow all peers"
    );
    let without_peers = ["--set-json", "networkPolicy.ingress.from=[]"];
    let objects = Helm::Four.render("postgres-redis-ha", &without_peers, &[]);
    let spec = &of_kind(&objects, "NetworkPolicy").next().unwrap()["spec"];
    assert_eq!(items(&spec["ingress"][0]["from"]).len(), 1, "only the pod of helm test must be allowed");
}
