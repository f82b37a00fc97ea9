{{/* Converts a duration as in Keyvouch's settings, "1m 30s", to seconds, rounded up. */}}
{{- define "keyvouch.seconds" -}}
{{- $units := dict "ms" 1 "millis" 1 "s" 1000 "sec" 1000 "secs" 1000 "second" 1000 "seconds" 1000 "m" 60000 "min" 60000 "mins" 60000 "minute" 60000 "minutes" 60000 "h" 3600000 "hr" 3600000 "hour" 3600000 "hours" 3600000 -}}
{{- if not (regexMatch "^([0-9]+ *[a-z]+ *)+$" (toString .)) -}}
{{- fail (printf "config.server: invalid duration `%s`; examples: 500ms, 10s, 5m, 1h" (toString .)) -}}
{{- end -}}
{{- $millis := 0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" (toString .) -1 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- if not (hasKey $units $unit) -}}
{{- fail (printf "config.server: the chart does not support the unit of the duration `%s`; examples: 500ms, 10s, 5m, 1h" .) -}}
{{- end -}}
{{- $millis = add $millis (mul (regexFind "[0-9]+" . | int64) (get $units $unit)) -}}
{{- end -}}
{{- div (add $millis 999) 1000 -}}
{{- end }}

{{/* Whether the cluster supports `preStop.sleep`: "true" or "". */}}
{{- define "keyvouch.knowsSleep" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}true{{ end }}
{{- end }}

{{/* The seconds of config.server.settle_delay. */}}
{{- define "keyvouch.settleSeconds" -}}
{{- $server := .Values.config.server | default dict -}}
{{- $settle := include "keyvouch.seconds" (get $server "settle_delay" | default "5s") | int -}}
{{- if include "keyvouch.knowsSleep" . }}{{ $settle }}{{ else }}{{ add $settle .Values.preStopSeconds }}{{ end -}}
{{- end }}

{{/* Termination grace period of a pod in seconds: all delays of its shutdown, and ten seconds to write pending data. */}}
{{- define "keyvouch.graceSeconds" -}}
{{- $server := .Values.config.server | default dict -}}
{{- $drain := include "keyvouch.seconds" (get $server "drain_timeout" | default "10s") | int -}}
{{- $preStop := ternary (int .Values.preStopSeconds) 0 (eq (include "keyvouch.knowsSleep" .) "true") -}}
{{- add $preStop (include "keyvouch.settleSeconds" . | int) $drain 10 -}}
{{- end }}

{{/* Converts a Kubernetes quantity, "512Mi", to bytes. */}}
{{- define "keyvouch.bytes" -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $text := ternary . (toJson .) (kindIs "string" .) -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- if or (not $number) (not (hasKey $units $unit)) -}}
{{- fail (printf "resources.limits.memory: unsupported quantity `%s`; examples: 512Mi, 2Gi" $text) -}}
{{- end -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end }}
