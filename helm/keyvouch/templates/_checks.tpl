{{/* Rejects values that can't work, with the reason. */}}
{{- define "keyvouch.checks" -}}
{{- $values := .Values -}}
{{- $backend := .Values.store.backend -}}

{{- range $path, $reason := dict
  "server.listen" "the chart sets it; use listenAddress"
  "server.admin_listen" "the chart sets it; use admin"
  "server.tls.cert_file" "the chart sets it; use tls"
  "server.tls.key_file" "the chart sets it; use tls"
  "server.tls.client_ca_file" "the chart sets it; use tls.clientCA"
  "server.tls.client_auth" "the chart sets it; use tls.clientAuth"
  "telemetry.listen" "the chart sets it, because probes need it"
  "admin.tokens_file" "the chart sets it; use admin.existingSecret"
  "admin.client_certificates" "the chart sets it; use admin.clientCertificates"
  "admin.insecure" "the chart sets it; use admin"
  "store.url" "it can contain a password; put it in a Secret and set store.existingSecret"
  "store.sql.replica_url" "it can contain a password; put it in a Secret and set store.replica.existingSecret"
  "cache.redis.url" "it can contain a password; put it in a Secret and set redisCache.existingSecret"
  "admin.tokens" "tokens are secret; put them in a Secret and set admin.existingSecret" -}}
{{- $at := $values.config -}}
{{- $isThere := true -}}
{{- range splitList "." $path -}}
{{- $isThere = and $isThere (kindIs "map" $at) -}}
{{- $isThere = and $isThere (hasKey (ternary $at dict $isThere) .) -}}
{{- $at = get (ternary $at dict $isThere) . -}}
{{- end -}}
{{- if $isThere -}}
{{- fail (printf "config.%s: not allowed here: %s" $path $reason) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if regexMatch "(?i)^KEYVOUCH__" .name -}}
{{- fail (printf "extraEnv: %s is not allowed here; set it in config, or put secrets in a Secret and set store.existingSecret, redisCache.existingSecret or admin.existingSecret" .name) -}}
{{- end -}}
{{- if and (hasKey . "value") (regexMatch "(?i)(password|secret|token|otlp.*headers)" .name) -}}
{{- fail (printf "extraEnv: %s is secret; use valueFrom.secretKeyRef" .name) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "://[^/@\"\\s]*:[^/@\"\\s]+@" (toJson .Values) -}}
{{- fail "the values contain a URL with a password; put it in a Secret and refer to that" -}}
{{- end -}}
{{- range .Values.extraObjects -}}
{{- if eq (get . "kind" | toString) "Secret" -}}
{{- fail "extraObjects: a Secret would have its content in the values; create it outside of the release" -}}
{{- end -}}
{{- end -}}
{{- $ownVolumes := list "config" "data" "run" "admin" "tls" "client-ca" -}}
{{- range .Values.extraVolumes -}}
{{- if has .name $ownVolumes -}}
{{- fail (printf "extraVolumes: the chart already has a volume %s; use another name" .name) -}}
{{- end -}}
{{- end -}}

{{- if include "keyvouch.isSingle" . -}}
{{- if .Values.autoscaling.enabled -}}
{{- fail (printf "autoscaling.enabled: store.backend %s supports only one pod; use postgres, mysql or redis" $backend) -}}
{{- end -}}
{{- if gt (int .Values.replicaCount) 1 -}}
{{- fail (printf "replicaCount: store.backend %s supports only one pod; use postgres, mysql or redis" $backend) -}}
{{- end -}}
{{- if .Values.store.existingSecret -}}
{{- fail (printf "store.existingSecret: store.backend %s has no URL; use postgres, mysql or redis, or leave it empty" $backend) -}}
{{- end -}}
{{- else if not .Values.store.existingSecret -}}
{{- fail (printf "store.existingSecret: store.backend %s needs a Secret with the URL; create one with kubectl create secret generic NAME --from-literal=%s=%s://USER:PASSWORD@HOST/..." $backend .Values.store.key $backend) -}}
{{- end -}}
{{- if and .Values.store.replica.existingSecret (not (has $backend (list "postgres" "mysql"))) -}}
{{- fail (printf "store.replica.existingSecret: store.backend %s does not support a replica; leave it empty" $backend) -}}
{{- end -}}

{{- if and .Values.admin.service.enabled (not (include "keyvouch.hasAdminPort" .)) -}}
{{- fail "admin.service.enabled: KeyStore has no port without a credential; set admin.existingSecret or admin.clientCertificates" -}}
{{- end -}}
{{- if and .Values.admin.clientCertificates (eq .Values.tls.clientAuth "none") -}}
{{- fail "admin.clientCertificates: clients are not asked for certificates; set tls.clientAuth" -}}
{{- end -}}

{{- if and .Values.tls.certManager.enabled .Values.tls.existingSecret -}}
{{- fail "tls: existingSecret and certManager.enabled are both set; remove one of them" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: cert-manager needs the name of an issuer" -}}
{{- end -}}
{{- if and (ne .Values.tls.clientAuth "none") (not (include "keyvouch.tlsSecret" .)) -}}
{{- fail "tls.clientAuth: needs TLS; set tls.existingSecret or tls.certManager" -}}
{{- end -}}

{{- $clientCertificate := include "keyvouch.testCertificate" . -}}
{{- if and (eq .Values.tls.clientAuth "required") (not $clientCertificate) -}}
{{- fail "test.clientCertificateSecret: with tls.clientAuth: required, helm test needs a client certificate" -}}
{{- end -}}
{{- if and (eq (dig "validator" "access" "open" .Values.config) "credential") (not .Values.test.credentialSecret) (not $clientCertificate) -}}
{{- fail "test.credentialSecret: with config.validator.access: credential, helm test needs a credential" -}}
{{- end -}}

{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling: minReplicas must not be more than maxReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.autoscaling.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- fail "autoscaling.targetCPUUtilizationPercentage: is relative to resources.requests.cpu, which is unset; set one" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics: serviceMonitor and podMonitor would scrape every pod twice; enable only one" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (not .Values.autoscaling.targetCPUUtilizationPercentage) (not .Values.autoscaling.targetMemoryUtilizationPercentage) -}}
{{- fail "autoscaling: set targetCPUUtilizationPercentage or targetMemoryUtilizationPercentage" -}}
{{- end -}}
{{- end }}
