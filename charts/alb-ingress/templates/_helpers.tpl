{{/*
Figures and attributes that both modes share. Attributes are written even where they are AWS's default: one that is
left out keeps whatever it was.
*/}}

{{/* Seconds that a connection may say nothing: what is set, or as long as a request may take. */}}
{{- define "alb.idleSeconds" -}}
{{- include "plane.seconds" (.Values.idleTimeout | default .Values.router.requestTimeout) -}}
{{- end -}}

{{/* Seconds that requests on a leaving router may go on: what is set, or as long as it drains, at most AWS's 3600. */}}
{{- define "alb.deregistrationSeconds" -}}
{{- if kindIs "invalid" .Values.targets.deregistrationDelaySeconds -}}
{{- min .Values.router.drainSeconds 3600 -}}
{{- else -}}
{{- int .Values.targets.deregistrationDelaySeconds -}}
{{- end -}}
{{- end -}}

{{- define "alb.protocol" -}}
{{ .Values.tls.enabled | ternary "HTTPS" "HTTP" }}
{{- end -}}

{{- define "alb.port" -}}
{{ .Values.port | default (.Values.tls.enabled | ternary 443 80) | int }}
{{- end -}}

{{- define "alb.labels" -}}
{{ include "plane.labels" (dict "root" . "component" "load-balancer" "name" "router") }}
{{- end -}}

{{/* https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_LoadBalancerAttribute.html */}}
{{- define "alb.loadBalancerAttributes" -}}
idle_timeout.timeout_seconds: {{ include "alb.idleSeconds" . | quote }}
client_keep_alive.seconds: {{ int .Values.clientKeepAliveSeconds | quote }}
deletion_protection.enabled: {{ .Values.deletionProtection | quote }}
# Requests that two servers could read differently never reach the router.
routing.http.drop_invalid_header_fields.enabled: "true"
routing.http.desync_mitigation_mode: strictest
# The router takes the client's address from the end of x-forwarded-for, where the load balancer appends it.
routing.http.xff_header_processing.mode: append
# Where the firewall does not answer, nothing passes.
waf.fail_open.enabled: "false"
access_logs.s3.enabled: {{ not (empty .Values.accessLogs.bucket) | quote }}
{{- with .Values.accessLogs.bucket }}
access_logs.s3.bucket: {{ . }}
access_logs.s3.prefix: {{ $.Values.accessLogs.prefix | quote }}
{{- end }}
{{- end -}}

{{/* https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_TargetGroupAttribute.html */}}
{{- define "alb.targetGroupAttributes" -}}
deregistration_delay.timeout_seconds: {{ include "alb.deregistrationSeconds" . | quote }}
load_balancing.algorithm.type: {{ .Values.targets.algorithm }}
slow_start.duration_seconds: {{ int .Values.targets.slowStartSeconds | quote }}
stickiness.enabled: "false"
{{- end -}}

{{/* A map without the entries that an overlay has set to null. */}}
{{- define "alb.given" -}}
{{- $given := dict -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $given $key $value -}}
{{- end -}}
{{- end -}}
{{ toYaml $given }}
{{- end -}}

{{/* A map as an annotation takes it, k=v,k=v, in the order of its keys. */}}
{{- define "alb.stringMap" -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}
{{- end -}}
{{ join "," $pairs }}
{{- end -}}

{{/* A map as custom resources take it, a list of key and value. */}}
{{- define "alb.keyValues" -}}
{{- range $key, $value := . -}}
- {key: {{ $key }}, value: {{ $value | quote }}}
{{ end -}}
{{- end -}}
