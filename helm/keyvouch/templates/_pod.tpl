{{/* Environment variable with the URL for migrations. */}}
{{- define "keyvouch.migrationVariable" -}}
{{- $secret := .Values.migrations.existingSecret | default .Values.store.existingSecret -}}
{{- $key := ternary .Values.migrations.key .Values.store.key (ne .Values.migrations.existingSecret "") -}}
{{ include "keyvouch.secretVariable" (dict "name" "KEYVOUCH__STORE__URL" "secret" $secret "key" $key) }}
{{- end }}

{{/* Environment variables of the settings in `settings` and its sections, with names that begin with `prefix`. */}}
{{- define "keyvouch.settingVariables" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .settings }}
{{- if kindIs "map" $value }}
{{- include "keyvouch.settingVariables" (dict "prefix" (printf "%s%s__" $prefix (upper $name)) "settings" $value) }}
{{- else }}
- name: {{ $prefix }}{{ upper $name }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment variables of the server. */}}
{{- define "keyvouch.variables" -}}
{{- if not (include "keyvouch.isSingle" .) }}
{{ include "keyvouch.secretVariable" (dict "name" "KEYVOUCH__STORE__URL" "secret" .Values.store.existingSecret "key" .Values.store.key) }}
{{- end }}
{{- if .Values.store.replica.existingSecret }}
{{ include "keyvouch.secretVariable" (dict "name" "KEYVOUCH__STORE__SQL__REPLICA_URL" "secret" .Values.store.replica.existingSecret "key" .Values.store.replica.key) }}
{{- end }}
{{- if .Values.redisCache.existingSecret }}
{{ include "keyvouch.secretVariable" (dict "name" "KEYVOUCH__CACHE__REDIS__URL" "secret" .Values.redisCache.existingSecret "key" .Values.redisCache.key) }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Volume mounts of the server. */}}
{{- define "keyvouch.mounts" -}}
- name: config
  mountPath: /etc/keyvouch/config
  readOnly: true
{{- if eq .Values.store.backend "sqlite" }}
- name: data
  mountPath: /var/lib/keyvouch
{{- end }}
{{- if not (include "keyvouch.hasAdminPort" .) }}
- name: run
  mountPath: /run/keyvouch
{{- end }}
{{- if .Values.admin.existingSecret }}
- name: admin
  mountPath: /etc/keyvouch/admin
  readOnly: true
{{- end }}
{{- if include "keyvouch.tlsSecret" . }}
- name: tls
  mountPath: /etc/keyvouch/tls
  readOnly: true
{{- if ne .Values.tls.clientAuth "none" }}
- name: client-ca
  mountPath: /etc/keyvouch/client-ca
  readOnly: true
{{- end }}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "keyvouch.volumes" -}}
- name: config
  configMap:
    name: {{ include "keyvouch.fullname" . | quote }}
{{- if eq .Values.store.backend "sqlite" }}
- name: data
  persistentVolumeClaim:
    claimName: {{ .Values.store.persistence.existingClaim | default (include "keyvouch.fullname" .) | quote }}
{{- end }}
{{- if not (include "keyvouch.hasAdminPort" .) }}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- if .Values.admin.existingSecret }}
# Mount whole volumes, because files mounted with subPath are not updated when the Secret changes.
- name: admin
  secret:
    secretName: {{ .Values.admin.existingSecret | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.admin.key | quote }}, path: tokens}]
{{- end }}
{{- if include "keyvouch.tlsSecret" . }}
- name: tls
  secret:
    secretName: {{ include "keyvouch.tlsSecret" . | quote }}
    defaultMode: 0440
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- if ne .Values.tls.clientAuth "none" }}
- name: client-ca
  secret:
    secretName: {{ .Values.tls.clientCA.existingSecret | default (include "keyvouch.tlsSecret" .) | quote }}
    defaultMode: 0440
    items: [{key: {{ .Values.tls.clientCA.key | quote }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
