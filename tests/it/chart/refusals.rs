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
        is_refused("postgres-redis-ha", &[value], &["not allowed here", "Secret", instead]);
        assert!(!refusal(Helm::Four, "postgres-redis-ha", &[value]).contains("hunter2"));
    }
    for (values, told) in [
        (
            &["extraEnv[0].name=KEYVOUCH__STORE__URL", "extraEnv[0].value=x"][..],
            "extraEnv: KEYVOUCH__STORE__URL is not allowed here",
        ),
        (
            &["extraEnv[0].name=keyvouch__admin__tokens", "extraEnv[0].value=x"],
            "extraEnv: keyvouch__admin__tokens is not allowed here",
        ),
        (&["extraEnv[0].name=PGPASSWORD", "extraEnv[0].value=x"], "extraEnv: PGPASSWORD is secret"),
        (&["extraEnv[0].name=OTEL_EXPORTER_OTLP_HEADERS", "extraEnv[0].value=x"], "is secret; use valueFrom"),
        (
            &["config.telemetry.otlp_endpoint=http://u:hunter2@h:1"],
            "the values contain a URL with a password",
        ),
        (&["extraContainers[0].env[0].value=redis://:hunter2@h"], "the values contain a URL with a password"),
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
        ("config.server.tls.cert_file=/x", "use tls"),
        ("config.telemetry.listen=127.0.0.1:1", "probes need it"),
        ("config.admin.insecure=true", "use admin"),
        ("config.admin.insecure=false", "use admin"),
        ("config.store.url=", "store.existingSecret"),
    ] {
        is_refused("default", &[value], &["not allowed here: ", why]);
    }
}

#[test]
fn more_pods_than_can_have_the_keys() {
    for backend in ["sqlite", "memory"] {
        let set = format!("store.backend={backend}");
        let why = format!("store.backend {backend} supports only one pod");
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
        (
            "redis-cluster",
            &["store.replica.existingSecret=x"],
            "store.backend redis does not support a replica",
        ),
        ("default", &["admin.service.enabled=true"], "KeyStore has no port without a credential"),
        ("tls", &["admin.clientCertificates={ops.example.com}"], "set tls.clientAuth"),
        ("default", &["tls.clientAuth=required"], "tls.clientAuth: needs TLS"),
        (
            "mtls-cert-manager",
            &["tls.existingSecret=x"],
            "existingSecret and certManager.enabled are both set",
        ),
        ("mtls-cert-manager", &["test.clientCertificateSecret="], "helm test needs a client certificate"),
        ("tls", &["tls.existingSecret=", "tls.certManager.enabled=true"], "needs the name of an issuer"),
        ("tls", &["tls.clientAuth=required"], "helm test needs a client certificate"),
        ("tls", &["config.validator.access=credential"], "helm test needs a credential"),
        ("redis-cluster", &["autoscaling.minReplicas=20"], "minReplicas must not be more than maxReplicas"),
        (
            "redis-cluster",
            &["autoscaling.targetCPUUtilizationPercentage=null"],
            "set targetCPUUtilizationPercentage",
        ),
        ("default", &["config.server.drain_timeout=2days"], "the duration `2days`"),
        ("default", &["resources.limits.memory=much"], "unsupported quantity `much`"),
        (
            "redis-cluster",
            &["resources.requests.cpu=null"],
            "relative to resources.requests.cpu, which is unset",
        ),
        ("redis-cluster", &["metrics.serviceMonitor.enabled=true"], "scrape every pod twice"),
        ("default", &["extraVolumes[0].name=config"], "the chart already has a volume config"),
    ] {
        is_refused(case, values, &[told]);
    }
}
