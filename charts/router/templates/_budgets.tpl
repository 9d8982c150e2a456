{{/*
Token budgets: tokens a minute of a team, and of a team with one model. identity.lua learns from the routes which
budgets the caller's team has; route.lua says in metadata what the request is charged, and to which budgets;
Envoy's rate-limit filter asks the rate-limit service, whose counters are in Valkey.
*/}}

{{/* "true" where budgets are counted: a team has one, and they are not off. */}}
{{- define "router.budgets" -}}
{{- if ne .Values.budgets.mode "off" -}}
{{- range .Values.global.teams -}}
{{- if include "router.hasBudget" . }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where a team has a budget, as a whole or with a model. */}}
{{- define "router.hasBudget" -}}
{{- if kindIs "map" . -}}
{{- if .tokensPerMinute }}true{{ end -}}
{{- range .models }}{{ if (. | default dict).tokensPerMinute }}true{{ end }}{{ end -}}
{{- end -}}
{{- end -}}

{{/*
What identity.lua puts into metadata of one team's budgets, as JSON: (dict "root" $ "team" $team "models" $models).
`models` has each name under which a model with a budget is served, and the model's own. Nothing without a budget.
*/}}
{{- define "router.teamBudget" -}}
{{- if and (ne .root.Values.budgets.mode "off") (include "router.hasBudget" .team) -}}
{{- $budget := dict "bytes_per_token" .root.Values.budgets.bytesPerToken -}}
{{- if .team.tokensPerMinute }}{{ $_ := set $budget "whole" true }}{{ end -}}
{{- $served := dict -}}
{{- range $name, $entry := .team.models -}}
{{- if ($entry | default dict).tokensPerMinute -}}
{{- range (get $.models $name | default dict).servedNames }}{{ $_ := set $served . $name }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $served }}{{ $_ := set $budget "models" $served }}{{ end -}}
{{- toJson $budget -}}
{{- end -}}
{{- end -}}

{{/* The limits of the rate-limit service, one file for the domain `tokens`. */}}
{{- define "router.budgetLimits" -}}
{{- $dry := eq .Values.budgets.mode "dryRun" -}}
domain: tokens
descriptors:
  {{- range $name, $team := .Values.global.teams }}
  {{- if include "router.hasBudget" $team }}
  - key: team
    value: {{ $name }}
    {{- with $team.tokensPerMinute }}
    {{- include "router.budgetLimit" (dict "tokens" . "dry" $dry) | nindent 4 }}
    {{- end }}
    {{- with $team.models }}
    descriptors:
      {{- range $model, $entry := . }}
      {{- with ($entry | default dict).tokensPerMinute }}
      - key: model
        value: {{ $model }}
        {{- include "router.budgetLimit" (dict "tokens" . "dry" $dry) | nindent 8 }}
      {{- end }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- end }}
{{- end -}}

{{- define "router.budgetLimit" -}}
rate_limit: {unit: minute, requests_per_unit: {{ int64 .tokens }}}
{{- if .dry }}
# Counted, told, never refused.
quota_mode: true
{{- end }}
{{- end -}}

{{/*
The filter. Each budget is looked at by one entry, which adds nothing, and charged by another, which has no limit of its
own, under the same key: so a request that is refused is charged to none of its budgets, which
STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT of the service adds. When the stream is done, what the answer used beyond the
estimate is charged. A request whose route calls nobody (403, 404, 400) is never counted.
*/}}
{{- define "router.budgetFilter" -}}
{{- $ours := "inference-plane" -}}
{{- $team := dict "metadata" (dict "descriptor_key" "team"
      "metadata_key" (dict "key" $ours "path" (list (dict "key" "budget_team")))) -}}
{{- $caller := dict "metadata" (dict "descriptor_key" "team"
      "metadata_key" (dict "key" $ours "path" (list (dict "key" "team")))) -}}
{{- $model := dict "metadata" (dict "descriptor_key" "model"
      "metadata_key" (dict "key" $ours "path" (list (dict "key" "budget_model")))) -}}
{{- $budgets := list (list $team) (list $caller $model) -}}
{{- $unlimited := dict "dynamic_metadata" (dict
      "metadata_key" (dict "key" $ours "path" (list (dict "key" "unlimited")))) -}}
- name: envoy.filters.http.ratelimit
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
    domain: tokens
    timeout: {{ include "router.duration" .Values.budgets.timeout }}
    failure_mode_deny: {{ eq .Values.budgets.whenUnavailable "refuse" }}
    status_on_error: {code: ServiceUnavailable}
    enable_retry_after_header: true
    rate_limit_service:
      transport_api_version: V3
      grpc_service: {envoy_grpc: {cluster_name: ratelimit}}
    rate_limits:
      {{- range $budgets }}
      - actions: {{ toJson . }}
        hits_addend: {number: 0}
      - actions: {{ toJson . }}
        hits_addend: {format: "%DYNAMIC_METADATA(inference-plane:budget_estimate)%"}
        limit: {{ toJson $unlimited }}
      {{- end }}
      {{- range $budgets }}
      - actions: {{ toJson . }}
        apply_on_stream_done: true
        hits_addend: {format: {{ include "router.budgetRest" $ | quote }}}
        limit: {{ toJson $unlimited }}
      {{- end }}
{{- end -}}

