{{/*
The bootstrap: listeners, filters, audit line. What a catalogue changes is not here, so a changed catalogue restarts
nothing. Paths are relative to the container's working directory.
*/}}

{{- define "router.bootstrap" -}}
{{- $bodyLimit := mul .Values.maxBodyMiB 1048576 -}}
node: {id: router, cluster: inference-plane}
# A Unix socket: nothing outside the pod reaches the admin interface.
admin:
  address:
    pipe: {path: run/admin.sock, mode: 384}
dynamic_resources:
  cds_config:
    resource_api_version: V3
    path_config_source: {path: xds/clusters.json, watched_directory: {path: xds}}
# Names are complete, so the pod's search domains would only add questions.
typed_dns_resolver_config:
  name: envoy.network.dns_resolver.cares
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig
    dns_resolver_options: {no_default_search_domain: true}
    {{- with .Values.dns.resolvers }}
    resolvers:
      {{- range . }}
      - socket_address: {address: {{ splitList ":" . | first }}, port_value: {{ splitList ":" . | last }}}
      {{- end }}
    {{- end }}
{{- if include "router.policyDecides" . }}
layered_runtime:
  layers: {{ include "router.runtimeLayers" . | nindent 4 }}
{{- end }}
overload_manager:
  refresh_interval: 0.25s
  resource_monitors:
    - name: envoy.resource_monitors.global_downstream_max_connections
      typed_config:
        "@type":
          type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
        max_active_downstream_connections: {{ .Values.limits.downstreamConnections }}
    # Bodies are held in memory: near the container's limit new requests are answered 503, before the kernel ends all.
    - name: envoy.resource_monitors.fixed_heap
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
        max_heap_size_bytes: {{ include "plane.bytes" .Values.resources.limits.memory }}
  actions:
    - name: envoy.overload_actions.stop_accepting_requests
      triggers:
        - {name: envoy.resource_monitors.fixed_heap, threshold: {value: 0.7}}
