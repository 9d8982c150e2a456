{{/*
The route configuration: what an auditor reads to see where a prompt can go. The Lua filter has put the one model of
the request into x-plane-model; each model hangs in an exact-match map, not in a list.
*/}}

{{- define "router.routes" -}}
version_info: "1"
resources:
  - "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
    name: plane
    max_direct_response_body_size_bytes: 1048576
    {{- $models := include "plane.models" $ | fromJson }}
    {{- $plugins := list }}
    {{- range $models }}
    {{- if .canary }}{{ $plugins = append $plugins (dict "model" . "name" "fleets") }}{{ end }}
    {{- if .fallback }}
    {{- $plugins = append $plugins (dict "model" . "name" "fleet-then-bedrock") }}
    {{- if $.Values.policy.enabled }}
    {{- $plugins = append $plugins (dict "model" . "name" "bedrock-then-fleet") }}
    {{- end }}
    {{- end }}
    {{- end }}
    {{- with $plugins }}
    # A try in the fleet, one on another pod of it, then Amazon Bedrock; for the share that the policy service shifts
    # Amazon Bedrock comes first. A group that is not here cannot be reached.
    cluster_specifier_plugins:
      {{- range . }}
      - extension:
          name: {{ .name }}/{{ .model.name }}
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier
            priority_groups:
              {{- if eq .name "bedrock-then-fleet" }}
              - name: bedrock
                clusters: [{cluster_name: bedrock/{{ .model.name }}, weight: 100}]
              {{- end }}
              - name: fleet
                clusters:
                  {{- range include "plane.fleets" (dict .model.name .model) | fromJson }}
                  {{- if .percent }}
                  - {cluster_name: fleet/{{ .fleet }}, weight: {{ .percent }}}
                  {{- end }}
                  {{- end }}
              # Never the canary again, so that a sick or an absent one loses no request.
              - name: fleet-again
                clusters: [{cluster_name: fleet/{{ .model.name }}, weight: 100}]
              {{- if eq .name "fleet-then-bedrock" }}
              - name: bedrock
                clusters: [{cluster_name: bedrock/{{ .model.name }}, weight: 100}]
              {{- end }}
      {{- end }}
    {{- end }}
    response_headers_to_add:
      {{- /* A reply that the plane made itself has said so already. */}}
      - header: {key: x-inference-backend, value: "%CLUSTER_METADATA(inference-plane:backend)%"}
        append_action: ADD_IF_ABSENT
      - header: {key: x-inference-model-version, value: "%CLUSTER_METADATA(inference-plane:model_version)%"}
        append_action: ADD_IF_ABSENT
    {{- /* What route.lua is told: further names, and affinity. */}}
    {{- $told := include "router.namesContext" . | fromJson }}
    {{- with include "router.affinityContext" . }}{{ $told = merge $told (fromJson .) }}{{ end }}
    {{- $contexts := dict "envoy.filters.http.lua" (toJson $told) }}
    {{- if eq .Values.auth.mode "jwt" }}
    {{- $_ := set $contexts "identity" (include "router.identityContext" .) }}
    {{- end }}
    typed_per_filter_config:
      {{- range $filter, $context := $contexts }}
      {{ $filter }}:
        "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute
        filter_context: {{ $context }}
      {{- end }}
    virtual_hosts:
      - name: plane
        domains: ["*"]
        # What a client proved to the plane is no business of an engine.
        request_headers_to_remove: [authorization, cookie]
        include_request_attempt_count: true
        include_attempt_count_in_response: true
        request_body_buffer_limit: {{ mul .Values.maxBodyMiB 1048576 }}
        retry_policy: {{ include "router.retryPolicy" (dict "retries" 1) | nindent 10 }}
        matcher:
          matcher_tree:
            input:
              name: model
              typed_config:
                "@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput
                header_name: x-plane-model
            exact_match_map:
              map:
                {{- range $model := $models }}
                {{- range $served := $model.servedNames }}
                {{ $served | quote }}:
                  action:
                    name: {{ $served | quote }}
                    typed_config:
                      "@type": type.googleapis.com/envoy.config.route.v3.RouteList
                      routes:
                        {{- include "router.modelRoutes" (dict "root" $ "model" $model "served" $served) | nindent 24 }}
                {{- end }}
                {{- end }}
          on_no_match:
            action:
              name: no-model
              typed_config:
                "@type": type.googleapis.com/envoy.config.route.v3.RouteList
                routes:
                  {{- range include "router.modelLists" (dict "root" $ "models" $models) | fromJsonArray }}
                  - name: models
                    match:
                      path: /v1/models
                      headers: [{name: ":method", string_match: {exact: GET}}]
                      {{- with .teams }}
                      {{- include "router.teamMatch" (dict "teams" .) | nindent 22 }}
                      {{- end }}
                    direct_response:
                      status: 200
                      body: {inline_string: {{ include "router.modelList" .models | quote }}}
                    response_headers_to_add:
                      - header: {key: content-type, value: application/json}
                        append_action: OVERWRITE_IF_EXISTS_OR_ADD
                  {{- end }}
                  - name: refused
                    match:
                      prefix: /
                      headers: [{name: x-plane-refused, present_match: true}]
                    direct_response: {status: 400}
                  - name: unknown-model
                    match:
                      prefix: /
                      headers: [{name: x-plane-model, present_match: true}]
                    direct_response: {status: 404}
                  - name: unknown-path
                    match: {prefix: /}
                    direct_response: {status: 404}
{{- end -}}

