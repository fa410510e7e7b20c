{{- define "foreseen.fullname" -}}
{{- if contains "foreseen" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-foreseen" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "foreseen.labels" -}}
{{ include "foreseen.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "foreseen.selector" -}}
app.kubernetes.io/name: foreseen
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* image of (root, name of the image) */}}
{{- define "foreseen.image" -}}
{{- $root := index . 0 }}{{ index $root.Values.image (index . 1) }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- define "foreseen.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ range . }}
  - name: {{ . }}{{ end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurity.uid }}
  runAsGroup: {{ .Values.podSecurity.uid }}
  fsGroup: {{ .Values.podSecurity.uid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "foreseen.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* nodeSelector, tolerations and affinity of a section */}}
{{- define "foreseen.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* A model's values: its own over modelDefaults */}}
{{- define "foreseen.model" -}}
{{- mergeOverwrite (deepCopy (index . 0).Values.modelDefaults) (deepCopy (default (dict) (index . 1))) | toYaml }}
{{- end }}

{{- define "foreseen.modelName" -}}
{{ include "foreseen.fullname" (index . 0) }}-model-{{ index . 1 | lower | replace "_" "-" | replace "." "-" }}
{{- end }}

{{- define "foreseen.rootSecret" -}}
{{ .Values.rootSecret.existingSecret | default (printf "%s-root" (include "foreseen.fullname" .)) }}
{{- end }}

{{/* An init container that builds models into the volume of artifacts: of (root, names) */}}
{{- define "foreseen.build" -}}
{{- $root := index . 0 }}{{ $names := index . 1 }}
{{- if and (eq $root.Values.artifacts.mode "build") $names }}
initContainers:
  - name: models
    image: {{ include "foreseen.image" (list $root "models") }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [sh, -ec]
    args:
      - {{ range $at, $name := $names }}{{ if $at }} && {{ end }}foreseen models build {{ $name }}{{ end }}
    env: {{ include "foreseen.dataEnv" $root | nindent 6 }}
      - { name: HOME, value: /tmp }
    resources: {{ toYaml $root.Values.artifacts.resources | nindent 6 }}
    volumeMounts:
      - { name: artifacts, mountPath: /data/models }
      - { name: data, mountPath: /data }
      - { name: tmp, mountPath: /tmp }
      {{- include "foreseen.manifestMount" $root | nindent 6 }}
    {{- include "foreseen.containerSecurity" $root | nindent 4 }}
{{- end }}
{{- end }}

{{- define "foreseen.dataEnv" -}}
- { name: FORESEEN_DATA, value: /data }
{{- if .Values.manifests.existingConfigMap }}
- { name: FORESEEN_MODELS, value: /manifests }
{{- end }}
{{- end }}

{{- define "foreseen.manifestMount" -}}
{{- if .Values.manifests.existingConfigMap }}
- { name: manifests, mountPath: /manifests, readOnly: true }
{{- end }}
{{- end }}

{{/* Volumes that every pod of ours has */}}
{{- define "foreseen.dataVolumes" -}}
- { name: data, emptyDir: {} }
- { name: tmp, emptyDir: {} }
{{- if eq .Values.artifacts.mode "claim" }}
- name: artifacts
  persistentVolumeClaim: { claimName: {{ required "artifacts.claim: name a claim, or set artifacts.mode to build" .Values.artifacts.claim }}, readOnly: true }
{{- else }}
- { name: artifacts, emptyDir: {} }
{{- end }}
{{- with .Values.manifests.existingConfigMap }}
- name: manifests
  configMap:
    name: {{ . }}
    items: {{ range $.Values.manifests.names }}
      - { key: {{ . }}.toml, path: {{ . }}/model.toml }{{ end }}
{{- end }}
{{- end }}

{{- define "foreseen.dataMounts" -}}
- { name: data, mountPath: /data }
- { name: tmp, mountPath: /tmp }
- { name: artifacts, mountPath: /data/models, readOnly: true }
{{- include "foreseen.manifestMount" . }}
{{- end }}

{{- define "foreseen.tracesEnv" -}}
{{- with .Values.traces.endpoint }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }} }
{{- with $.Values.traces.sampler }}
- { name: OTEL_TRACES_SAMPLER, value: {{ . | quote }} }
{{- end }}
{{- with $.Values.traces.samplerArg }}
- { name: OTEL_TRACES_SAMPLER_ARG, value: {{ . | quote }} }
{{- end }}
{{- end }}
{{- end }}

{{/* What proxies and job workers say of models and stores alike */}}
{{- define "foreseen.backendArgs" -}}
- --secret-file=/run/foreseen/root/root
{{- if .Values.upstream.url }}
- --upstream={{ .Values.upstream.url }}
- --upstream-api={{ .Values.upstream.api }}
{{- with .Values.upstream.digest }}
- --upstream-digest={{ . }}
{{- end }}
{{- if .Values.upstream.keySecret }}
- --upstream-key-file=/run/foreseen/upstream/key
{{- end }}
{{- else }}
{{- range $name, $_ := .Values.models }}
{{- if or (empty $.onlyModel) (eq $name $.onlyModel) }}
- --model={{ $name }}=http://{{ include "foreseen.modelName" (list $ $name) }}:8001
{{- end }}
{{- end }}
{{- end }}
- --stale-if-error-seconds={{ int .Values.proxy.staleIfErrorSeconds }}
{{- if not .Values.redis.existingSecret }}
- --redis={{ .Values.redis.url }}
{{- end }}
{{- if .Values.redis.caSecret }}
- --redis-ca-file=/run/foreseen/redis-ca/ca.crt
{{- end }}
{{- if .Values.state.valkey.enabled }}
- --state=redis://{{ include "foreseen.fullname" . }}-state:6379/0
{{- else if not .Values.state.existingSecret }}
- --state={{ .Values.state.url }}
{{- end }}
{{- with .Values.state.replicas }}
- --state-replicas={{ . }}
{{- end }}
{{- end }}

{{- define "foreseen.backendEnv" -}}
{{- include "foreseen.dataEnv" . }}
{{- if .Values.redis.existingSecret }}
- name: FORESEEN_REDIS
  valueFrom: { secretKeyRef: { name: {{ .Values.redis.existingSecret }}, key: redis-url } }
{{- end }}
{{- if and .Values.state.existingSecret (not .Values.state.valkey.enabled) }}
- name: FORESEEN_STATE
  valueFrom: { secretKeyRef: { name: {{ .Values.state.existingSecret }}, key: state-url } }
{{- end }}
{{- include "foreseen.tracesEnv" . }}
{{- end }}

{{- define "foreseen.backendVolumes" -}}
{{- include "foreseen.dataVolumes" . }}
- name: root
  secret: { secretName: {{ include "foreseen.rootSecret" . }}, defaultMode: 0440 }
{{- with .Values.redis.caSecret }}
- name: redis-ca
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- with .Values.upstream.keySecret }}
- name: upstream
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- define "foreseen.backendMounts" -}}
{{- include "foreseen.dataMounts" . }}
- { name: root, mountPath: /run/foreseen/root, readOnly: true }
{{- if .Values.redis.caSecret }}
- { name: redis-ca, mountPath: /run/foreseen/redis-ca, readOnly: true }
{{- end }}
{{- if .Values.upstream.keySecret }}
- { name: upstream, mountPath: /run/foreseen/upstream, readOnly: true }
{{- end }}
{{- end }}

{{/* Names of the models whose artifacts a proxy or worker reads */}}
{{- define "foreseen.builtModels" -}}
{{- if not .Values.upstream.url }}{{ keys .Values.models | sortAlpha | toJson }}{{ else }}[]{{ end }}
{{- end }}

{{- define "foreseen.scheme" -}}
{{ if .Values.tls.existingSecret }}HTTPS{{ else }}HTTP{{ end }}
{{- end }}

{{- define "foreseen.scalesToZero" -}}
{{- range $name, $own := .Values.models }}
{{- $m := include "foreseen.model" (list $ $own) | fromYaml }}
{{- if and $m.autoscaling.enabled (eq (int $m.autoscaling.minReplicas) 0) }}yes{{ end }}
{{- end }}
{{- end }}

{{- define "foreseen.readyPath" -}}
{{ if include "foreseen.scalesToZero" . }}/v2/health/live{{ else }}/v2/health/ready{{ end }}
{{- end }}
