{{/* A value as TOML. JSON's strings, numbers and booleans are TOML's; tables stay on one line. */}}
{{- define "notifier.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ $key | toJson }} = {{ include "notifier.toml" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "notifier.toml" $value }}{{ end }}]
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ toJson . }}{{ end -}}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end -}}

{{/* The secrets that are set: file name, value, existing Secret and key of each. */}}
{{- define "notifier.secretFiles" -}}
{{- $files := list -}}
{{- range $file, $name := dict "jwt-secret" "jwtSecret" "store-password" "storePassword" "kafka-password" "kafkaPassword" "cluster-secret" "clusterSecret" -}}
{{- $secret := get $.Values.secrets $name -}}
{{- if or $secret.value $secret.existingSecret -}}
{{- $files = append $files (dict "file" $file "value" $secret.value "existing" $secret.existingSecret "key" $secret.key) -}}
{{- end -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/* Secrets that others make, with which a node is to be replaced: all but the certificate of the client and gRPC ports. */}}
{{- define "notifier.othersSecrets" -}}
{{- $names := list .Values.kafkaTls.caSecret .Values.kafkaTls.userSecret -}}
{{- if .Values.cluster.tls.enabled -}}{{- $names = append $names (include "notifier.linkTlsSecret" .) -}}{{- end -}}
{{- range include "notifier.secretFiles" . | fromJsonArray -}}{{- $names = append $names .existing -}}{{- end -}}
{{- compact $names | uniq | toJson -}}
{{- end -}}

{{- define "notifier.hasOwnSecret" -}}
{{- range include "notifier.secretFiles" . | fromJsonArray }}{{ if .value }}true{{ end }}{{ end -}}
{{- end -}}

{{/* What the chart itself knows, over what the values say. */}}
{{- define "notifier.config" -}}
{{- $directory := "/etc/notifier/secrets" -}}
{{- $config := deepCopy .Values.config -}}
{{- $own := dict "client" (dict "listen" "0.0.0.0:8000") "grpc" (dict "listen" "0.0.0.0:8001") "admin" (dict "listen" "0.0.0.0:8002") -}}
{{- if .Values.cluster.enabled -}}
{{- $_ := set $own "cluster" (dict "enabled" true "listen" "0.0.0.0:8003" "shards" .Values.cluster.shards "secret_file" (printf "%s/cluster-secret" $directory)) -}}
{{- if .Values.cluster.tls.enabled -}}
{{- $tls := "/etc/notifier/link-tls" -}}
{{- $_ := set $own "cluster" (merge $own.cluster (dict "tls_cert_file" (printf "%s/tls.crt" $tls) "tls_key_file" (printf "%s/tls.key" $tls) "tls_ca_file" (printf "%s/ca.crt" $tls))) -}}
{{- end -}}
{{- end -}}
{{- $kafka := dict -}}
{{- if or .Values.secrets.kafkaPassword.value .Values.secrets.kafkaPassword.existingSecret -}}
{{- $_ := set $kafka "sasl.password_file" (printf "%s/kafka-password" $directory) -}}
{{- end -}}
{{- if .Values.kafkaTls.caSecret -}}
{{- $_ := set $kafka "ssl.ca.location" "/etc/notifier/kafka-ca/ca.crt" -}}
{{- end -}}
{{- if .Values.kafkaTls.userSecret -}}
{{- $_ := set $kafka "ssl.certificate.location" "/etc/notifier/kafka-user/user.crt" -}}
{{- $_ := set $kafka "ssl.key.location" "/etc/notifier/kafka-user/user.key" -}}
{{- end -}}
{{- if $kafka -}}{{- $_ := set $own "kafka" (dict "properties" $kafka) -}}{{- end -}}
{{- $store := dict -}}
{{- if or .Values.secrets.storePassword.value .Values.secrets.storePassword.existingSecret -}}
{{- $_ := set $store "password_file" (printf "%s/store-password" $directory) -}}
{{- end -}}
{{- if .Values.migration.enabled -}}{{- $_ := set $store "migrate" "check" -}}{{- end -}}
{{- if $store -}}{{- $_ := set $own "store" $store -}}{{- end -}}
{{- if or .Values.secrets.jwtSecret.value .Values.secrets.jwtSecret.existingSecret -}}
{{- $_ := set $own "auth" (dict "jwt" (dict "hs256_secret_file" (printf "%s/jwt-secret" $directory))) -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $tls := dict "tls_cert_file" "/etc/notifier/tls/tls.crt" "tls_key_file" "/etc/notifier/tls/tls.key" -}}
{{- $_ := set $own "client" (merge (dict "listen" "0.0.0.0:8000") $tls) -}}
{{- if .Values.tls.grpc -}}{{- $_ := set $own "grpc" (merge (dict "listen" "0.0.0.0:8001") $tls) -}}{{- end -}}
{{- end -}}
{{- toJson (mergeOverwrite $config $own) -}}
{{- end -}}

