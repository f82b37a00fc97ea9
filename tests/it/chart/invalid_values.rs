//! Tests that the chart rejects invalid values with an error that names them. The chart's own errors begin with the
//! path of the value.

use super::helm::Helm;

/// Returns the error of the chart for `--set` values in a case.
fn error_of(helm: Helm, case: &str, values: &[&str]) -> String {
    let arguments: Vec<_> = values.iter().flat_map(|value| ["--set", value]).collect();
    let rendered = helm.template(case, &arguments);
    assert!(!rendered.status.success(), "{case} {values:?} must be rejected");
    String::from_utf8(rendered.stderr).unwrap()
}

/// Checks that both versions of Helm reject the values, with an error that contains each of `parts`.
fn check_rejected(case: &str, values: &[&str], parts: &[&str]) {
    for helm in Helm::ALL {
        let error = error_of(helm, case, values);
        for part in parts {
            assert!(error.contains(part), "{helm:?} {case} {values:?}: {error}");
        }
    }
}

#[test]
fn unknown_values_and_wrong_types_are_rejected() {
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
        check_rejected("default", &[value], &[named]);
    }
}

#[test]
fn passwords_in_plain_text_are_rejected() {
    for (value, instead) in [
        ("config.store.url=postgres://user:hunter2@host/db", "store.existingSecret"),
        ("config.store.sql.replica_url=postgres://user:hunter2@host/db", "store.replica.existingSecret"),
        ("config.cache.redis.url=redis://:hunter2@host", "redisCache.existingSecret"),
        ("config.admin.tokens={ops:hunter2-hunter2-hunter2}", "admin.existingSecret"),
    ] {
        let path = format!("{}: ", value.split_once('=').unwrap().0);
        check_rejected("postgres-redis-ha", &[value], &[&path, instead]);
        assert!(!error_of(Helm::Four, "postgres-redis-ha", &[value]).contains("hunter2"));
    }
    for (values, parts) in [
        (
            &["extraEnv[0].name=KEYVOUCH__STORE__URL", "extraEnv[0].value=x"][..],
            &["extraEnv: KEYVOUCH__STORE__URL ", "store.existingSecret"][..],
        ),
        (
            &["extraEnv[0].name=keyvouch__admin__tokens", "extraEnv[0].value=x"],
            &["extraEnv: keyvouch__admin__tokens ", "admin.existingSecret"],
        ),
        (
            &["extraEnv[0].name=PGPASSWORD", "extraEnv[0].value=x"],
            &["extraEnv: PGPASSWORD ", "valueFrom.secretKeyRef"],
        ),
        (
            &["extraEnv[0].name=OTEL_EXPORTER_OTLP_HEADERS", "extraEnv[0].value=x"],
            &["extraEnv: OTEL_EXPORTER_OTLP_HEADERS ", "valueFrom.secretKeyRef"],
        ),
        // These two errors name no path, because the password can be in any value.
        (&["config.telemetry.otlp_endpoint=http://u:hunter2@h:1"], &["URL with a password"]),
        (&["extraContainers[0].env[0].value=redis://:hunter2@h"], &["URL with a password"]),
        (&["extraObjects[0].kind=Secret"], &["extraObjects: "]),
        (&["store.existingSecret=postgres://u:hunter2@h/d"], &["existingSecret"]),
        (&["admin.key=a b"], &["key"]),
    ] {
        check_rejected("postgres-redis-ha", values, parts);
    }
}

#[test]
fn settings_that_the_chart_sets_are_rejected() {
    for (value, instead) in [
        ("config.server.listen={127.0.0.1:1}", "listenAddress"),
        ("config.server.tls.cert_file=/x", "use tls"),
        ("config.telemetry.listen=127.0.0.1:1", "probes"),
        ("config.admin.insecure=true", "use admin"),
        ("config.admin.insecure=false", "use admin"),
        ("config.store.url=", "store.existingSecret"),
    ] {
        let path = format!("{}: ", value.split_once('=').unwrap().0);
        check_rejected("default", &[value], &[&path, instead]);
    }
}

#[test]
fn several_replicas_of_a_local_backend_are_rejected() {
    for backend in ["sqlite", "memory"] {
        let set = format!("store.backend={backend}");
        let named = format!("store.backend {backend} ");
        check_rejected("default", &[&set, "replicaCount=2"], &["replicaCount: ", &named]);
        check_rejected("default", &[&set, "autoscaling.enabled=true"], &["autoscaling.enabled: ", &named]);
    }
}

#[test]
fn incomplete_and_contradictory_values_are_rejected() {
    for (case, values, parts) in [
        (
            "default",
            &["store.backend=postgres"][..],
            &["store.existingSecret: ", "kubectl create secret generic"][..],
        ),
        ("default", &["store.existingSecret=x"], &["store.existingSecret: ", "store.backend sqlite "]),
        (
            "redis-cluster",
            &["store.replica.existingSecret=x"],
            &["store.replica.existingSecret: ", "store.backend redis "],
        ),
        (
            "default",
            &["admin.service.enabled=true"],
            &["admin.service.enabled: ", "admin.clientCertificates"],
        ),
        (
            "tls",
            &["admin.clientCertificates={ops.example.com}"],
            &["admin.clientCertificates: ", "tls.clientAuth"],
        ),
        ("default", &["tls.clientAuth=required"], &["tls.clientAuth: ", "tls.existingSecret"]),
        ("mtls-cert-manager", &["tls.existingSecret=x"], &["tls: ", "existingSecret", "certManager.enabled"]),
        ("mtls-cert-manager", &["test.clientCertificateSecret="], &["test.clientCertificateSecret: "]),
        (
            "tls",
            &["tls.existingSecret=", "tls.certManager.enabled=true"],
            &["tls.certManager.issuerRef.name: "],
        ),
        ("tls", &["tls.clientAuth=required"], &["test.clientCertificateSecret: ", "tls.clientAuth"]),
        (
            "tls",
            &["config.validator.access=credential"],
            &["test.credentialSecret: ", "config.validator.access"],
        ),
        ("redis-cluster", &["autoscaling.minReplicas=20"], &["autoscaling: minReplicas ", "maxReplicas"]),
        (
            "redis-cluster",
            &["autoscaling.targetCPUUtilizationPercentage=null"],
            &["autoscaling: set targetCPUUtilizationPercentage "],
        ),
        ("default", &["config.server.drain_timeout=2days"], &["config.server: ", "`2days`"]),
        ("default", &["resources.limits.memory=much"], &["resources.limits.memory: ", "`much`"]),
        (
            "redis-cluster",
            &["resources.requests.cpu=null"],
            &["autoscaling.targetCPUUtilizationPercentage: ", "resources.requests.cpu"],
        ),
        (
            "redis-cluster",
            &["metrics.serviceMonitor.enabled=true"],
            &["metrics: serviceMonitor ", "podMonitor"],
        ),
        ("default", &["extraVolumes[0].name=config"], &["extraVolumes: ", "volume config"]),
    ] {
        check_rejected(case, values, parts);
    }
}
