{{/*
TLS between the pods of the plane: certificates, where pods find them, and whom they believe. A certificate is called
after the Service whose name it proves: `router`, a fleet, or one of the router's own, such as `router-policy`.
*/}}

{{/* "true" where the hops inside the plane have TLS, else nothing: takes the root. */}}
{{- define "plane.tls" -}}
{{- if has .Values.global.tls.mode (list "certManager" "secrets") -}}true{{- end -}}
{{- end -}}

{{/* The Secret with a certificate and its key: (dict "root" $ "name" "router"). */}}
{{- define "plane.tlsSecretName" -}}
{{- $given := list -}}
{{- with .root.Values.global.tls -}}
{{- if eq .mode "secrets" }}{{ $given = get .secretNames $.name }}{{ end -}}
{{- end -}}
{{ $given | default (printf "%s-tls" .name) }}
{{- end -}}

{{/*
The Certificate of a Service, which cert-manager turns into the Secret; nothing in another mode:
(dict "root" $ "name" "router" "metadata" $yaml "dnsNames" (list ...)).
*/}}
{{- define "plane.certificate" -}}
{{- with .root.Values.global.tls -}}
{{- if eq .mode "certManager" -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  {{- $.metadata | nindent 2 }}
spec:
  secretName: {{ include "plane.tlsSecretName" $ }}
  issuerRef: {{ toYaml .certManager.issuerRef | nindent 4 }}
  dnsNames: {{ toYaml $.dnsNames | nindent 4 }}
  usages: [digital signature, server auth]
  duration: {{ .certManager.duration }}
  renewBefore: {{ .certManager.renewBefore }}
  # A new key with each certificate, so that an old one is of no use.
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The volume with a certificate (tls.crt) and its key (tls.key): (dict "root" $ "name" "router"). */}}
{{- define "plane.certificateVolume" -}}
- name: certificate
  secret:
    secretName: {{ include "plane.tlsSecretName" . }}
    # Its group is the pod's fsGroup.
    defaultMode: 0440
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end -}}

{{/*
The volume with the certificates of the authorities that vouch for the plane's servers (ca.crt), without any key:
(dict "root" $ "name" "router"), which is whose Secret has them where no ConfigMap does.
*/}}
{{- define "plane.caVolume" -}}
- name: ca
  {{- with .root.Values.global.tls.caConfigMap }}
  configMap:
    name: {{ . }}
  {{- else }}
  secret:
    secretName: {{ include "plane.tlsSecretName" . }}
  {{- end }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end -}}

{{/*
Seconds before a certificate's end at which somebody has to know: half of renewBefore, as cert-manager has tried for the
other half; two weeks for Secrets that somebody else renews. Takes the root.
*/}}
{{- define "plane.certificateAlertSeconds" -}}
{{- with .Values.global.tls -}}
{{- if eq .mode "certManager" -}}
{{ div (include "plane.milliseconds" .certManager.renewBefore | int) 2000 }}
{{- else -}}
1209600
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How clients reach the router: http or https, and the port of its Service. */}}
{{- define "plane.routerScheme" -}}
{{ include "plane.tls" . | empty | ternary "http" "https" }}
{{- end -}}
{{- define "plane.routerPort" -}}
{{ include "plane.tls" . | empty | ternary 80 443 }}
{{- end -}}

{{/* The router's name in the cluster: takes the root. */}}
{{- define "plane.routerHost" -}}
router.{{ include "plane.routerNamespace" . }}.svc.{{ .Values.global.clusterDomain }}
{{- end -}}

{{/* That it is decided how prompts cross the network: (dict "root" $ "global" $global "fleets" $fleets). */}}
{{- define "plane.refuseTls" -}}
{{- $tls := .global.tls -}}
{{- $fleets := .fleets -}}
{{- $asks := has .root.Chart.Name (list "router" "alb-ingress") -}}
{{- $asks = or $asks (and .fleets (ne .root.Chart.Name "karpenter-nodepools")) -}}
{{- if and $asks (not $tls.mode) -}}
{{- include "plane.refusal" (list "global.tls.mode"
      "not decided"
      "Without TLS prompts cross the network in clear text between load balancer, router and engines"
      "certManager with certManager.issuerRef.name, secrets with Secrets of your own, or none for clear text") -}}
{{- end -}}
{{- if eq $tls.mode "certManager" -}}
{{- $duration := include "plane.milliseconds" $tls.certManager.duration | int -}}
{{- $renew := include "plane.milliseconds" $tls.certManager.renewBefore | int -}}
{{- if not $tls.certManager.issuerRef.name -}}
{{- include "plane.refusal" (list "global.tls.certManager.issuerRef.name"
      "empty, while tls.mode is certManager"
      "Nobody would sign the certificates, and no pod starts without its own"
      "the name of a ClusterIssuer, or of another issuer with its kind and group") -}}
{{- end -}}
{{- if lt $duration 3600000 -}}
{{- include "plane.refusal" (list "global.tls.certManager.duration"
      (printf "%s is less than 1h" $tls.certManager.duration)
      "cert-manager refuses such a Certificate"
      "1h or more") -}}
{{- end -}}
{{- if lt $renew 300000 -}}
{{- include "plane.refusal" (list "global.tls.certManager.renewBefore"
      (printf "%s is less than 5m" $tls.certManager.renewBefore)
      "cert-manager refuses such a Certificate, and pods see a new one within two minutes at best"
      "5m or more") -}}
{{- end -}}
{{- if ge $renew $duration -}}
{{- include "plane.refusal" (list "global.tls.certManager.renewBefore"
      (printf "%s is not below duration %s" $tls.certManager.renewBefore $tls.certManager.duration)
      "Each certificate would be renewed as soon as it is made"
      "a shorter renewBefore, or a longer duration") -}}
{{- end -}}
{{- end -}}
{{- $routers := list "router" "router-policy" "router-ratelimit" "router-valkey" -}}
{{- range $name, $secret := $tls.secretNames -}}
{{- if $secret -}}
{{- $path := printf "global.tls.secretNames.%s" $name -}}
{{- if ne $tls.mode "secrets" -}}
{{- include "plane.refusal" (list $path
      (printf "given, while tls.mode is %s" ($tls.mode | default "not decided"))
      "Nobody would read that Secret"
      "mode: secrets, or take the name out") -}}
{{- else if not (or (has $name $routers) (hasKey $fleets $name)) -}}
{{- include "plane.refusal" (list $path
      (printf "none of %s" (concat $routers (keys $fleets | sortAlpha) | join ", "))
      "Each Secret is of one Service"
      "the Service's own name: a model's is MODEL, and its canary's MODEL-canary") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