{{- define "notifier.configToml" -}}
{{- range $section, $keys := include "notifier.config" . | fromJson }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key | toJson }} = {{ include "notifier.toml" $value }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* What `notifier migrate` needs: the store, and what is fixed when it is created. */}}
{{- define "notifier.migrateToml" -}}
{{- $config := include "notifier.config" . | fromJson -}}
[store]
{{- range $key, $value := omit $config.store "migrate" }}
{{ $key | toJson }} = {{ include "notifier.toml" $value }}
{{- end }}
{{- if .Values.cluster.enabled }}

[cluster]
"shards" = {{ .Values.cluster.shards }}
{{- end }}
{{- end -}}

{{/* Volumes of whatever runs the program; `only` names the secrets' files that it gets. */}}
{{- define "notifier.secretVolume" -}}
{{- $files := list -}}
{{- range include "notifier.secretFiles" .root | fromJsonArray -}}
{{- if has .file $.only }}{{ $files = append $files . }}{{ end -}}
{{- end -}}
{{- if $files }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      {{- range $files }}
      - secret:
          name: {{ .existing | default $.own }}
          items:
            - key: {{ ternary .key .file (ne .existing "") }}
              path: {{ .file }}
      {{- end }}
{{- end }}
{{- end -}}

{{- define "notifier.tlsVolumes" -}}
{{- if .Values.tls.enabled }}
- name: tls
  secret:
    secretName: {{ include "notifier.tlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.cluster.tls.enabled }}
- name: link-tls
  secret:
    secretName: {{ include "notifier.linkTlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Where whatever runs the program with the nodes' configuration finds its files. */}}
{{- define "notifier.mounts" -}}
- { name: config, mountPath: /etc/notifier/config, readOnly: true }
{{- if include "notifier.secretFiles" . | fromJsonArray }}
- { name: secrets, mountPath: /etc/notifier/secrets, readOnly: true }
{{- end }}
{{- if .Values.tls.enabled }}
- { name: tls, mountPath: /etc/notifier/tls, readOnly: true }
{{- end }}
{{- if .Values.cluster.tls.enabled }}
- { name: link-tls, mountPath: /etc/notifier/link-tls, readOnly: true }
{{- end }}
{{- if .Values.kafkaTls.caSecret }}
- { name: kafka-ca, mountPath: /etc/notifier/kafka-ca, readOnly: true }
{{- end }}
{{- if .Values.kafkaTls.userSecret }}
- { name: kafka-user, mountPath: /etc/notifier/kafka-user, readOnly: true }
{{- end }}
{{- end -}}

{{/* Of the node's own volumes those that its configuration names a file on, but for the store: what `send` has to read. A volume that one
machine alone can mount would keep a pod on another one waiting. */}}
{{- define "notifier.readMounts" -}}
{{- $config := include "notifier.config" . | fromJson -}}
{{- $_ := unset (get $config "store" | default dict) "url" -}}
{{- $text := toJson $config -}}
{{- $mounts := list -}}
{{- range .Values.extraVolumeMounts -}}{{- if contains (trimSuffix "/" .mountPath | printf "%q" | trimSuffix "\"") $text -}}{{- $mounts = append $mounts . -}}{{- end -}}{{- end -}}
{{- toJson $mounts -}}
{{- end -}}

{{- define "notifier.kafkaVolumes" -}}
{{- if .Values.kafkaTls.caSecret }}
- name: kafka-ca
  secret:
    secretName: {{ .Values.kafkaTls.caSecret }}
    defaultMode: 0440
    items:
      - { key: {{ .Values.kafkaTls.caKey }}, path: ca.crt }
{{- end }}
{{- if .Values.kafkaTls.userSecret }}
- name: kafka-user
  secret:
    secretName: {{ .Values.kafkaTls.userSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}
