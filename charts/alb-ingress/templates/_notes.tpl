{{/* What NOTES say of the load balancer, here and in the umbrella's: takes .Values and .Release of this chart. */}}

{{- define "alb.notes" -}}
{{- $namespace := include "plane.routerNamespace" . -}}
The load balancer sends {{ include "alb.protocol" . }} requests on port {{ include "alb.port" . }} to the router
{{- printf " of namespace %s, and to nothing else. Its name:" $namespace }}

{{- if eq .Values.mode "ingress" }}
  kubectl -n {{ $namespace }} get ingress router -o jsonpath='{.status.loadBalancer.ingress[0].hostname}'
{{- else }}
  kubectl -n {{ $namespace }} get gateway router -o jsonpath='{.status.addresses[0].value}'
{{- end }}

It is made for a router with
  requestTimeout  {{ .Values.router.requestTimeout }}; the load balancer waits {{ include "alb.idleSeconds" . }} s
  drainSeconds    {{ int .Values.router.drainSeconds }}; requests on a leaving router may go on for
{{- printf " %s s" (include "alb.deregistrationSeconds" .) }}
  status.port     {{ int .Values.router.statusPort }}; /ready is checked there
Keep the router's own values equal to these: in a release of its own nothing compares them.
{{- if .Values.deletionProtection }}
Before you uninstall: set deletionProtection: false and upgrade, or the controller cannot delete the load balancer.
{{- end }}
{{- $public := eq .Values.scheme "internet-facing" }}
{{- if or (not .Values.tls.enabled) $public (not .Values.wafAclArn) (not .Values.accessLogs.bucket) }}

Risks
{{- if not .Values.tls.enabled }}
- TLS is off: prompts and answers travel to the load balancer in clear text. Set tls.enabled: true.
{{- end }}
{{- if $public }}
- The internet may reach the load balancer: {{ .Values.publicBecause }}
{{- end }}
{{- if not .Values.wafAclArn }}
- No web ACL: nothing filters requests before the router, unless AWS Firewall Manager adds one. Set wafAclArn.
{{- end }}
{{- if not .Values.accessLogs.bucket }}
- No access logs: what the load balancer answers itself, such as 502, leaves no trace. Set accessLogs.bucket.
{{- end }}
{{- end }}
{{- end -}}
