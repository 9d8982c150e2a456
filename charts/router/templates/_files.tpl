{{/* What Envoy reads once, at start: a change of these rolls the pods. */}}
{{- define "router.bootstrapFiles" -}}
bootstrap.json: {{ include "router.bootstrap" . | fromYaml | toJson | quote }}
{{- include "router.sdsFiles" . }}
route.lua: |
  {{- .Files.Get "files/lua/members.lua" | nindent 2 }}
  {{- .Files.Get "files/lua/lines.lua" | nindent 2 }}
  {{- .Files.Get "files/lua/affinity.lua" | nindent 2 }}
  {{- .Files.Get "files/lua/route.lua" | nindent 2 }}
{{- if eq .Values.auth.mode "jwt" }}
identity.lua: |
  {{- .Files.Get "files/lua/identity.lua" | nindent 2 }}
{{- end }}
{{- if .Values.policy.enabled }}
restore.lua: |
  {{- .Files.Get "files/lua/restore.lua" | nindent 2 }}
{{- end }}
bedrock.lua: |
  {{- .Files.Get "files/lua/members.lua" | nindent 2 }}
  {{- .Files.Get "files/lua/lines.lua" | nindent 2 }}
  {{- .Files.Get "files/lua/bedrock.lua" | nindent 2 }}
{{- end -}}