{{/*
The tokens that an answer used beyond its estimate, never less than none: the service at this version cannot give back.
Without usage, as of a stream that was left, the estimate is the charge.
*/}}
{{- define "router.budgetRest" -}}
{{- $used := list -}}
{{- range list "prompt_tokens" "completion_tokens" -}}
{{- $used = append $used (printf "(has(%[1]s.%[2]s) ? %[1]s.%[2]s : 0.0)" "metadata.filter_metadata['usage']" .) -}}
{{- end -}}
{{- $rest := printf "%s - %s" (join " + " $used) "metadata.filter_metadata['inference-plane'].budget_estimate" -}}
%CEL('usage' in metadata.filter_metadata && {{ $rest }} > 0.0 ? int({{ $rest }}) : 0)%
{{- end -}}

{{/*
What became of a request's budgets, for the audit line; `none` where it has none, or was answered before anybody asked.
*/}}
{{- define "router.budgetOutcome" -}}
{{- $metadata := "metadata.filter_metadata" -}}
{{- $answer := "'envoy.filters.http.ratelimit'" -}}
%CEL(
{{- printf "!('inference-plane' in %[1]s) || !has(%[1]s['inference-plane'].budget_estimate)" $metadata -}}
{{- print " || response.code_details == 'direct_response' ? 'none'" -}}
{{- printf " : !(%s in %s) ? 'unavailable'" $answer $metadata -}}
{{- print " : response.code_details == 'request_rate_limited' ? 'refused'" -}}
{{- printf " : has(%s[%s].quotaModeViolations) ? 'over' : 'within'" $metadata $answer -}}
)%
{{- end -}}

{{/* What the router says where a budget is spent, or cannot be asked, as mappers of local replies. */}}
{{- define "router.budgetErrors" -}}
- filter: {response_flag_filter: {flags: [RL]}}
  headers_to_add:
    {{- include "router.reason" "token-budget" | nindent 4 }}
    {{- include "router.nobodyServed" . | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "rate_limit_error"
        (print "The team `%DYNAMIC_METADATA(inference-plane:team)%` has used its %RESP(x-ratelimit-limit-tokens)% "
               "tokens of this minute. Try again in %RESP(retry-after)% s.")) | nindent 4 }}
- filter: {response_flag_filter: {flags: [RLSE]}}
  headers_to_add:
    {{- include "router.reason" "budget-unavailable" | nindent 4 }}
    {{- include "router.nobodyServed" . | nindent 4 }}
    {{- include "router.retryAfter" . | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "server_error"
        "The team's token budget could not be asked for, and without it nothing is served.") | nindent 4 }}
{{- end -}}

{{/* The filter has looked for the cluster, so that the route's own headers name the fleet. */}}
{{- define "router.nobodyServed" -}}
- header: {key: x-inference-backend, value: none}
  append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- end -}}

{{/* Where the rate-limit service is: a headless Service, so that each of its pods is an endpoint. */}}
{{- define "router.ratelimitCluster" -}}
{{- $host := include "router.innerHost" (dict "root" . "name" "router-ratelimit") -}}
name: ratelimit
connect_timeout: 0.25s
lb_policy: LEAST_REQUEST
cluster_type: {{ include "router.dnsClusterType" . | nindent 2 }}
common_lb_config:
  healthy_panic_threshold: {value: 0}
upstream_connection_options:
  tcp_keepalive: {keepalive_time: 15, keepalive_interval: 5, keepalive_probes: 3}
load_assignment:
  cluster_name: ratelimit
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: {{ $host }}
                port_value: {{ include "router.ratelimitPort" . }}
{{- if include "plane.tls" . }}
transport_socket: {{ include "router.tls" (dict "host" $host "inside" true "alpn" "h2") | nindent 2 }}
{{- end }}
circuit_breakers:
  thresholds:
    # As many at once as there may be requests; above that they would be served unasked.
    - max_requests: {{ .Values.limits.downstreamConnections }}
      max_pending_requests: {{ .Values.limits.downstreamConnections }}
outlier_detection:
  # A pod that hangs is left alone for a while, so that not every request waits for the timeout.
  consecutive_5xx: {{ .Values.health.consecutive5xx }}
  consecutive_gateway_failure: {{ .Values.health.consecutive5xx }}
  enforcing_consecutive_gateway_failure: 100
  enforcing_success_rate: 0
  interval: 1s
  base_ejection_time: {{ include "router.duration" .Values.health.ejectionTime }}
  max_ejection_percent: 100
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
{{- end -}}