static_resources:
  clusters:
    - name: admin
      type: STATIC
      connect_timeout: 1s
      load_assignment:
        cluster_name: admin
        endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: run/admin.sock}}}}]}]
    {{- if include "router.policyDecides" . }}
    - {{ include "router.policyCluster" . | nindent 6 | trim }}
    {{- end }}
    {{- if and (eq .Values.auth.mode "jwt") .Values.auth.jwks.uri }}
    - {{ include "router.jwksCluster" . | nindent 6 | trim }}
    {{- if .Values.auth.jwks.proxy }}
    - {{ include "router.jwksProxyCluster" . | nindent 6 | trim }}
    {{- end }}
    {{- end }}
    {{- if include "router.budgets" . }}
    - {{ include "router.ratelimitCluster" . | nindent 6 | trim }}
    {{- end }}
    {{- if .Values.global.tracing.endpoint }}
    - {{ include "router.tracesCluster" . | nindent 6 | trim }}
    {{- end }}
  listeners:
    - name: plane
      # Its statistics would be named after its address.
      stat_prefix: plane
      address:
        socket_address: {address: {{ .Values.listener.address }}, port_value: {{ .Values.listener.port }}}
      # A body is held as a whole, so that it can be sent again to another pod or to Amazon Bedrock.
      per_connection_buffer_limit_bytes: {{ $bodyLimit }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config: {{ include "router.connectionManager" . | nindent 16 }}
          {{- if include "plane.tls" . }}
          transport_socket: {{ include "router.listenerTls" . | nindent 12 }}
          # A handshake that does not end must not hold a connection.
          transport_socket_connect_timeout: 10s
          {{- end }}
    - name: no-capacity
      address:
        socket_address: {address: 127.0.0.1, port_value: {{ .Values.noCapacity.port }}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type":
                  type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: no_capacity
                local_reply_config:
                  mappers:
                    {{- include "router.asleep" . | nindent 20 }}
                    {{- (include "router.errorBodies" . | fromYaml).mappers | toYaml | nindent 20 }}
                route_config:
                  virtual_hosts:
                    - name: no-capacity
                      domains: ["*"]
                      routes:
                        - match: {prefix: /}
                          direct_response: {status: 503}
                          response_headers_to_add:
                            - header: {key: retry-after, value: "{{ .Values.noCapacity.retryAfterSeconds }}"}
                            - header: {key: x-plane-reason, value: no-capacity}
                            - header: {key: x-inference-backend, value: none}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
    - name: status
      address:
        socket_address: {address: {{ .Values.status.address }}, port_value: {{ .Values.status.port }}}
      # Health checks and scrapes come in however full the router is.
      bypass_overload_manager: true
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type":
                  type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: status
                route_config:
                  virtual_hosts:
                    - name: status
                      domains: ["*"]
                      routes:
                        - match:
                            path: /ready
                            headers: [{name: ":method", string_match: {exact: GET}}]
                          route: {cluster: admin}
                        # The shortest answer of the main thread that a drain does not change.
                        - match:
                            path: /alive
                            headers: [{name: ":method", string_match: {exact: GET}}]
                          route: {cluster: admin, prefix_rewrite: /hot_restart_version}
                        - match:
                            path: /metrics
                            headers: [{name: ":method", string_match: {exact: GET}}]
                          route: {cluster: admin, prefix_rewrite: /stats/prometheus}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
    {{- if and (eq .Values.auth.mode "jwt") .Values.auth.jwks.proxy }}
    - {{ include "router.jwksProxyListener" . | nindent 6 | trim }}
    {{- end }}
{{- end -}}

{{- define "router.connectionManager" -}}
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
stat_prefix: plane
server_name: inference-plane
# The load balancer is the one trusted hop in front.
use_remote_address: true
xff_num_trusted_hops: 1
# No address is trusted to send internal headers.
internal_address_config: {cidr_ranges: [{address_prefix: 127.255.255.255, prefix_len: 32}]}
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: REJECT_REQUEST
always_set_request_id_in_response: true
stream_idle_timeout: {{ include "router.duration" .Values.requestTimeout }}
request_headers_timeout: 30s
request_timeout: 120s
common_http_protocol_options:
  # Above the load balancer's, so that it and not the router closes an idle connection.
  idle_timeout: {{ addf (divf (include "plane.milliseconds" .Values.requestTimeout) 1000) 60 }}s
  headers_with_underscores_action: REJECT_REQUEST
# Headers that mean something inside the plane never come from outside.
early_header_mutation_extensions:
  - name: envoy.http.early_header_mutation.header_mutation
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
      mutations:
        - remove_on_match: {key_matcher: {prefix: x-plane-}}
        - remove_on_match: {key_matcher: {prefix: x-envoy-}}
        - remove_on_match: {key_matcher: {prefix: x-inference-}}
        {{- if .Values.global.tracing.endpoint }}
        # Nobody else decides what is traced, and baggage may say anything.
        {{- range list "traceparent" "tracestate" "baggage" "x-client-trace-id" }}
        - remove: {{ . }}
        {{- end }}
        {{- end }}
local_reply_config: {{ include "router.errorBodies" . | nindent 2 }}
{{- if .Values.global.tracing.endpoint }}
tracing: {{ include "router.tracing" . | nindent 2 }}
{{- end }}
access_log:
  - name: envoy.access_loggers.stdout
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
      log_format:
        json_format: {{ include "router.auditLine" . | nindent 10 }}
  {{- include "router.usageCounters" . | nindent 2 }}
rds:
  route_config_name: plane
  config_source:
    resource_api_version: V3
    path_config_source: {path: xds/routes.json, watched_directory: {path: xds}}
http_filters:
  {{- include "router.authFilters" . | nindent 2 }}
  - name: envoy.filters.http.lua
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
      default_source_code: {filename: bootstrap/route.lua}
  # What affinity.lua found, where the routes' hash policies read it; and what the leg to Amazon Bedrock removes from the
  # headers, which an auditor wants above all.
  - name: envoy.filters.http.set_filter_state
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
      on_request_headers:
        {{- range $key, $header := dict "requested_model" "x-plane-model" "requested_residency" "x-residency" }}
        - {{ include "router.kept" (list $key (printf "%%REQ(%s)%%" $header)) | nindent 10 | trim }}
        {{- end }}
        - object_key: inference-plane.affinity
          factory_key: envoy.hashable_string
          format_string:
            text_format_source: {inline_string: "%DYNAMIC_METADATA(inference-plane:affinity)%"}
            omit_empty_values: true
          skip_if_empty: true
  - name: envoy.filters.http.header_to_metadata
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
      response_rules:
        {{- range list "prompt" "completion" "cached" }}
        - header: x-plane-{{ . }}-tokens
          on_header_present: {metadata_namespace: usage, key: {{ . }}_tokens, type: NUMBER}
          remove: true
        {{- end }}
  {{- if include "router.budgets" . }}
  {{- include "router.budgetFilter" . | nindent 2 }}
  {{- end }}
  {{- include "router.streamUsage" . | nindent 2 }}
  - name: envoy.filters.http.router
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
{{- end -}}

{{/*
Usage of a stream from its events; the last one that has it wins. Marked work in progress in Envoy 1.40, therefore in
one place.
*/}}
{{- define "router.streamUsage" -}}
- name: envoy.filters.http.sse_to_metadata
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.sse_to_metadata.v3.SseToMetadata
    response_rules:
      content_parser:
        name: envoy.content_parsers.json
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.content_parsers.json.v3.JsonContentParser
          rules:
            {{- range list
                  (list "prompt_tokens" "prompt_tokens")
                  (list "completion_tokens" "completion_tokens")
                  (list "cached_tokens" "prompt_tokens_details" "cached_tokens") }}
            - rule:
                selectors:
                  - key: usage
                  {{- range rest . }}
                  - key: {{ . }}
                  {{- end }}
                on_present: {metadata_namespace: usage, key: {{ first . }}, type: NUMBER}
            {{- end }}
{{- end -}}

{{/*
One line for each request, whatever became of it; never a prompt or a completion. The leg to Amazon Bedrock removes
request headers, so what must not be missing comes from filter state, from the cluster that served or from the reply.
Of a request's metadata Envoy copies all for each field that is read from it here, tokens' claims included: therefore
only numbers are.
*/}}
{{- define "router.auditLine" -}}
type: end
time: "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%"
request_id: "%REQ(x-request-id)%"
client: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"
method: "%REQ(:method)%"
path: "%PATH(NQ):128%"
team: "%FILTER_STATE(inference-plane.team:PLAIN)%"
cost_center: "%FILTER_STATE(inference-plane.cost_center:PLAIN)%"
subject: "%FILTER_STATE(inference-plane.subject:PLAIN)%"
requested_model: "%FILTER_STATE(inference-plane.requested_model:PLAIN)%"
requested_residency: "%FILTER_STATE(inference-plane.requested_residency:PLAIN)%"
model: "%CLUSTER_METADATA(inference-plane:model)%"
model_version: "%CLUSTER_METADATA(inference-plane:model_version)%"
residency: "%CLUSTER_METADATA(inference-plane:residency)%"
backend: "%CLUSTER_METADATA(inference-plane:backend)%"
route: "%ROUTE_NAME%"
upstream: "%UPSTREAM_HOST%"
attempts: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
status: "%RESPONSE_CODE%"
content_type: "%RESP(content-type)%"
reason: "%RESP(x-plane-reason)%"
details: "%RESPONSE_CODE_DETAILS%"
flags: "%RESPONSE_FLAGS_LONG%"
prompt_tokens: "%DYNAMIC_METADATA(usage:prompt_tokens)%"
completion_tokens: "%DYNAMIC_METADATA(usage:completion_tokens)%"
cached_tokens: "%DYNAMIC_METADATA(usage:cached_tokens)%"
{{- if include "router.budgets" . }}
budget: {{ include "router.budgetOutcome" . | quote }}
budget_estimate: "%DYNAMIC_METADATA(inference-plane:budget_estimate)%"
{{- end }}
request_bytes: "%BYTES_RECEIVED%"
response_bytes: "%BYTES_SENT%"
connect_ms: "%UPSTREAM_CONNECTION_POOL_READY_DURATION%"
first_byte_ms: "%RESPONSE_DURATION%"
duration_ms: "%DURATION%"
{{- end -}}

{{/* A text for the audit line in filter state: (list KEY FORMAT); nothing where the format gives nothing. */}}
{{- define "router.kept" -}}
object_key: inference-plane.{{ first . }}
factory_key: envoy.string
format_string: {text_format_source: {inline_string: {{ last . | quote }}}, omit_empty_values: true}
skip_if_empty: true
{{- end -}}

{{/*
The end lines' numbers as counters, for Prometheus: requests by status, tokens by kind. No value of a tag is a client's:
team and cost center are those of global.teams, model and backend the catalogue's, so there are as many series as there
are teams, models and backends that meet. Each kind has a logger of its own, which is not asked where there is nothing
to add: Envoy complains of a number that is missing, and one of 0 costs as much as any.
*/}}
{{- define "router.usageCounters" -}}
{{- range $kind := list "requests" "prompt" "completion" "cached" }}
- name: envoy.access_loggers.stats
  {{- if ne $kind "requests" }}
  filter:
    metadata_filter:
      matcher:
        filter: usage
        path: [{key: {{ $kind }}_tokens}]
        value: {double_match: {range: {start: 1, end: 1e15}}}
      match_if_key_not_found: false
  {{- end }}
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config
    stats_scope: {prefix: usage}
    counters:
      - stat:
          name: {{ eq $kind "requests" | ternary "requests" "tokens" }}
          tags:
            - {name: team, value_format: "%FILTER_STATE(inference-plane.team:PLAIN)%"}
            - {name: cost_center, value_format: "%FILTER_STATE(inference-plane.cost_center:PLAIN)%"}
            - {name: model, value_format: "%CLUSTER_METADATA(inference-plane:model)%"}
            - {name: backend, value_format: "%CLUSTER_METADATA(inference-plane:backend)%"}
            {{- if eq $kind "requests" }}
            - {name: status, value_format: "%RESPONSE_CODE%"}
        value_fixed: 1
            {{- else }}
            - {name: kind, value_format: {{ $kind }}}
        value_format: "%DYNAMIC_METADATA(usage:{{ $kind }}_tokens)%"
            {{- end }}
{{- end }}
{{- end -}}

{{/* Everything that the router answers itself has OpenAI's error shape. The first mapper that fits is used. */}}
{{- define "router.errorBodies" -}}
mappers:
  {{- if include "router.budgets" . }}
  {{- include "router.budgetErrors" . | nindent 2 }}
  {{- end }}
  {{- include "router.authErrors" . | nindent 2 }}
  - filter: {{ include "router.statusIs" (list 400 "x-plane-refused") }}
    body_format_override:
      {{- include "router.errorBody" (list "invalid_request_error"
          "The request was refused: %REQ(x-plane-refused)%.") | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 503 "x-plane-refused") }}
    headers_to_add: {{ include "router.retryAfter" . | nindent 6 }}
    body_format_override:
      {{- include "router.errorBody" (list "server_error"
          "The request was refused: %REQ(x-plane-refused)%.") | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 404 "x-plane-model") }}
    body_format_override:
      {{- include "router.errorBody" (list "not_found_error"
          "The model `%REQ(x-plane-model)%` does not exist, or does not serve this path.") | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 404) }}
    body_format_override:
      {{- include "router.errorBody" (list "not_found_error"
          "This path does not exist. Name the model in the body, or in the path: /MODEL/v1/...") | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 413) }}
    body_format_override:
      {{- include "router.errorBody" (list "invalid_request_error"
          (printf "The body is larger than %d MiB." (int .Values.maxBodyMiB))) | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 503) }}
    headers_to_add: {{ include "router.retryAfter" . | nindent 6 }}
    body_format_override:
      {{- include "router.errorBody" (list "overloaded_error"
          "No engine can take the request now (%RESPONSE_CODE_DETAILS%).") | nindent 6 }}
  - filter: {{ include "router.statusIs" (list 504) }}
    body_format_override:
      {{- include "router.errorBody" (list "timeout_error"
          "The answer took too long (%RESPONSE_CODE_DETAILS%).") | nindent 6 }}
  - filter:
      status_code_filter: {comparison: {op: GE, value: {default_value: 400, runtime_key: none}}}
    body_format_override:
      {{- include "router.errorBody" (list "invalid_request_error"
          "The request was refused (%RESPONSE_CODE_DETAILS%).") | nindent 6 }}
{{- end -}}

