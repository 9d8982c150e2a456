{{/*
TLS of Envoy. Inside the plane certificates are files of mounted Secrets, and Envoy takes a new one as soon as the
kubelet has put it there; what serves must prove exactly the name that it was called by.
*/}}

{{/*
TLS to a host that must prove its name: (dict "host" $host) to a public one by the image's own authorities, or by those
of "ca" (PEM); with "inside" true to one of the plane's own, by the authorities in ca/, in HTTP/1.1 or what "alpn" says.
*/}}
{{- define "router.tls" -}}
name: envoy.transport_sockets.tls
typed_config:
  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
  sni: {{ .host }}
  {{- if .inside }}
  # No session is taken up again: each connection proves the name anew.
  max_session_keys: 0
  {{- end }}
  common_tls_context:
    {{- if .inside }}
    # Envoy alone would go up to 1.2 as a client, of which vLLM has by default no suite that Envoy has.
    tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
    alpn_protocols: [{{ .alpn | default "http/1.1" }}]
    combined_validation_context:
      default_validation_context:
        match_typed_subject_alt_names: {{ include "router.sanIs" .host | nindent 10 }}
      validation_context_sds_secret_config: {{ include "router.sdsSecret" "ca" | nindent 8 }}
    {{- else }}
    tls_params: {tls_minimum_protocol_version: TLSv1_2}
    validation_context:
      {{- if .ca }}
      trusted_ca: {inline_string: {{ .ca | quote }}}
      {{- else }}
      trusted_ca: {filename: /etc/ssl/certs/ca-certificates.crt}
      {{- end }}
      match_typed_subject_alt_names: {{ include "router.sanIs" .host | nindent 8 }}
    {{- end }}
{{- end -}}

{{/* The name of one of the release's own Services: (dict "root" $ "name" "router-policy"). */}}
{{- define "router.innerHost" -}}
{{ printf "%s.%s.svc.%s" .name .root.Release.Namespace .root.Values.global.clusterDomain }}
{{- end -}}

{{/* Where a pod finds its certificate and whom it believes: the volumes, and the container's mounts of them. */}}
{{- define "router.innerVolumes" -}}
{{- if include "plane.tls" .root -}}
{{ include "plane.certificateVolume" . }}
{{ include "plane.caVolume" . }}
{{- end -}}
{{- end -}}
{{- define "router.innerMounts" -}}
{{- if include "plane.tls" . -}}
- {name: certificate, mountPath: /etc/inference-plane/certificate, readOnly: true}
- {name: ca, mountPath: /etc/inference-plane/ca, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "router.sanIs" -}}
- san_type: DNS
  matcher: {exact: {{ . }}}
{{- end -}}

{{/* TLS of a listener. */}}
{{- define "router.listenerTls" -}}
name: envoy.transport_sockets.tls
typed_config:
  "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
  common_tls_context:
    tls_params: {tls_minimum_protocol_version: TLSv1_2}
    alpn_protocols: [h2, http/1.1]
    tls_certificate_sds_secret_configs:
      - {{ include "router.sdsSecret" "certificate" | nindent 8 | trim }}
{{- end -}}

{{/* Where Envoy reads one of its two secrets, `certificate` or `ca`. */}}
{{- define "router.sdsSecret" -}}
name: {{ . }}
sds_config:
  resource_api_version: V3
  path_config_source: {path: bootstrap/sds-{{ . }}.json}
{{- end -}}

{{/* The files that say so; nothing without TLS. One secret a file, as Envoy refuses a file of two. */}}
{{- define "router.sdsFiles" -}}
{{- if include "plane.tls" . -}}
{{- $secret := "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret" -}}
{{- $certificate := dict
      "certificate_chain" (dict "filename" "certificate/tls.crt")
      "private_key" (dict "filename" "certificate/tls.key")
      "watched_directory" (dict "path" "certificate") -}}
{{- $ca := dict "trusted_ca" (dict "filename" "ca/ca.crt") "watched_directory" (dict "path" "ca") -}}
{{- range $name, $content := dict
      "certificate" (dict "tls_certificate" $certificate)
      "ca" (dict "validation_context" $ca) }}
{{- $resource := merge (dict "@type" $secret "name" $name) $content }}
sds-{{ $name }}.json: {{ dict "resources" (list $resource) | toJson | quote }}
{{- end }}
{{- end -}}
{{- end -}}
