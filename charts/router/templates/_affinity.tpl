{{/*
Affinity: models whose requests go to the engine that has computed the beginning of their prompt before. affinity.lua
says by which key, and Envoy hashes it onto the pods of the fleet.
*/}}

{{/* What the routes tell affinity.lua, by the names that requests have for models; nothing where no model has any. */}}
{{- define "router.affinityContext" -}}
{{- $context := dict -}}
{{- range $model := include "plane.models" . | fromJson -}}
{{- if ne $model.affinity "none" -}}
{{- range $model.servedNames }}{{ $_ := set $context (printf "affinity/%s" .) $model.affinity }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $context -}}
{{ set $context "prefix_bytes" (int .Values.affinity.prefixBytes) | toJson }}
{{- end -}}
{{- end -}}

{{/* Of a route to a model's fleets. A request without a key goes to any pod. */}}
{{- define "router.hashPolicy" -}}
{{- if ne .affinity "none" -}}
hash_policy: [{filter_state: {key: inference-plane.affinity}}]
{{- end -}}
{{- end -}}
