{{/* Names, at most 63 characters with the longest suffix, `-dashboard`. */}}
{{- define "keyvouch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "keyvouch.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains (default .Chart.Name .Values.nameOverride) .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride) | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "keyvouch.selectorLabels" -}}
app.kubernetes.io/name: {{ include "keyvouch.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of an object. Takes a dict of `root`, `component` (of pods that are not servers), and additional `labels`. The chart's own
     labels take precedence. */}}
{{- define "keyvouch.labels" -}}
{{- $root := .root -}}
{{- $own := include "keyvouch.selectorLabels" $root | fromYaml -}}
{{- if .component -}}
{{- $_ := set $own "app.kubernetes.io/name" (printf "%s-%s" (include "keyvouch.name" $root) .component) -}}
{{- end -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- $_ := set $own "app.kubernetes.io/version" $root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" $root.Release.Service -}}
{{- toYaml (merge $own (.labels | default dict) $root.Values.commonLabels) -}}
{{- end }}

{{/* Name, namespace, labels and annotations of an object. Takes a dict of `root`, `suffix`, `component`, and additional `labels`
     and `annotations`. */}}
{{- define "keyvouch.metadata" -}}
{{- $root := .root -}}
name: {{ printf "%s%s" (include "keyvouch.fullname" $root) .suffix | quote }}
namespace: {{ $root.Release.Namespace | quote }}
labels:
  {{- include "keyvouch.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) $root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Security context of every pod, without access to the Kubernetes API. */}}
{{- define "keyvouch.confinement" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* Scheduling of the pods of hooks, which is the same as that of the server's pods. */}}
{{- define "keyvouch.placement" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "keyvouch.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "keyvouch.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "keyvouch.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{/* Whether only one pod can use the backend: "true" or "". */}}
{{- define "keyvouch.isSingle" -}}
{{- if has .Values.store.backend (list "sqlite" "memory") }}true{{ end }}
{{- end }}

{{/* Whether there can be more than one pod: "true" or "". */}}
{{- define "keyvouch.isReplicated" -}}
{{- if .Values.autoscaling.enabled }}{{ if gt (int .Values.autoscaling.maxReplicas) 1 }}true{{ end }}
{{- else if gt (int .Values.replicaCount) 1 }}true{{ end }}
{{- end }}

{{/* Whether this chart applies migrations: "true" or "". */}}
{{- define "keyvouch.migrates" -}}
{{- if and (has .Values.store.backend (list "postgres" "mysql")) (ne .Values.migrations.mode "none") }}true{{ end }}
{{- end }}

{{/* Whether KeyStore has a port: "true" or "". */}}
{{- define "keyvouch.hasAdminPort" -}}
{{- if or .Values.admin.existingSecret .Values.admin.clientCertificates }}true{{ end }}
{{- end }}

{{/* The Secret with the server certificate, or "". */}}
{{- define "keyvouch.tlsSecret" -}}
{{- if .Values.tls.certManager.enabled }}
{{- include "keyvouch.fullname" . }}-tls
{{- else }}
{{- .Values.tls.existingSecret }}
{{- end }}
{{- end }}

{{/* The Secret with the client certificate of helm test, or "". */}}
{{- define "keyvouch.testCertificate" -}}
{{- if .Values.test.clientCertificateSecret }}
{{- .Values.test.clientCertificateSecret }}
{{- else if and (ne .Values.tls.clientAuth "none") .Values.tls.certManager.enabled (not .Values.tls.clientCA.existingSecret) }}
{{- include "keyvouch.tlsSecret" . }}
{{- end }}
{{- end }}

{{- define "keyvouch.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* An environment variable from a Secret. Takes a dict of `name`, `secret` and `key`. */}}
{{- define "keyvouch.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret | quote }}
      key: {{ .key | quote }}
{{- end }}