{{/*
The routes of one model under one of its names: (dict "root" $ "model" $model "served" $name). A request that asks for
a tighter residency than the fallback's reach, by any value but one that is known to be wide enough, meets the first of
them, which knows the fleet alone. route.lua has made one value of x-residency: Envoy matches repeated headers one by
one, so that one wide value among them would be enough.
*/}}
{{- define "router.modelRoutes" -}}
{{- $fallback := .model.fallback -}}
{{- with dig "access" "teams" list .model -}}
- name: {{ $.model.name }}/access
  match:
    prefix: /
    {{- include "router.teamMatch" (dict "teams" . "not" true) | nindent 4 }}
  direct_response: {status: 403}
{{ end -}}
- name: {{ .model.name }}/model
  match:
    path: /v1/models/{{ .served }}
    headers: [{name: ":method", string_match: {exact: GET}}]
  direct_response:
    status: 200
    body: {inline_string: {{ include "router.modelObject" . | quote }}}
  response_headers_to_add:
    - header: {key: content-type, value: application/json}
      append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- $paths := dict
      "chat" "/v1/chat/completions"
      "completions" "/v1/completions"
      "embeddings" "/v1/embeddings"
      "responses" "/v1/responses" }}
{{- if $fallback }}
- name: {{ .model.name }}/chat/restricted
  match:
    path: /v1/chat/completions
    headers:
      - {name: ":method", string_match: {exact: POST}}
      - {name: x-residency, present_match: true}
      - name: x-residency
        string_match: {safe_regex: {regex: {{ include "router.residenciesThatReach" .model.reach | quote }}}}
        invert_match: true
  {{- include "router.startSeconds" .model | nindent 2 }}
  route: {{ include "router.fleetAction" . | nindent 4 }}
{{- if .root.Values.policy.enabled }}
{{- range $kind := list "stream" "json" }}
- name: {{ $.model.name }}/chat/shifted{{ eq $kind "stream" | ternary "/stream" "" }}
  match:
    path: /v1/chat/completions
    headers:
      - {name: ":method", string_match: {exact: POST}}
      {{- if eq $kind "stream" }}
      - {name: x-plane-stream, present_match: true}
      {{- end }}
    # All that the policy service can say: which share of these goes to Amazon Bedrock first.
    runtime_fraction: {default_value: {numerator: 0}, runtime_key: fallback.{{ $.model.name }}}
  typed_per_filter_config:
    restore:
      "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute
      source_code: {filename: bootstrap/restore.lua}
  {{- include "router.startSeconds" $.model | nindent 2 }}
  route:
    cluster_specifier_plugin: bedrock-then-fleet/{{ $.model.name }}
    {{- include "router.hashPolicy" $.model | nindent 4 }}
    timeout: {{ include "router.duration" $.root.Values.requestTimeout }}
    {{- $retries := dict "retries" 2 "refresh" true "perTry" (eq $kind "stream" | ternary $.root.Values.hangGuard "") }}
    retry_policy: {{ include "router.retryPolicy" $retries | nindent 6 }}
{{- end }}
{{- end }}
- name: {{ .model.name }}/chat/stream
  match:
    path: /v1/chat/completions
    headers:
      - {name: ":method", string_match: {exact: POST}}
      - {name: x-plane-stream, present_match: true}
  {{- include "router.startSeconds" .model | nindent 2 }}
  {{- with .model.firstTokenBudget }}
  {{- if not (include "plane.sleeps" $.model) }}
  request_headers_to_add:
  {{- end }}
    - header:
        key: x-plane-first-token-budget
        value: "{{ include "plane.milliseconds" . }};per-kib={{ $.model.firstTokenBudgetPerKiB }}"
      append_action: OVERWRITE_IF_EXISTS_OR_ADD
    - header: {key: x-plane-started-ms, value: "%START_TIME(%s%3f)%"}
      append_action: OVERWRITE_IF_EXISTS_OR_ADD
  {{- end }}
  route:
    cluster_specifier_plugin: fleet-then-bedrock/{{ .model.name }}
    {{- include "router.hashPolicy" .model | nindent 4 }}
    timeout: {{ include "router.duration" .root.Values.requestTimeout }}
    {{- $retries := dict "retries" 2 "refresh" true "perTry" .root.Values.hangGuard }}
    retry_policy: {{ include "router.retryPolicy" $retries | nindent 6 }}
