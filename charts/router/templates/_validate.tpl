{{/* What a schema cannot say about this chart's values. Every refusal says what, why, and what to set. */}}

{{- define "router.validate" -}}
{{- $refusals := list (include "plane.refuseMonitoring" .) -}}
{{- range $rule := list "Times" "Ports" "Bedrock" "Sts" "Auth" "Access" "Budgets" "Clients" "Dashboards" "Policy" -}}
{{- $refusals = append $refusals (include (printf "router.refuse%s" $rule) $) -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the router" "refusals" $refusals) -}}
{{- end -}}

{{/* A budget ends before the hang guard, the guard before the request, and the request before the ALB's patience. */}}
{{- define "router.refuseTimes" -}}
{{- $guard := include "plane.milliseconds" .Values.hangGuard | int -}}
{{- $timeout := include "plane.milliseconds" .Values.requestTimeout | int -}}
{{- if gt $timeout 4000000 -}}
{{- include "plane.refusal" (list "requestTimeout"
      (printf "%s is longer than 4000s" .Values.requestTimeout)
      "A load balancer's idle timeout cannot be longer, so it would cut such an answer"
      "at most 4000s") -}}
{{- end -}}
{{- if ge $guard $timeout -}}
{{- include "plane.refusal" (list "hangGuard"
      (printf "%s is not below requestTimeout %s" .Values.hangGuard .Values.requestTimeout)
      "The fallback would never have its turn"
      "a shorter hangGuard") -}}
{{- end -}}
{{- if ge (int .Values.endpointStalenessSeconds) (int .Values.drainSeconds) -}}
{{- include "plane.refusal" (list "endpointStalenessSeconds"
      (printf "%d is not below drainSeconds %d" (int .Values.endpointStalenessSeconds) (int .Values.drainSeconds))
      "A router would leave while clients are still sent to it, and every request of the last seconds would be cut"
      "a longer drainSeconds") -}}
{{- end -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- with $model.firstTokenBudget -}}
{{- if ge (include "plane.milliseconds" . | int) $guard -}}
{{- include "plane.refusal" (list (printf "global.models.%s.firstTokenBudget" $name)
      (printf "%s is not below the router's hangGuard %s" . $.Values.hangGuard)
      "The hang guard would end the try first"
      "a shorter budget, or a longer hangGuard") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "router.refusePorts" -}}
{{- $ports := list .Values.listener.port .Values.status.port .Values.noCapacity.port -}}
{{- if ne (len ($ports | uniq)) 3 -}}
{{- include "plane.refusal" (list "listener.port, status.port, noCapacity.port"
      (printf "%s are not three ports" ($ports | join ", "))
      "Only one listener can open a port"
      "three different ports") -}}
{{- end -}}
{{- end -}}

{{- define "router.refuseBedrock" -}}
{{- if and (not .Values.bedrock.tls) (not (regexMatch "^(localhost|127\\.[0-9.]+)$" .Values.bedrock.host)) -}}
{{- include "plane.refusal" (list "bedrock.tls"
      (printf "false with the host %s" (include "router.bedrockHost" .))
      "Prompts would leave the pod in clear text"
      "bedrock.tls: true; it may be off only for a stand-in on loopback") -}}
{{- end -}}
{{- end -}}

{{/*
Envoy makes the cluster for STS itself, with a TLS that checks no certificate, and takes none in its place: one of that
name in the bootstrap keeps it from ever asking, one in clusters.json is overwritten. Seen with Envoy 1.40.
*/}}
{{- define "router.refuseSts" -}}
{{- $fallsBack := include "plane.models" . | fromJson | include "plane.fallsBack" -}}
{{- if and $fallsBack (eq .Values.global.identity.mode "irsa") (not .Values.bedrock.unverifiedSts) -}}
{{- include "plane.refusal" (list "bedrock.unverifiedSts"
      "false, while a model falls back and global.identity.mode is irsa"
      (print "Envoy asks STS for the role's credentials without checking who answers, and credentials of somebody "
             "else's account would take prompts there")
      (print "global.identity.mode: podIdentity, or bedrock.unverifiedSts: true where global.network.stsCidrs and an "
             "endpoint policy leave nobody else to answer")) -}}
{{- end -}}
{{- if and .Values.bedrock.unverifiedSts (ne .Values.global.identity.mode "irsa") -}}
{{- include "plane.refusal" (list "bedrock.unverifiedSts"
      (printf "true, while global.identity.mode is %s" .Values.global.identity.mode)
      "Envoy asks no STS then, and a reader would take the credentials for less safe than they are"
      "false") -}}
{{- end -}}
{{- end -}}

{{/* No token, no service, unless mode: none is written out. */}}
{{- define "router.refuseAuth" -}}
{{- $auth := .Values.auth -}}
{{- if eq $auth.mode "jwt" -}}
{{- if not $auth.issuer -}}
{{- include "plane.refusal" (list "auth.issuer"
      "empty, while auth.mode is jwt"
      "A token is believed of one issuer alone, and without a token nobody is served"
      (print "the `iss` of your tokens, such as https://payer.okta.example/oauth2/default, or auth.mode: none to "
             "serve whoever reaches the router")) -}}
{{- end -}}
{{- if not $auth.audiences -}}
{{- include "plane.refusal" (list "auth.audiences"
      "empty, while auth.mode is jwt"
      "A token that the issuer made for another service would be good here"
      "the `aud` of the tokens that are meant for this plane") -}}
{{- end -}}
{{- if eq (empty $auth.jwks.uri) (empty $auth.jwks.inline.keys) -}}
{{- include "plane.refusal" (list "auth.jwks"
      (empty $auth.jwks.uri | ternary "has neither uri nor inline.keys" "has both uri and inline.keys")
      "The keys of the issuer come from one place"
      "uri to the issuer's `jwks_uri`, or inline to its key set") -}}
{{- end -}}
{{- if and $auth.jwks.proxy (not $auth.jwks.uri) -}}
{{- include "plane.refusal" (list "auth.jwks.proxy"
      (printf "%s, without a uri" $auth.jwks.proxy)
      "Keys that stand inline are fetched by nobody"
      "uri, or an empty proxy") -}}
{{- end -}}
{{- if and $auth.jwks.uri .Values.global.network.policies (not .Values.global.network.jwksCidrs) -}}
{{- include "plane.refusal" (list "global.network.jwksCidrs"
      "empty, while auth.jwks.uri is set"
      "The NetworkPolicies deny what nobody names, and without keys every token is refused"
      (print "the CIDRs of the issuer, or of auth.jwks.proxy, auth.jwks.inline in the uri's place, or "
             "global.network.policies: false")) -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $name, $team := .Values.global.teams -}}
{{- if kindIs "map" $team -}}
{{- $claim := $team.claim | default $name -}}
{{- with get $seen $claim -}}
{{- include "plane.refusal" (list (printf "global.teams.%s.claim" $name)
      (printf "%s means the team %s already" $claim .)
      "A token names exactly one team"
      "another claim") -}}
{{- end -}}
{{- $_ := set $seen $claim $name -}}
{{- end -}}
{{- end -}}
{{- if not $seen -}}
{{- include "plane.refusal" (list "global.teams"
      "empty, while auth.mode is jwt"
      "Who is of no team is let in nowhere"
      "the teams that may call, or auth.mode: none") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "router.refuseAccess" -}}
{{- if eq .Values.auth.mode "none" -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- if $model.access -}}
{{- include "plane.refusal" (list (printf "global.models.%s.access" $name)
      (printf "for %s alone, while the router's auth.mode is none" (join ", " $model.access.teams))
      "Nobody's team is known then, so it would look enforced and bind nobody"
      "auth.mode: jwt, or access: null") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "router.refuseDashboards" -}}
{{- if and .Values.dashboards.enabled (not .Values.podMonitor.enabled) -}}
{{- include "plane.refusal" (list "dashboards.enabled"
      "true, while podMonitor.enabled is false"
      "They show what the PodMonitor collects, and would stay empty without it"
      "podMonitor.enabled: true, or dashboards.enabled: false") -}}
{{- end -}}
{{- end -}}

{{- define "router.refusePolicy" -}}
{{- $network := .Values.global.network -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- if and (include "plane.sleeps" $model) (not $.Values.policy.enabled) -}}
{{- include "plane.refusal" (list "policy.enabled"
      (printf "false, while global.models.%s.replicas.min is 0" $name)
      "The policy service alone knows that somebody asks for a model without replicas, so it would never be started"
      (printf "policy.enabled: true, or %s.replicas.min: 1" $name)) -}}
{{- end -}}
{{- end -}}
{{- if and (include "router.policyServes" .) $network.policies (not $network.apiServerCidrs) -}}
{{- include "plane.refusal" (list "global.network.apiServerCidrs"
      "empty, while policy.enabled is true and a model falls back or scales to zero"
      (print "The NetworkPolicies deny what nobody names, and the policy service finds engines and waiting pods by the "
             "API server")
      (print "the subnets of the cluster's network interfaces, policy.enabled: false, or global.network.policies: "
             "false")) -}}
{{- end -}}
{{- end -}}

{{- define "router.refuseClients" -}}
{{- $network := .Values.global.network -}}
{{- if and $network.policies (not $network.albSubnetCidrs) (not .Values.clientNamespaces) -}}
{{- include "plane.refusal" (list "global.network.albSubnetCidrs"
      "empty, while network.policies is true and clientNamespaces names nobody"
      "No client could reach the router"
      "the CIDRs of the load balancer's subnets, or clientNamespaces") -}}
{{- end -}}
{{- end -}}

{{/*
A ConfigMap holds 1 MiB, a request to etcd 1.5 MiB: beyond 900 KiB the API server could refuse what Helm rendered.
Takes what the ConfigMap will hold: (dict "file" "routes" "text" $json).
*/}}
{{- define "router.refuseSize" -}}
{{- $kib := div (len .text) 1024 -}}
{{- if gt $kib 900 -}}
{{- $refusal := include "plane.refusal" (list "global.models"
      (printf "the router's %s need %d KiB of the 900 that a ConfigMap holds for them" .file $kib)
      "The API server would refuse the ConfigMap"
      "fewer models in this environment, or split them over two planes") -}}
{{- include "plane.failOn" (dict "of" "the router" "refusals" (list $refusal)) -}}
{{- end -}}
{{- end -}}
