{{/*
Envoy's runtime, which the policy service sets shares in. Whatever else an answer of it says would be believed as well,
so a layer above it states the keys that could make a router refuse, stop asking elsewhere, or not count budgets. It is
read again like the clusters, whose limits it repeats.
*/}}

{{/* The layers: of two that have a key, the later one wins. */}}
{{- define "router.runtimeLayers" -}}
# What the policy service says, asked again and again; the last answer stays when it is gone.
- name: policy
  rtds_layer:
    name: policy
    rtds_config:
      resource_api_version: V3
      # A router serves whether or not anybody answers.
      initial_fetch_timeout: 1s
      api_config_source:
        api_type: REST
        transport_api_version: V3
        cluster_names: [policy]
        refresh_delay: {{ include "router.duration" .Values.policy.refreshRate }}
        request_timeout: 1s
- name: fixed
  rtds_layer:
    name: fixed
    rtds_config:
      resource_api_version: V3
      path_config_source: {path: xds/runtime.json, watched_directory: {path: xds}}
{{- end -}}

{{/* What is fixed, each at the value that it has anyway: (dict "root" $ "clusters" $json). */}}
{{- define "router.fixedRuntime" -}}
{{- $health := .root.Values.health -}}
{{- $layer := dict
      "upstream.use_retry" 100
      "upstream.healthy_panic_threshold" 0
      "ratelimit.http_filter_enabled" 100
      "ratelimit.http_filter_enforcing" 100
      "outlier_detection.interval_ms" 1000
      "outlier_detection.base_ejection_time_ms" (include "plane.milliseconds" $health.ejectionTime | int)
      "outlier_detection.consecutive_5xx" (int $health.consecutive5xx)
      "outlier_detection.consecutive_local_origin_failure" (int $health.consecutive5xx)
      "outlier_detection.enforcing_consecutive_5xx" 100
      "outlier_detection.enforcing_consecutive_local_origin_failure" 100
      "outlier_detection.enforcing_success_rate" 0
      "outlier_detection.enforcing_local_origin_success_rate" 0
      "outlier_detection.enforcing_failure_percentage" 0
      "outlier_detection.enforcing_failure_percentage_local_origin" 0 -}}
{{- range (fromJson .clusters).resources -}}
{{- $_ := set $layer (printf "upstream.maintenance_mode.%s" .name) 0 -}}
{{- $limits := first .circuit_breakers.thresholds -}}
{{- $name := .name -}}
{{- range list "max_connections" "max_pending_requests" "max_requests" "max_retries" -}}
{{- $_ := set $layer (printf "circuit_breakers.%s.default.%s" $name .) (get $limits . | int) -}}
{{- end -}}
{{- end -}}
{{- $resource := dict "@type" "type.googleapis.com/envoy.service.runtime.v3.Runtime" "name" "fixed" "layer" $layer -}}
{{ dict "version_info" "1" "resources" (list $resource) | toJson }}
{{- end -}}