- name: {{ .model.name }}/chat
  match:
    path: /v1/chat/completions
    headers: [{name: ":method", string_match: {exact: POST}}]
  {{- include "router.startSeconds" .model | nindent 2 }}
  route:
    cluster_specifier_plugin: fleet-then-bedrock/{{ .model.name }}
    {{- include "router.hashPolicy" .model | nindent 4 }}
    timeout: {{ include "router.duration" .root.Values.requestTimeout }}
    retry_policy: {{ include "router.retryPolicy" (dict "retries" 2 "refresh" true) | nindent 6 }}
{{- end }}
{{- range $api := .model.api }}
{{- if not (and $fallback (eq $api "chat")) }}
- name: {{ $.model.name }}/{{ $api }}
  match:
    path: {{ get $paths $api }}
    headers: [{name: ":method", string_match: {exact: POST}}]
  {{- include "router.startSeconds" $.model | nindent 2 }}
  route: {{ include "router.fleetAction" $ | nindent 4 }}
{{- end }}
{{- end }}
- name: {{ .model.name }}/not-served
  match: {prefix: /}
  direct_response: {status: 404}
{{- end -}}

{{/* What a model that may have no replica has its empty fleet say: the beginning of a route's request_headers_to_add. */}}
{{- define "router.startSeconds" -}}
{{- if include "plane.sleeps" . -}}
request_headers_to_add:
  - header: {key: x-plane-start-seconds, value: "{{ int .startSeconds }}"}
    append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- end -}}
{{- end -}}

{{/* What the routes tell route.lua: the model of each further name. */}}
{{- define "router.namesContext" -}}
{{- $names := dict -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- range without $model.servedNames $name }}{{ $_ := set $names (print "name/" .) $name }}{{ end -}}
{{- end -}}
{{ toJson $names }}
{{- end -}}

{{/* Where a request goes that knows the model's fleets alone, which it may not leave. */}}
{{- define "router.fleetAction" -}}
{{- if .model.canary -}}
cluster_specifier_plugin: fleets/{{ .model.name }}
retry_policy: {{ include "router.retryPolicy" (dict "retries" 1 "refresh" true) | nindent 2 }}
{{- else -}}
cluster: fleet/{{ .model.name }}
{{- end }}
{{- include "router.hashPolicy" .model | nindent 0 }}
timeout: {{ include "router.duration" .root.Values.requestTimeout }}
{{- end -}}

{{/*
A try elsewhere after an engine's 5xx, a refused or reset connection, or 429 (full, or the first token is late).
(dict "retries" 1), with "refresh" each try moves on to the next group, "perTry" is the hang guard of one try.
*/}}
{{- define "router.retryPolicy" -}}
retry_on: 5xx,reset,connect-failure,retriable-status-codes
retriable_status_codes: [429]
num_retries: {{ .retries }}
retry_back_off: {base_interval: 0.001s, max_interval: 0.010s}
retry_host_predicate:
  - name: envoy.retry_host_predicates.previous_hosts
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
{{- /*
A pod that errs at once has the fewest requests, so that of two pods each pick is the sick one again in 3 cases of 4: 50
picks in one of a million, 20 would in 3 of a thousand.
*/}}
host_selection_retry_max_attempts: 50
{{- if .refresh }}
refresh_cluster_on_retry: true
{{- end }}
{{- with .perTry }}
per_try_timeout: {{ include "router.duration" . }}
{{- end }}
{{- end -}}

{{/* The values of x-residency that still let a prompt travel to a reach, as an anchored expression. */}}
{{- define "router.residenciesThatReach" -}}
{{- $reach := include "plane.residencyRank" . | int -}}
{{- $wide := list -}}
{{- range list "cluster" "region" "geography" "anywhere" -}}
{{- if ge (include "plane.residencyRank" . | int) $reach }}{{ $wide = append $wide . }}{{ end -}}
{{- end -}}
^({{ join "|" $wide }})$
{{- end -}}

{{/* Envoy's JSON durations are decimal seconds. */}}
{{- define "router.duration" -}}
{{ divf (include "plane.milliseconds" .) 1000 }}s
{{- end -}}

{{/* One model as OpenAI's API lists it: (dict "model" $model "served" $name). */}}
{{- define "router.modelObject" -}}
{{ dict "id" .served "object" "model" "created" 0 "owned_by" (.model.team | default "inference-plane") | toJson }}
{{- end -}}

{{- define "router.modelList" -}}
{{- $data := list -}}
{{- range $model := . -}}
{{- range $served := $model.servedNames -}}
{{- $data = append $data (include "router.modelObject" (dict "model" $model "served" $served) | fromJson) -}}
{{- end -}}
{{- end -}}
{{ dict "object" "list" "data" $data | toJson }}
{{- end -}}