{{/* What an empty fleet says that may have no replica: how long the first one takes, from the model's routes. */}}
{{- define "router.asleep" -}}
- filter: {{ include "router.statusIs" (list 503 "x-plane-start-seconds") }}
  headers_to_add:
    - header: {key: retry-after, value: "%REQ(x-plane-start-seconds)%"}
      append_action: OVERWRITE_IF_EXISTS_OR_ADD
  body_format_override:
    {{- include "router.errorBody" (list "overloaded_error"
        "No replica of the model runs. One is started, which takes some %REQ(x-plane-start-seconds)% seconds.")
        | nindent 4 }}
{{- end -}}

{{/* OpenAI's error: (list TYPE MESSAGE). */}}
{{- define "router.errorBody" -}}
content_type: application/json
json_format: {error: {message: {{ last . | quote }}, type: {{ first . }}, param: null, code: "%RESPONSE_CODE%"}}
{{- end -}}

{{/* An access-log filter for a status, and for a request header where one is named. */}}
{{- define "router.statusIs" -}}
{{- $value := dict "default_value" (first .) "runtime_key" "none" -}}
{{- $status := dict "status_code_filter" (dict "comparison" (dict "op" "EQ" "value" $value)) -}}
{{- if eq (len .) 1 -}}
{{ toJson $status }}
{{- else -}}
{{- $header := dict "header_filter" (dict "header" (dict "name" (last .) "present_match" true)) -}}
{{ dict "and_filter" (dict "filters" (list $status $header)) | toJson }}
{{- end -}}
{{- end -}}

{{- define "router.retryAfter" -}}
- header: {key: retry-after, value: "{{ .Values.noCapacity.retryAfterSeconds }}"}
  append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- end -}}
