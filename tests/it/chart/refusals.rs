//! Tests that the chart rejects invalid values, with the reason.

use super::helm::Helm;

/// Returns the error of the chart for `--set` values in a case.
fn refusal(helm: Helm, case: &str, values: &[&str]) -> String {
    let arguments: Vec<_> = values.iter().flat_map(|value| ["--set", value]).collect();
    let rendered = helm.template(case, &arguments);
    assert!(!rendered.status.success(), "{case} {values:?} is rendered");
    String::from_utf8(rendered.stderr).unwrap()
}

fn is_refused(case: &str, values: &[&str], with: &[&str]) {
    for helm in Helm::ALL {
        let told = refusal(helm, case, values);
        for part in with {
            assert!(told.contains(part), "{helm:?} {case} {values:?}: {told}");
        }
    }
}

#[test]
fn what_is_unknown_or_of_the_wrong_kind() {
    for (value, named) in [
        ("replicaCounts=2", "replicaCounts"),
        ("image.repo=x", "repo"),
        ("tls.certManager.issuer=x", "issuer"),
        ("probes.startup.periodSecond=1", "periodSecond"),
        ("replicaCount=many", "replicaCount"),
        ("store.backend=postgresql", "backend"),
        ("image.digest=latest", "digest"),
        ("config.cache.tll=1m", "tll"),
        ("config.caches.ttl=1m", "caches"),
        ("config.server.max_calls=many", "max_calls"),
        ("config.telemetry.log_format=xml", "log_format"),
        ("config.cache.ttl=soon", "ttl"),
        ("podDisruptionBudget.maxUnavailable=0", "maxUnavailable"),
        ("podDisruptionBudget.maxUnavailable=some", "maxUnavailable"),
        ("probes.liveness.periodSeconds=0", "periodSeconds"),
        ("probes.liveness.successThreshold=2", "successThreshold"),
        ("listenAddress=hello", "listenAddress"),
        ("nameOverride=My App", "nameOverride"),
        ("fullnameOverride=My_App", "fullnameOverride"),
        ("networkPolicy.egress.store.ports=null", "ports"),
        ("networkPolicy.egress.store.ports={}", "ports"),
        ("resources=null", "resources"),
        ("config=null", "config"),
        ("tls=null", "tls"),
        ("probes.startup=null", "startup"),
    ] {
        is_refused("default", &[value], &[named]);
    }
}

#[test]
fn passwords_in_plain_text() {
    for (value, instead) in [
        ("config.store.url=postgres://user:hunter2@host/db", "store.existingSecret"),
        ("config.store.replica_url=postgres://user:hunter2@host/db", "store.replica.existingSecret"),
        ("config.cache.redis.url=redis://:hunter2@host", "redisCache.existingSecret"),
        ("config.admin.tokens={ops:hunter2-hunter2-hunter2}", "admin.existingSecret"),
    ] {
        is_refused("postgres-redis-ha", &[value], &["is refused", "Secret", instead]);
        assert!(!refusal(Helm::Four, "postgres-redis-ha", &[value]).contains("hunter2"));
    }
    for (values, told) in [
        (
            &["extraEnv[0].name=KEYVOUCH__STORE__URL", "extraEnv[0].value=x"][..],
            "extraEnv: KEYVOUCH__STORE__URL is refused",
        ),
        (
            &["extraEnv[0].name=keyvouch__admin__tokens", "extraEnv[0].value=x"],
            "extraEnv: keyvouch__admin__tokens is refused",
        ),
        (&["extraEnv[0].name=PGPASSWORD", "extraEnv[0].value=x"], "extraEnv: PGPASSWORD is secret"),
        (
            &["extraEnv[0].name=OTEL_EXPORTER_OTLP_HEADERS", "extraEnv[0].value=x"],
            "is secret: give it by valueFrom",
        ),
        (&["config.telemetry.otlp_endpoint=http://u:hunter2@h:1"], "a URL with a password is in the values"),
        (&["extraContainers[0].env[0].value=redis://:hunter2@h"], "a URL with a password is in the values"),
        (&["extraObjects[0].kind=Secret"], "extraObjects: a Secret would have its content in the values"),
        (&["store.existingSecret=postgres://u:hunter2@h/d"], "existingSecret"),
        (&["admin.key=a b"], "key"),
    ] {
        is_refused("postgres-redis-ha", values, &[told]);
    }
}

#[test]
fn what_the_chart_sets_itself() {
    for (value, why) in [
        ("config.server.listen={127.0.0.1:1}", "listenAddress"),
        ("config.server.tls.cert_file=/x", "see tls"),
        ("config.telemetry.listen=127.0.0.1:1", "probes need it"),
        ("config.admin.insecure=true", "see admin"),
        ("config.admin.insecure=false", "see admin"),
        ("config.store.url=", "store.existingSecret"),
    ] {
        is_refused("default", &[value], &["is refused: ", why]);
    }
}

#[test]
fn more_pods_than_can_have_the_keys() {
    for backend in ["sqlite", "memory"] {
        let set = format!("store.backend={backend}");
        let why = format!("store.backend {backend} keeps keys in one pod");
        is_refused("default", &[&set, "replicaCount=2"], &["replicaCount", &why]);
        is_refused("default", &[&set, "autoscaling.enabled=true"], &["autoscaling.enabled", &why]);
    }
}

#[test]
fn halves_of_things() {
    for (case, values, told) in [
        (
            "default",
            &["store.backend=postgres"][..],
            "store.existingSecret: store.backend postgres needs a Secret",
        ),
        ("default", &["store.existingSecret=x"], "store.backend sqlite has no URL"),
        ("redis-cluster", &["store.replica.existingSecret=x"], "store.backend redis has no replica"),
        ("default", &["admin.service.enabled=true"], "KeyStore has no port without a credential"),
        ("tls", &["admin.clientCertificates={ops.example.com}"], "set tls.clientAuth"),
        ("default", &["tls.clientAuth=required"], "without a certificate of the server there is no TLS"),
        ("mtls-cert-manager", &["tls.existingSecret=x"], "two sources of one certificate"),
        ("mtls-cert-manager", &["test.clientCertificateSecret="], "helm test needs a client certificate"),
        ("tls", &["tls.existingSecret=", "tls.certManager.enabled=true"], "needs the name of an issuer"),
        ("tls", &["tls.clientAuth=required"], "helm test needs a client certificate"),
        ("tls", &["config.validator.access=credential"], "helm test needs one"),
        ("redis-cluster", &["autoscaling.minReplicas=20"], "minReplicas is more than maxReplicas"),
        (
            "redis-cluster",
            &["autoscaling.targetCPUUtilizationPercentage=null"],
            "set targetCPUUtilizationPercentage",
        ),
        ("default", &["config.server.drain_timeout=2days"], "config.server: `2days` is no duration"),
        ("default", &["resources.limits.memory=much"], "no quantity"),
        (
            "redis-cluster",
            &["resources.requests.cpu=null"],
            "a share of resources.requests.cpu, which is not set",
        ),
        ("redis-cluster", &["metrics.serviceMonitor.enabled=true"], "every pod is read twice"),
        ("default", &["extraVolumes[0].name=config"], "config is a volume of the chart"),
    ] {
        is_refused(case, values, &[told]);
    }
}
