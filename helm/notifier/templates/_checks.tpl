{{/* Sections that a value of null has taken away. Asked by what is rendered first: Helm begins with the deepest directory. */}}
{{- define "notifier.sections" -}}
{{- range list "image" "config" "config.kafka" "secrets" "secrets.jwtSecret" "secrets.storePassword" "secrets.kafkaPassword" "secrets.clusterSecret" "kafkaTls" "cluster" "cluster.tls" "cluster.tls.certManager" "tls" "tls.certManager" "service" "grpcService" "ingress" "ingress.grpc" "gateway" "gateway.grpc" "resources" "shutdown" "probes" "podDisruptionBudget" "networkPolicy" "networkPolicy.ingress" "networkPolicy.egress" "serviceAccount" "autoscaling" "autoscaling.hpa" "autoscaling.keda" "monitoring" "prometheusRule" "dashboards" "migration" "strimzi" "strimzi.user" "helmTest" -}}
{{- $section := $.Values -}}
{{- range splitList "." . -}}{{- $section = get ($section | default dict) . -}}{{- end -}}
{{- if not (kindIs "map" $section) -}}
{{- fail (printf "%s is null: leave it out, or set what is in it" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Values that cannot work, each refused with a sentence that names it. */}}
{{- define "notifier.checks" -}}
{{- $config := .Values.config -}}
{{- $url := dig "store" "url" "" $config -}}
{{- $many := gt (include "notifier.nodesMax" . | int64) 1 -}}
{{- range $name, $secret := .Values.secrets -}}
{{- if and $secret.value $secret.existingSecret -}}
{{- fail (printf "secrets.%s: give value or existingSecret, not both" $name) -}}
{{- end -}}
{{- end -}}
{{- range list "node.id" "client.listen" "client.tls_cert_file" "client.tls_key_file" "grpc.listen" "grpc.tls_cert_file" "grpc.tls_key_file" "admin.listen" "store.migrate" -}}
{{- $path := splitList "." . -}}
{{- if hasKey (dig (first $path) dict $config) (last $path) -}}
{{- fail (printf "config.%s: the chart sets this key itself" .) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $config "cluster" -}}{{- fail "config.cluster: the chart sets this section itself, from cluster and secrets.clusterSecret" -}}{{- end -}}
{{- if not (dig "kafka" "brokers" "" $config) -}}
{{- fail "config.kafka.brokers is empty: name Kafka's brokers, HOST:PORT" -}}
{{- end -}}
{{- if not (or .Values.secrets.jwtSecret.value .Values.secrets.jwtSecret.existingSecret (dig "auth" "jwt" "jwks_url" "" $config) (dig "auth" "jwt" "public_key_files" "" $config)) -}}
{{- fail "secrets.jwtSecret is empty, and config.auth.jwt has neither jwks_url nor public_key_files: nobody could connect" -}}
{{- end -}}
{{- with .Values.secrets.jwtSecret.value -}}
{{- if lt (len .) 32 -}}{{- fail "secrets.jwtSecret.value is shorter than 32 bytes" -}}{{- end -}}
{{- end -}}
{{- if and (hasPrefix "sqlite:" $url) $many -}}
{{- fail "config.store.url is an SQLite file, which one node alone can use: set replicas to 1 and no autoscaler, or use PostgreSQL" -}}
{{- end -}}
{{- if and (not $url) $many -}}
{{- fail "config.store.url is empty: more than one node (replicas, autoscaling) needs PostgreSQL" -}}
{{- end -}}
{{- if and $many (not .Values.cluster.enabled) -}}
{{- fail "cluster.enabled is false: without it replicas has to be 1, and autoscaling off, or each node would deliver to its own clients only" -}}
{{- end -}}
{{- if and .Values.cluster.enabled (not (or .Values.secrets.clusterSecret.value .Values.secrets.clusterSecret.existingSecret)) -}}
{{- fail "secrets.clusterSecret is empty: nodes know each other by it when cluster.enabled is true" -}}
{{- end -}}
{{- if and .Values.cluster.enabled (not (hasPrefix "postgres" $url)) -}}
{{- fail "config.store.url has to be PostgreSQL's when cluster.enabled is true" -}}
{{- end -}}
{{- with .Values.cluster.tls -}}
{{- if and (or .enabled .certManager.enabled) (not (and .enabled $.Values.cluster.enabled)) -}}
{{- fail "cluster.tls needs cluster.enabled and cluster.tls.enabled: nothing would use the certificate" -}}
{{- end -}}
{{- if and .enabled (eq (ne .existingSecret "") .certManager.enabled) -}}
{{- fail "cluster.tls.enabled is true: give either cluster.tls.existingSecret or cluster.tls.certManager" -}}
{{- end -}}
{{- if and .certManager.enabled (not .certManager.issuerRef.name) -}}
{{- fail "cluster.tls.certManager.issuerRef.name is empty" -}}
{{- end -}}
{{- end -}}
{{- if hasPrefix "sqlite:" $url -}}
{{- $path := trimPrefix "sqlite:" $url -}}
{{- $mounted := false -}}
{{- range .Values.extraVolumeMounts -}}{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $path -}}{{- $mounted = true -}}{{- end -}}{{- end -}}
{{- if not $mounted -}}
{{- fail (printf "config.store.url: %s is on no volume, and the root file system is read-only: mount one with extraVolumes and extraVolumeMounts" $path) -}}
{{- end -}}
{{- end -}}
{{- if or (regexMatch "^postgres(ql)?://[^/@]*:[^/@]+@" $url) (regexMatch "(?i)[?&](ssl)?password=" $url) -}}
{{- fail "config.store.url has a password, which a ConfigMap would show: use secrets.storePassword" -}}
{{- end -}}
{{- $kafka := dig "kafka" "properties" dict $config -}}
{{- $protocol := get $kafka "security.protocol" | lower -}}
{{- range $name := list "caSecret" "userSecret" -}}
{{- if and (get $.Values.kafkaTls $name) (not (has $protocol (list "ssl" "sasl_ssl"))) -}}
{{- fail (printf "kafkaTls.%s is set, and config.kafka.properties has no security.protocol of SSL or SASL_SSL: Kafka would be spoken to in plain text" $name) -}}
{{- end -}}
{{- end -}}
{{- if or .Values.secrets.kafkaPassword.value .Values.secrets.kafkaPassword.existingSecret -}}
{{- if not (and (has $protocol (list "sasl_ssl" "sasl_plaintext")) (or (get $kafka "sasl.mechanism") (get $kafka "sasl.mechanisms")) (get $kafka "sasl.username")) -}}
{{- fail "secrets.kafkaPassword is set: config.kafka.properties needs security.protocol (SASL_SSL, or SASL_PLAINTEXT), sasl.mechanism and sasl.username with it, or Kafka would not be shown the password" -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $kafka -}}
{{- if has $name (list "sasl.password" "ssl.key.pem" "ssl.key.password" "ssl.keystore.password" "sasl.oauthbearer.client.secret") -}}
{{- fail (printf "config.kafka.properties.%s is a secret, which a ConfigMap would show: use secrets.kafkaPassword, kafkaTls or %s_file" $name $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (dig "auth" "jwt" dict $config) "hs256_secret" -}}
{{- fail "config.auth.jwt.hs256_secret would be shown by a ConfigMap: use secrets.jwtSecret" -}}
{{- end -}}
{{- $drain := include "notifier.drainSeconds" . | int64 -}}
{{- $needed := add $drain .Values.shutdown.preStopSeconds -}}
{{- if le (include "notifier.gracePeriod" . | int64) $needed -}}
{{- fail (printf "config.drain.deadline (%d s) and shutdown.preStopSeconds (%d s) are %d s, which is not below shutdown.gracePeriodSeconds (%d s): the node would be killed before it has drained" $drain (.Values.shutdown.preStopSeconds | int64) $needed (.Values.shutdown.gracePeriodSeconds | int64)) -}}
{{- end -}}
{{- if not (dig "limits" "memory" "" .Values.resources) -}}
{{- fail "resources.limits.memory is empty: the node refuses connections by it before it is killed" -}}
{{- end -}}
{{- if and .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled -}}
{{- fail "autoscaling.hpa.enabled and autoscaling.keda.enabled are both true: two autoscalers would work against each other" -}}
{{- end -}}
{{- range $name := list "hpa" "keda" -}}
{{- $scaler := get $.Values.autoscaling $name -}}
{{- if and $scaler.enabled (gt (int64 $scaler.minReplicas) (int64 $scaler.maxReplicas)) -}}
{{- fail (printf "autoscaling.%s.minReplicas is above maxReplicas" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.keda.enabled (not .Values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress is empty: KEDA asks Prometheus for the lag" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not (or .Values.tls.existingSecret .Values.tls.certManager.enabled)) -}}
{{- fail "tls.enabled is true: give tls.existingSecret or tls.certManager" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled .Values.tls.existingSecret -}}
{{- fail "tls.existingSecret and tls.certManager.enabled: only one of them can make the certificate" -}}
{{- end -}}
{{- if .Values.tls.certManager.enabled -}}
{{- if not .Values.tls.enabled -}}{{- fail "tls.certManager.enabled is true and tls.enabled is false: nothing would use the certificate" -}}{{- end -}}
{{- if not .Values.tls.certManager.issuerRef.name -}}{{- fail "tls.certManager.issuerRef.name is empty" -}}{{- end -}}
{{- if not .Values.tls.certManager.dnsNames -}}{{- fail "tls.certManager.dnsNames is empty" -}}{{- end -}}
{{- end -}}
{{- range $name, $hosts := dict "ingress" .Values.ingress "ingress.grpc" .Values.ingress.grpc "gateway.grpc" .Values.gateway.grpc "gateway" .Values.gateway -}}
{{- if and $hosts.enabled (not $hosts.hosts) -}}{{- fail (printf "%s.hosts is empty" $name) -}}{{- end -}}
{{- end -}}
{{- if and (or .Values.gateway.enabled .Values.gateway.grpc.enabled) (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs is empty: a route belongs to a Gateway" -}}
{{- end -}}
{{- if and .Values.monitoring.kind .Values.networkPolicy.enabled (not .Values.networkPolicy.ingress.monitoring) -}}
{{- fail "networkPolicy.ingress.monitoring is empty: Prometheus could not reach the admin port" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (eq .Values.ingress.controller "alb") .Values.networkPolicy.enabled (not .Values.networkPolicy.ingress.monitoring) -}}
{{- fail "networkPolicy.ingress.monitoring is empty: the balancer of ingress.controller alb could not ask the admin port for readiness; name its subnets" -}}
{{- end -}}
{{- if and .Values.migration.enabled (not (hasPrefix "postgres" $url)) -}}
{{- fail "migration.enabled needs PostgreSQL in config.store.url" -}}
{{- end -}}
{{- if and .Values.strimzi.enabled (not .Values.strimzi.cluster) -}}
{{- fail "strimzi.cluster is empty: topics belong to a Kafka cluster" -}}
{{- end -}}
{{- if and .Values.strimzi.user.enabled (not .Values.strimzi.enabled) -}}
{{- fail "strimzi.user.enabled is true and strimzi.enabled is false" -}}
{{- end -}}
{{- $alerts := list -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
{{- range ($.Files.Get $path | fromYaml).groups -}}{{- range .rules -}}{{- with .alert -}}{{- $alerts = append $alerts . -}}{{- end -}}{{- end -}}{{- end -}}
{{- end -}}
{{- range .Values.prometheusRule.disabled -}}
{{- if not (has . $alerts) -}}{{- fail (printf "prometheusRule.disabled: there is no alert %s" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
