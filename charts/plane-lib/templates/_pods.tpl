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

{{/*
A Kubernetes quantity times a number: (list "500m" 2). The unit stays.
*/}}
{{- define "plane.times" -}}
{{- $number := regexFind "^[0-9.]+" (index . 0) -}}
{{ mulf $number (index . 1) }}{{ trimPrefix $number (index . 0) }}
{{- end -}}

{{/* A memory quantity in bytes. */}}
{{- define "plane.bytes" -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000
      "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{ mulf $number (get $units (trimPrefix $number .)) | int64 }}
{{- end -}}