{{- define "router.ratelimitPort" -}}8081{{- end -}}
{{- define "router.ratelimitHealthPort" -}}8080{{- end -}}
{{- define "router.valkeyPort" -}}6379{{- end -}}

{{/* host:port of the counters. */}}
{{- define "router.storeAddress" -}}
{{ .Values.budgets.store.address | default (printf "%s:%s"
     (include "router.innerHost" (dict "root" . "name" "router-valkey")) (include "router.valkeyPort" .)) }}
{{- end -}}

{{/* The images of what counts budgets, as a JSON list: those that run. */}}
{{- define "router.budgetImages" -}}
{{- $images := list -}}
{{- if include "router.budgets" . -}}
{{- $images = .Values.budgets.store.address | empty | ternary (list "ratelimit" "valkey") (list "ratelimit") -}}
{{- end -}}
{{- toJson $images -}}
{{- end -}}

{{/* A line for each team's budgets, for NOTES; nothing where no team has one. */}}
{{- define "router.budgetNotes" -}}
{{- $without := list -}}
{{- $lines := list -}}
{{- range $name, $team := .Values.global.teams -}}
{{- if include "router.hasBudget" $team -}}
{{- $parts := list -}}
{{- with $team.tokensPerMinute }}{{ $parts = append $parts (printf "%d" (int64 .)) }}{{ end -}}
{{- range $model, $entry := $team.models -}}
{{- with ($entry | default dict).tokensPerMinute -}}
{{- $parts = append $parts (printf "%d with %s" (int64 .) $model) -}}
{{- end -}}
{{- end -}}
{{- $lines = append $lines (printf "  %s  %s" $name (join ", " $parts)) -}}
{{- else if kindIs "map" $team -}}
{{- $without = append $without $name -}}
{{- end -}}
{{- end -}}
{{- if not $lines -}}
{{- with $without -}}
Token budgets: none, every team may use all that the engines give. Set global.teams.NAME.tokensPerMinute.
{{- end -}}
{{- else -}}
{{- $done := dict "enforce" "a team that has used its own up is answered 429" "dryRun" "counted, never refused"
      "off" "neither counted nor enforced" -}}
Token budgets, tokens a minute: {{ get $done .Values.budgets.mode }} (budgets.mode {{ .Values.budgets.mode }})
{{ join "\n" $lines }}
{{- with $without }}
  unlimited: {{ join ", " . }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Budgets that would bind nobody, or that nobody could count. */}}
{{- define "router.refuseBudgets" -}}
{{- $models := include "plane.models" . | fromJson -}}
{{- range $name, $team := .Values.global.teams -}}
{{- if kindIs "map" $team -}}
{{- $path := printf "global.teams.%s" $name -}}
{{- if and (include "router.hasBudget" $team) (eq $.Values.auth.mode "none") (ne $.Values.budgets.mode "off") -}}
{{- include "plane.refusal" (list $path
      "has a token budget, while the router's auth.mode is none"
      "Nobody's team is known then, so it would look enforced and bind nobody"
      "auth.mode: jwt, or budgets.mode: off") -}}
{{- end -}}
{{- range $model, $entry := $team.models -}}
{{- if kindIs "map" $entry -}}
{{- with get $models $model -}}
{{- $allowed := dig "access" "teams" list . -}}
{{- if and $allowed (not (has $name $allowed)) -}}
{{- include "plane.refusal" (list (printf "%s.models.%s" $path $model)
      (printf "%s is for %s alone" $model (join ", " $allowed))
      "The team may not call it, so there is nothing to count"
      (printf "null, or add %s to global.models.%s.access.teams" $name $model)) -}}
{{- end -}}
{{- else -}}
{{- include "plane.unknown" (list (printf "%s.models" $path) $model "global.models" $models) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $store := .Values.budgets.store -}}
{{- if and (include "router.budgets" .) $store.address .Values.global.network.policies
          (not .Values.global.network.budgetStoreCidrs) -}}
{{- include "plane.refusal" (list "global.network.budgetStoreCidrs"
      "empty, while budgets.store.address is set"
      "The NetworkPolicies deny what nobody names, and without its counters no budget is known"
      "the CIDRs of the store, or global.network.policies: false") -}}
{{- end -}}
{{- if and $store.passwordSecret (not $store.address) -}}
{{- include "plane.refusal" (list "budgets.store.passwordSecret"
      (printf "%s, without an address" $store.passwordSecret)
      "The Valkey that comes along has no password: the NetworkPolicy says who may reach it"
      "address, or an empty passwordSecret") -}}
{{- end -}}
{{- end -}}
