{{/*
Traces in OpenTelemetry's protocol. A trace begins at the router: a span of the request, and one of each try.
*/}}

{{/* The tracer of the listener for clients. */}}
{{- define "router.tracing" -}}
# The router alone decides, in random_sampling: the client's context was removed before.
client_sampling: {value: 0}
random_sampling: {value: {{ .Values.global.tracing.samplePercent }}}
# A try is a span of its own, and the engine's span is below it.
spawn_upstream_span: true
# The path has the query, which is the client's own words.
max_path_tag_length: 128
custom_tags:
  {{- range $tag, $value := dict
        "inference.model" "%CLUSTER_METADATA(inference-plane:model)%"
        "inference.model_version" "%CLUSTER_METADATA(inference-plane:model_version)%"
        "inference.backend" "%CLUSTER_METADATA(inference-plane:backend)%"
        "inference.residency" "%CLUSTER_METADATA(inference-plane:residency)%"
        "inference.team" "%DYNAMIC_METADATA(inference-plane:team)%"
        "inference.route" "%ROUTE_NAME%"
        "inference.attempts" "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
        "inference.reason" "%RESP(x-plane-reason)%" }}
  - {tag: {{ $tag }}, value: {{ $value | quote }}}
  {{- end }}
  # In a pod its own name.
  - {tag: k8s.pod.name, environment: {name: HOSTNAME}}
provider:
  name: envoy.tracers.opentelemetry
  typed_config:
    "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
    service_name: inference-router
    {{- if eq .Values.global.tracing.protocol "grpc" }}
    grpc_service: {envoy_grpc: {cluster_name: traces}, timeout: 5s}
    {{- else }}
    http_service:
      http_uri: {uri: {{ include "plane.tracesUrl" . | quote }}, cluster: traces, timeout: 5s}
    {{- end }}
    resource_detectors:
      - name: envoy.tracers.opentelemetry.resource_detectors.static_config
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig
          attributes:
            service.namespace: inference-plane
            k8s.namespace.name: {{ .Release.Namespace }}
            {{- with .Values.global.aws.clusterName }}
            k8s.cluster.name: {{ . }}
            {{- end }}
{{- end -}}

{{/* The collector. */}}
{{- define "router.tracesCluster" -}}
{{- $host := splitList ":" .Values.global.tracing.endpoint | first -}}
name: traces
connect_timeout: 2s
cluster_type: {{ include "router.dnsClusterType" . | nindent 2 }}
load_assignment:
  cluster_name: traces
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: {{ $host }}
                port_value: {{ splitList ":" .Values.global.tracing.endpoint | last }}
{{- if .Values.global.tracing.tls }}
transport_socket: {{ include "router.tls" (dict "host" $host) | nindent 2 }}
{{- end }}
{{- if eq .Values.global.tracing.protocol "grpc" }}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
{{- end }}
{{- end -}}
