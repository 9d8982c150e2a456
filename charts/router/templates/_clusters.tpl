{{/*
The clusters: for each model its fleets, and Amazon Bedrock where the model has a fallback.
*/}}

{{- define "router.clusters" -}}
version_info: "1"
resources:
  {{- range $model := include "plane.fleets" (include "plane.models" $ | fromJson) | fromJson }}
  - {{ include "router.fleetCluster" (dict "root" $ "model" $model) | nindent 4 | trim }}
  {{- if and $model.fallback (eq $model.fleet $model.name) }}
  - {{ include "router.bedrockCluster" (dict "root" $ "model" $model) | nindent 4 | trim }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "router.fleetCluster" -}}
{{- $values := .root.Values -}}
{{- $tls := include "plane.tls" .root -}}
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: fleet/{{ .model.fleet }}
alt_stat_name: fleet/{{ .model.fleet }}
metadata:
  filter_metadata:
    {{- $facts := dict "model" .model "backend" "fleet" "version" .model.version }}
    inference-plane: {{ include "router.clusterFacts" $facts }}
connect_timeout: 1s
{{- if eq .model.affinity "none" }}
lb_policy: LEAST_REQUEST
{{- else }}
# Every router puts the same key on the same pod, and a pod that leaves moves little but its own keys. The table, of a
# prime size, takes 40 KB: enough for 50 pods to differ by 1 %, where Envoy's default would take 0.5 MB a model.
lb_policy: MAGLEV
maglev_lb_config: {table_size: 5003}
{{- end }}
cluster_type: {{ include "router.dnsClusterType" .root | nindent 2 }}
# A pod that left the Service takes no more requests, though it still answers health checks while it drains.
ignore_health_on_host_removal: true
# A lost node sends no reset: 30 s without an answer to a probe say that it is gone.
upstream_connection_options:
  tcp_keepalive: {keepalive_time: 15, keepalive_interval: 5, keepalive_probes: 3}
common_lb_config:
  # Never send to the unhealthy because too few are healthy.
  healthy_panic_threshold: {value: 0}
  # By default Envoy holds news of health back for up to a second.
  update_merge_window: 0s
  {{- if ne .model.affinity "none" }}
  # A pod that has more than its share of the running requests gives the rest to the next ones of the same key.
  consistent_hashing_lb_config: {hash_balance_factor: {{ $values.affinity.maxLoadPercent }}}
  {{- end }}
load_assignment:
  cluster_name: fleet/{{ .model.fleet }}
  policy:
    # Any one healthy pod takes all requests before one spills over to the second priority.
    overprovisioning_factor: 100000
  endpoints:
    - priority: 0
      lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: {{ include "plane.engineHost" . }}
                port_value: {{ include "plane.enginePort" . }}
    # An empty fleet answers here with 503, so that the request moves on or the client hears when to come back.
    - priority: 1
      lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: 127.0.0.1, port_value: {{ $values.noCapacity.port }}}
            health_check_config: {disable_active_health_check: true}
          {{- if $tls }}
          metadata: {filter_metadata: {envoy.transport_socket_match: {loopback: true}}}
          {{- end }}
{{- if $tls }}
# Whatever is not marked as loopback has to prove its name.
transport_socket: {{ include "router.tls" (dict "host" (include "plane.engineHost" .) "inside" true) | nindent 2 }}
transport_socket_matches:
  - name: loopback
    match: {loopback: true}
    transport_socket:
      name: envoy.transport_sockets.raw_buffer
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer
{{- end }}
circuit_breakers:
  thresholds:
    - max_connections: {{ $values.limits.connections }}
      max_pending_requests: {{ $values.limits.pendingRequests }}
      max_requests: {{ $values.limits.requests }}
      # A request that went on to Amazon Bedrock counts as a retry of the fleet until it ends.
      max_retries: {{ add $values.limits.requests (mul 2 $values.fallback.maxConcurrent) }}
      track_remaining: true
health_checks:
  - timeout: {{ include "router.duration" $values.health.timeout }}
    interval: {{ include "router.duration" $values.health.interval }}
    no_traffic_interval: {{ include "router.duration" $values.health.interval }}
    unhealthy_threshold: {{ $values.health.unhealthyThreshold }}
    healthy_threshold: 1
    http_health_check: {path: /health}
