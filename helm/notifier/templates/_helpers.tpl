{{- define "notifier.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough that a pod's name fits the label of a StatefulSet's revision. */}}
{{- define "notifier.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "notifier.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "notifier.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels that never change: what selectors are made of. `component` tells nodes from jobs. */}}
{{- define "notifier.selector" -}}
app.kubernetes.io/name: {{ include "notifier.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "notifier.labels" -}}
{{ include "notifier.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "notifier.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "notifier.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "notifier.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* Whole seconds, rounded up, of a duration as the configuration writes it. */}}
{{- define "notifier.seconds" -}}
{{- $duration := . | toString -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m|h|d)$" $duration) -}}
{{- fail (printf "config.drain.deadline: %q is no duration such as 60s, 5m or 1h" $duration) -}}
{{- end -}}
{{- $number := regexFind "^[0-9]+" $duration | int64 -}}
{{- $unit := regexFind "[a-z]+$" $duration -}}
{{- if eq $unit "ms" -}}{{ divf $number 1000 | ceil | int64 }}
{{- else -}}{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit) }}
{{- end -}}
{{- end -}}

{{- define "notifier.drainSeconds" -}}
{{- include "notifier.seconds" (dig "drain" "deadline" "60s" .Values.config) -}}
{{- end -}}

{{/* What a pod's end takes: the preStop hook, the drain, and a reserve for the exit itself. */}}
{{- define "notifier.gracePeriod" -}}
{{- .Values.shutdown.gracePeriodSeconds | int64 | default (add .Values.shutdown.preStopSeconds (include "notifier.drainSeconds" . | int64) 15) -}}
{{- end -}}

{{- define "notifier.autoscaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled }}true{{ end -}}
{{- end -}}

{{/* The number of nodes as a StatefulSet states it, or nothing. With an autoscaler it is the autoscaler's: a release that began with
one never states it. One that did before has to go on, since what is taken out of a StatefulSet falls back to 1: it states what is there. */}}
{{- define "notifier.replicas" -}}
{{- if include "notifier.autoscaled" . -}}
{{- with lookup "apps/v1" "StatefulSet" .Release.Namespace (include "notifier.fullname" .) -}}
{{- if ne (dig "annotations" "notifier/replicas" "" .metadata) "autoscaler" -}}
{{- $scaler := ternary $.Values.autoscaling.hpa $.Values.autoscaling.keda $.Values.autoscaling.hpa.enabled -}}
{{- .spec.replicas | int64 | default ($scaler.minReplicas | int64) -}}
{{- end -}}
{{- end -}}
{{- else -}}{{ .Values.replicas }}
{{- end -}}
{{- end -}}

{{/* The most nodes that there can be. */}}
{{- define "notifier.nodesMax" -}}
{{- if .Values.autoscaling.hpa.enabled -}}{{ .Values.autoscaling.hpa.maxReplicas }}
{{- else if .Values.autoscaling.keda.enabled -}}{{ .Values.autoscaling.keda.maxReplicas }}
{{- else -}}{{ .Values.replicas }}
{{- end -}}
{{- end -}}

{{- define "notifier.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "notifier.fullname" .)) -}}
{{- end -}}

{{- define "notifier.linkTlsSecret" -}}
{{- .Values.cluster.tls.existingSecret | default (printf "%s-link-tls" (include "notifier.fullname" .)) -}}
{{- end -}}

{{/* Scale-down by one node per drain; the API allows periods up to half an hour. */}}
{{- define "notifier.scaling" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ min 1800 (include "notifier.gracePeriod" . | int64) }}
scaleUp:
  policies:
    - type: Percent
      value: 50
      periodSeconds: 60
    - type: Pods
      value: 1
      periodSeconds: 60
  selectPolicy: Max
{{- end -}}

{{/* Nobody is root, nothing is written, nothing is gained. */}}
{{- define "notifier.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "notifier.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where pods may run: jobs too, since the image may be for one kind of machine. */}}
{{- define "notifier.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
