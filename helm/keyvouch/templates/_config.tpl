{{/* The settings as JSON, including those that the chart sets. */}}
{{- define "keyvouch.settings" -}}
{{- $config := deepCopy .Values.config -}}
{{- range list "server" "store" "cache" "admin" "telemetry" -}}
{{- $_ := set $config . (get $config . | default dict) -}}
{{- end -}}
{{- $host := ternary (printf "[%s]" .Values.listenAddress) .Values.listenAddress (contains ":" .Values.listenAddress) -}}

{{- $server := $config.server -}}
{{- $_ := set $server "listen" (list (printf "%s:50051" $host)) -}}
{{- if include "keyvouch.hasAdminPort" . -}}
{{- $_ := set $server "admin_listen" (list (printf "%s:50052" $host)) -}}
{{- else -}}
{{- $_ := set $server "admin_listen" (list "unix:/run/keyvouch/admin.sock") -}}
{{- end -}}
{{- $_ := set $server "settle_delay" (printf "%ss" (include "keyvouch.settleSeconds" .)) -}}
{{- if include "keyvouch.tlsSecret" . -}}
{{- $tls := get $server "tls" | default dict -}}
{{- $_ := set $tls "cert_file" "/etc/keyvouch/tls/tls.crt" -}}
{{- $_ := set $tls "key_file" "/etc/keyvouch/tls/tls.key" -}}
{{- if ne .Values.tls.clientAuth "none" -}}
{{- $_ := set $tls "client_ca_file" "/etc/keyvouch/client-ca/ca.crt" -}}
{{- $_ := set $tls "client_auth" .Values.tls.clientAuth -}}
{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}

{{- if eq .Values.store.backend "memory" -}}
{{- $_ := set $config.store "url" "memory:" -}}
{{- else if eq .Values.store.backend "sqlite" -}}
{{- $_ := set $config.store "url" "sqlite:///var/lib/keyvouch/keyvouch.db" -}}
{{- end -}}

{{- if not (or (include "keyvouch.isSingle" .) (hasKey $config.store "connect_timeout")) -}}
{{- $_ := set $config.store "connect_timeout" "60s" -}}
{{- end -}}

{{- $local := get $config.cache "local" | default dict -}}
{{- $limit := dig "limits" "memory" "" .Values.resources -}}
{{- if and $limit (not (hasKey $local "max_bytes")) (not (hasKey $local "max_entries")) -}}
{{- $_ := set $local "max_bytes" (div (include "keyvouch.bytes" $limit | int64) 2) -}}
{{- $_ := set $config.cache "local" $local -}}
{{- end -}}

{{- if .Values.admin.existingSecret -}}
{{- $_ := set $config.admin "tokens_file" "/etc/keyvouch/admin/tokens" -}}
{{- end -}}
{{- if .Values.admin.clientCertificates -}}
{{- $_ := set $config.admin "client_certificates" .Values.admin.clientCertificates -}}
{{- end -}}
{{- if not (include "keyvouch.hasAdminPort" .) -}}
{{- $_ := set $config.admin "insecure" true -}}
{{- end -}}

{{- $_ := set $config.telemetry "listen" (printf "%s:9464" $host) -}}
{{- if not (hasKey $config.telemetry "log_format") -}}
{{- $_ := set $config.telemetry "log_format" "json" -}}
{{- end -}}
{{- toPrettyJson $config -}}
{{- end }}
