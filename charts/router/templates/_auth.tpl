{{/*
Who calls, and what they may call. Envoy verifies the token, identity.lua takes the team from its claims, rbac lets
nobody in without a team; which model a team may call stands in the routes. All of it is in metadata, which no client
can send.
*/}}

{{/* The filters before route.lua; nothing with auth.mode none. */}}
{{- define "router.authFilters" -}}
{{- with .Values.auth -}}
{{- if eq .mode "jwt" -}}
- name: envoy.filters.http.jwt_authn
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers:
      caller:
        issuer: {{ .issuer | quote }}
        audiences: {{ toJson .audiences }}
        {{- if .jwks.uri }}
        remote_jwks:
          http_uri: {uri: {{ .jwks.uri | quote }}, cluster: jwks, timeout: 5s}
          cache_duration: {{ include "router.duration" .jwks.cacheDuration }}
          async_fetch: {failed_refetch_duration: 1s}
        {{- else }}
        local_jwks: {inline_string: {{ toJson .jwks.inline | quote }}}
        {{- end }}
        # From this header alone: by default Envoy takes a token from the query too, and queries are logged.
        from_headers: [{name: authorization, value_prefix: "Bearer "}]
        forward: false
        require_expiration: true
        clock_skew_seconds: {{ .clockSkewSeconds }}
        {{- with .cachedTokens }}
        jwt_cache_config: {jwt_cache_size: {{ . }}}
        {{- end }}
        payload_in_metadata: claims
        failed_status_in_metadata: failed
    rules: [{match: {prefix: /}, requires: {provider_name: caller}}]
- name: identity
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
    default_source_code: {filename: bootstrap/identity.lua}
# For the audit line and the counters alone.
- name: caller
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
    on_request_headers:
      {{- range list "team" "cost_center" "subject" }}
      - {{ include "router.kept" (list . (printf "%%DYNAMIC_METADATA(inference-plane:%s)%%" .)) | nindent 8 | trim }}
      {{- end }}
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: ALLOW
      policies:
        team:
          permissions: [{any: true}]
          principals:
            - sourced_metadata:
                metadata_matcher: {filter: inference-plane, path: [{key: team}], value: {present_match: true}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the router says to whom it does not serve, as mappers of local replies; nothing with auth.mode none. */}}
{{- define "router.authErrors" -}}
{{- if eq .Values.auth.mode "jwt" -}}
{{- $verified := "envoy.filters.http.jwt_authn" -}}
- filter: {{ include "router.metadataIs" (list 401 $verified "failed.message" "Jwks remote fetch is failed") }}
  status_code: 503
  headers_to_add:
    {{- include "router.reason" "authentication" | nindent 4 }}
    {{- include "router.retryAfter" . | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "server_error"
        "The keys of the tokens' issuer could not be fetched, so no token can be verified.") | nindent 4 }}
{{- range list 401 403 }}
# Envoy says 403 of a wrong audience; RFC 6750 says 401, as of every token that is not valid.
- filter: {{ include "router.metadataIs" (list . $verified "failed") }}
  status_code: 401
  headers_to_add: {{ include "router.reason" "authentication" | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "authentication_error"
        (printf "No valid token: %%DYNAMIC_METADATA(%s:failed:message)%%." $verified)) | nindent 4 }}
{{- end }}
- filter: {{ include "router.metadataIs" (list 403 "inference-plane" "no_team") }}
  headers_to_add: {{ include "router.reason" "access" | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "permission_error"
        "Nobody may call without a team: %DYNAMIC_METADATA(inference-plane:no_team)%.") | nindent 4 }}
# With a team only: Envoy says 403 of protocols too, such as websockets, before anybody is asked for a token.
- filter: {{ include "router.metadataIs" (list 403 "inference-plane" "team") }}
  headers_to_add: {{ include "router.reason" "access" | nindent 4 }}
  body_format_override:
    {{- include "router.errorBody" (list "permission_error"
        (print "The team `%DYNAMIC_METADATA(inference-plane:team)%` may not call the model "
               "`%REQ(x-plane-model)%`.")) | nindent 4 }}
{{- end -}}
{{- end -}}

{{/*
An access-log filter for a status and the request's metadata at a path of keys: (list STATUS NAMESPACE PATH), of this
VALUE where one follows.
*/}}
{{- define "router.metadataIs" -}}
{{- $path := list -}}
{{- range splitList "." (index . 2) }}{{ $path = append $path (dict "key" .) }}{{ end -}}
{{- $value := dict "present_match" true -}}
{{- if eq (len .) 4 }}{{ $value = dict "string_match" (dict "exact" (last .)) }}{{ end -}}
{{- $matcher := dict "filter" (index . 1) "path" $path "value" $value -}}
{{- $filter := dict "metadata_filter" (dict "matcher" $matcher "match_if_key_not_found" false) -}}
{{ dict "and_filter" (dict "filters" (list (include "router.statusIs" (list (first .)) | fromJson) $filter)) | toJson }}
{{- end -}}

{{/* x-plane-reason on a reply of the router's own. */}}
{{- define "router.reason" -}}
- header: {key: x-plane-reason, value: {{ . }}}
  append_action: OVERWRITE_IF_EXISTS_OR_ADD
{{- end -}}