outlier_detection:
  consecutive_5xx: {{ $values.health.consecutive5xx }}
  # Counts failures to connect apart from an engine's own answers.
  split_external_local_origin_errors: true
  consecutive_local_origin_failure: {{ $values.health.consecutive5xx }}
  enforcing_success_rate: 0
  enforcing_local_origin_success_rate: 0
  interval: 1s
  base_ejection_time: {{ include "router.duration" $values.health.ejectionTime }}
  max_ejection_percent: {{ $values.health.maxEjectionPercent }}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http_protocol_options: {}}
    {{- if and .model.fallback $values.policy.enabled }}
    http_filters:
      # Without a script, except on routes that ask Amazon Bedrock first.
      - name: restore
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
      - name: envoy.filters.http.upstream_codec
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec
    {{- end }}
    outlier_detection:
      # What the plane says itself, such as "no capacity", is no sickness of the endpoint that said it.
      error_matcher:
        http_response_headers_match:
          headers:
            - {name: ":status", string_match: {prefix: "5"}}
            - {name: x-plane-reason, present_match: false}
{{- end -}}

{{/* What a reply's headers and the audit line say of whoever served. */}}
{{- define "router.clusterFacts" -}}
{{ dict "backend" .backend "model" .model.name "model_version" .version "residency" .model.residency | toJson }}
{{- end -}}

{{/* Every address of a name is an endpoint of its own. */}}
{{- define "router.dnsClusterType" -}}
{{- $rate := include "router.duration" .Values.dns.refreshRate -}}
name: envoy.clusters.dns
typed_config:
  "@type": type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster
  dns_refresh_rate: {{ $rate }}
  dns_failure_refresh_rate: {base_interval: {{ $rate }}, max_interval: {{ $rate }}}
  dns_lookup_family: V4_ONLY
  all_addresses_in_single_endpoint: false
{{- end -}}

{{- define "router.bedrockHost" -}}
{{ .Values.bedrock.host | default (printf "bedrock-runtime.%s.amazonaws.com" .Values.global.aws.region) }}
{{- end -}}

{{- define "router.bedrockCluster" -}}
{{- $values := .root.Values -}}
{{- $host := include "router.bedrockHost" .root -}}
{{- $account := dict "global" $values.global "namespace" .root.Release.Namespace "serviceAccount" "router" -}}
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: bedrock/{{ .model.name }}
alt_stat_name: bedrock/{{ .model.name }}
metadata:
  filter_metadata:
    {{- $facts := dict "model" .model "backend" "bedrock" "version" .model.fallback.model }}
    {{- /* How far it takes a prompt, for whoever judges the manifests: docs/residency.md. */}}
    {{- $way := dict "reach" .model.reach "region" $values.global.aws.region "retention" .model.fallback.retention }}
    inference-plane: {{ include "router.clusterFacts" $facts | fromJson | merge $way | toJson }}
connect_timeout: 2s
lb_policy: LEAST_REQUEST
cluster_type: {{ include "router.dnsClusterType" .root | nindent 2 }}
load_assignment:
  cluster_name: bedrock/{{ .model.name }}
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: {{ $host }}, port_value: {{ $values.bedrock.port }}}
circuit_breakers:
  thresholds:
    - max_connections: {{ $values.fallback.maxConcurrent }}
      max_pending_requests: {{ $values.fallback.maxConcurrent }}
      max_requests: {{ $values.fallback.maxConcurrent }}
      max_retries: {{ $values.fallback.maxConcurrent }}
      track_remaining: true
{{- if $values.bedrock.tls }}
transport_socket: {{ include "router.tls" (dict "host" $host) | nindent 2 }}
{{- end }}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http_protocol_options: {}}
    # In this order: say what is asked of whom, rewrite the body to that and nothing more, sign the result.
    http_filters:
      - name: envoy.filters.http.header_mutation
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
          mutations:
            request_mutations:
              - append:
                  header: {key: x-plane-target, value: {{ .model.fallback.model | quote }}}
                  append_action: OVERWRITE_IF_EXISTS_OR_ADD
              {{- with .model.fallback.parameters }}
              - append:
                  header: {key: x-plane-target-keys, value: {{ join "," . | quote }}}
                  append_action: OVERWRITE_IF_EXISTS_OR_ADD
              {{- end }}
              - append:
                  header: {key: x-plane-authority, value: {{ $host }}}
                  append_action: OVERWRITE_IF_EXISTS_OR_ADD
      - name: envoy.filters.http.lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code: {filename: bootstrap/bedrock.lua}
      - name: envoy.filters.http.aws_request_signing
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.aws_request_signing.v3.AwsRequestSigning
          service_name: bedrock
          region: {{ $values.global.aws.region }}
          # The pod's own role, never the node's.
          credential_provider:
            custom_credential_provider_chain: true
            {{- if eq $values.global.identity.mode "irsa" }}
            assume_role_with_web_identity_provider:
              role_arn: {{ (include "plane.role" $account | fromJson).arn }}
              role_session_name: router
              web_identity_token_data_source:
                filename: {{ include "plane.webIdentityFolder" . }}/token
                watched_directory: {path: {{ include "plane.webIdentityFolder" . }}}
            {{- else }}
            container_credential_provider: {}
            {{- end }}
      - name: envoy.filters.http.upstream_codec
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec
{{- end -}}
