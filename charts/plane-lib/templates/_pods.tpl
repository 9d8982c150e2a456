{{/*
Hardened pod pieces: what the restricted Pod Security Standard wants of every pod.
*/}}

{{/* An image by its name in global.images: (dict "root" $ "image" "envoy"). */}}
{{- define "plane.image" -}}
{{- $image := get .root.Values.global.images .image -}}
{{- $registry := .root.Values.global.imageRegistry -}}
{{- $repository := $image.repository -}}
{{- if $registry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $registry) (regexReplaceAll "^[^/]+\\.[^/]+/" $image.repository "") -}}
{{- end -}}
{{ $repository }}:{{ $image.tag }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* The security context of a pod: takes the user id that its image runs as. */}}
{{- define "plane.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The security context of a container: takes whether its root filesystem is read-only. */}}
{{- define "plane.containerSecurityContext" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: {{ . }}
capabilities:
  drop: [ALL]
{{- end -}}