{{/* What the routes tell identity.lua: where the claims are, and the team of each word under a key of its own. */}}
{{- define "router.identityContext" -}}
{{- $context := dict "claims" .Values.auth.claims -}}
{{- $models := include "plane.models" . | fromJson -}}
{{- range $name, $team := .Values.global.teams -}}
{{- if kindIs "map" $team -}}
{{- $facts := dict "team" $name -}}
{{- with $team.costCenter }}{{ $_ := set $facts "cost_center" . }}{{ end -}}
{{- with include "router.teamBudget" (dict "root" $ "team" $team "models" $models) -}}
{{- $_ := set $facts "budget" (fromJson .) -}}
{{- end -}}
{{- $_ := set $context (printf "team/%s" ($team.claim | default $name)) $facts -}}
{{- end -}}
{{- end -}}
{{ toJson $context }}
{{- end -}}

{{/* That the caller's team is one of these, or none of them: (dict "teams" (list ...) "not" true). */}}
{{- define "router.teamMatch" -}}
dynamic_metadata:
  - filter: inference-plane
    path: [{key: team}]
    value: {string_match: {safe_regex: {regex: "^({{ join "|" .teams }})$"}}}
    {{- if .not }}
    invert: true
    {{- end }}
{{- end -}}

{{/*
Which models GET /v1/models lists for whom, as a JSON array of {teams, models}: teams that may call the same models are
one entry. With auth.mode none one entry, without teams.
*/}}
{{- define "router.modelLists" -}}
{{- $root := .root -}}
{{- $models := .models -}}
{{- $lists := dict -}}
{{- if eq $root.Values.auth.mode "jwt" -}}
{{- range $team, $entry := $root.Values.global.teams -}}
{{- if kindIs "map" $entry -}}
{{- $seen := dict -}}
{{- range $name, $model := $models -}}
{{- $allowed := dig "access" "teams" list $model -}}
{{- if or (not $allowed) (has $team $allowed) }}{{ $_ := set $seen $name $model }}{{ end -}}
{{- end -}}
{{- $key := keys $seen | sortAlpha | join "," -}}
{{- $teams := append ((get $lists $key | default dict).teams | default list) $team -}}
{{- $_ := set $lists $key (dict "teams" $teams "models" $seen) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $_ := set $lists "" (dict "models" $models) -}}
{{- end -}}
{{- /* In an order of their own: that of `values` changes from render to render. */ -}}
{{- $sorted := list -}}
{{- range $lists }}{{ $sorted = append $sorted . }}{{ end -}}
{{- toJson $sorted -}}
{{- end -}}

{{/* Where the issuer's keys are fetched from: the issuer, or a listener of this process that goes on by the proxy. */}}
{{- define "router.jwksCluster" -}}
{{- with urlParse .Values.auth.jwks.uri -}}
{{- $host := regexReplaceAll ":[0-9]+$" .host "" -}}
name: jwks
{{- if $.Values.auth.jwks.proxy }}
# The proxy's way to the issuer as well.
connect_timeout: 5s
type: STATIC
load_assignment:
  cluster_name: jwks
  endpoints:
    - lb_endpoints:
        - endpoint: {address: {pipe: {path: run/jwks-proxy.sock}}}
{{- else }}
connect_timeout: 2s
cluster_type: {{ include "router.dnsClusterType" $ | nindent 2 }}
load_assignment:
  cluster_name: jwks
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: {{ $host }}, port_value: {{ include "router.jwksPort" $ }}}
{{- end }}
transport_socket: {{ include "router.tls" (dict "host" $host "ca" $.Values.auth.jwks.caCertificates) | nindent 2 }}
{{- end -}}
{{- end -}}

{{/*
The egress proxy, which is asked to CONNECT by the issuer's name, so that the router need not resolve it. TLS is the
cluster's above, from end to end: the proxy sees that name and nothing else.
*/}}
{{- define "router.jwksProxyListener" -}}
name: jwks-proxy
# Envoy's main thread fetches keys, and its listeners without a socket are for workers alone.
address:
  pipe: {path: run/jwks-proxy.sock, mode: 384}
filter_chains:
  - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: jwks_proxy
          cluster: jwks-proxy
          tunneling_config:
            hostname: {{ regexReplaceAll ":[0-9]+$" (urlParse .Values.auth.jwks.uri).host "" }}:{{ include "router.jwksPort" . }}
{{- end -}}

{{- define "router.jwksProxyCluster" -}}
{{- $proxy := splitList ":" .Values.auth.jwks.proxy -}}
name: jwks-proxy
connect_timeout: 2s
cluster_type: {{ include "router.dnsClusterType" . | nindent 2 }}
load_assignment:
  cluster_name: jwks-proxy
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: {{ first $proxy }}, port_value: {{ last $proxy }}}
{{- end -}}

{{/* Where the NetworkPolicy lets the router to, for keys. */}}
{{- define "router.jwksEgressPort" -}}
{{ with .Values.auth.jwks.proxy }}{{ splitList ":" . | last }}{{ else }}{{ include "router.jwksPort" . }}{{ end }}
{{- end -}}

{{- define "router.jwksPort" -}}
{{ regexFind ":[0-9]+$" (urlParse .Values.auth.jwks.uri).host | trimPrefix ":" | default "443" }}
{{- end -}}
