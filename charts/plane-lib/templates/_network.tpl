{{/*
NetworkPolicy pieces from global.network. Each renders list items of `ingress` or `egress`.
*/}}

{{/* Egress to whoever answers DNS. */}}
{{- define "plane.egressDns" -}}
- to:
    {{- if eq .Values.global.network.dns "pods" }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: kube-system
      podSelector:
        matchLabels:
          k8s-app: kube-dns
    {{- else }}
    - ipBlock:
        cidr: {{ .Values.global.network.nodeLocalDns }}
    {{- end }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end -}}

{{/* Egress to where pods get their AWS credentials: the EKS Pod Identity agent of the node, or STS for IRSA. */}}
{{- define "plane.egressCredentials" -}}
{{- if eq .Values.global.identity.mode "irsa" -}}
{{- include "plane.egressHttps" .Values.global.network.stsCidrs -}}
{{- else if eq .Values.global.identity.mode "podIdentity" -}}
- to:
    - ipBlock:
        cidr: {{ .Values.global.network.podIdentityAgent }}
  ports:
    - {protocol: TCP, port: 80}
{{- end -}}
{{- end -}}

{{/* Egress by HTTPS to a list of CIDRs. An empty list renders nothing: an empty `to` would mean everywhere. */}}
{{- define "plane.egressHttps" -}}
{{- with . -}}
- to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    - {protocol: TCP, port: 443}
{{- end -}}
{{- end -}}

{{/* Egress to the collector of traces; nothing where nothing is traced. */}}
{{- define "plane.egressTraces" -}}
{{- with .Values.global.tracing.endpoint -}}
- to:
    {{- range $.Values.global.network.otlpCidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ splitList ":" . | last }}}
{{- end -}}
{{- end -}}

{{/*
Ingress from the pods of namespaces: (dict "namespaces" (list ...) "port" 8001). An empty list renders nothing: an
empty `from` would mean everybody.
*/}}
{{- define "plane.ingressFromNamespaces" -}}
{{- with .namespaces -}}
- from:
    {{- range . }}
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ . }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ $.port }}}
{{- end -}}
{{- end -}}
