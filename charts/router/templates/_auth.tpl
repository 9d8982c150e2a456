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
          cache_duration: {{ include "router.seconds" .jwks.cacheDuration }}
          async_fetch: {failed_refetch_duration: 1s}
        {{- else }}
        local_jwks: {inline_string: {{ toJson .jwks.inline | quote }}}
        {{- end }}
        # From this header alone: by default Envoy takes a token from the query too, and queries are logged.
        from_headers: [{name: authorization, value_prefix: "Bearer "}]
        forward: false
        require_expiration: true
        clock_skew_seconds: {{ .clockSkewSeconds }}
        payload_in_metadata: claims
        failed_status_in_metadata: failed
    rules: [{match: {prefix: /}, requires: {provider_name: caller}}]
- name: identity
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
    default_source_code: {filename: bootstrap/identity.lua}
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

{{/* What the routes tell identity.lua: where the claims are, and the team of each value. */}}
{{- define "router.identityContext" -}}
{{- $teams := dict -}}
{{- range $name, $team := .Values.global.teams -}}
{{- if kindIs "map" $team -}}
{{- $facts := dict "team" $name -}}
{{- with $team.costCenter }}{{ $_ := set $facts "cost_center" . }}{{ end -}}
{{- $_ := set $teams ($team.claim | default $name) $facts -}}
{{- end -}}
{{- end -}}
{{ dict "claims" .Values.auth.claims "teams" $teams | toJson }}
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
{{- values $lists | toJson -}}
{{- end -}}

{{/* Where the issuer's keys are fetched from. */}}
{{- define "router.jwksCluster" -}}
{{- with urlParse .Values.auth.jwks.uri -}}
{{- $host := regexReplaceAll ":[0-9]+$" .host "" -}}
name: jwks
connect_timeout: 2s
cluster_type: {{ include "router.dnsClusterType" $ | nindent 2 }}
load_assignment:
  cluster_name: jwks
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address: {address: {{ $host }}, port_value: {{ include "router.jwksPort" $ }}}
transport_socket: {{ include "router.tls" (dict "host" $host "ca" $.Values.auth.jwks.caCertificates) | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "router.jwksPort" -}}
{{ regexFind ":[0-9]+$" (urlParse .Values.auth.jwks.uri).host | trimPrefix ":" | default "443" }}
{{- end -}}
