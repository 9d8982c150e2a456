{{/* What a schema cannot say about this chart's values. Every refusal says what, why, and what to set. */}}

{{- define "alb.validate" -}}
{{- $refusals := list -}}
{{- range $rule := list "Controller" "Public" "Inbound" "Policies" "Tls" "Regions" "Idle" "Drain" "Targets" -}}
{{- $refusals = append $refusals (include (printf "alb.refuse%s" $rule) $) -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "alb-ingress" "refusals" $refusals) -}}
{{- end -}}

{{/* What the controllers and their modes do not have. */}}
{{- define "alb.refuseController" -}}
{{- $tags := include "alb.given" .Values.subnets.tags | fromYaml -}}
{{- if and (eq .Values.controller "autoMode") (eq .Values.mode "gateway") -}}
{{- include "plane.refusal" (list "mode"
      "gateway, with the controller autoMode"
      "EKS Auto Mode makes load balancers of Ingresses and Services alone, so nobody would act on a Gateway"
      "mode: ingress, or controller: awsLoadBalancerController") -}}
{{- end -}}
{{- if and .Values.subnets.ids $tags -}}
{{- include "plane.refusal" (list "subnets"
      "both ids and tags"
      "A load balancer's subnets are chosen in one way"
      "one of them to nothing") -}}
{{- end -}}
{{- if and $tags (eq .Values.mode "ingress") (eq .Values.controller "awsLoadBalancerController") -}}
{{- include "plane.refusal" (list "subnets.tags"
      "given, for an Ingress of the AWS Load Balancer Controller"
      "Its annotations choose subnets by id alone"
      "subnets.ids, or the tags in the IngressClassParams of the class") -}}
{{- end -}}
{{- end -}}

{{- define "alb.refusePublic" -}}
{{- if and (eq .Values.scheme "internet-facing") (not (trim .Values.publicBecause)) -}}
{{- include "plane.refusal" (list "publicBecause"
      "empty, while scheme is internet-facing"
      "The plane is made for private networks, and the router asks nobody who they are"
      "scheme: internal, or who decided that the internet may reach it, and why") -}}
{{- end -}}
{{- if and (eq .Values.scheme "internal") .Values.publicBecause -}}
{{- include "plane.refusal" (list "publicBecause"
      "given, while scheme is internal"
      "A reader would take the load balancer for public"
      "publicBecause to nothing, or scheme: internet-facing") -}}
{{- end -}}
{{- end -}}

{{- define "alb.refuseInbound" -}}
{{- if not (or .Values.inbound.cidrs .Values.inbound.prefixLists) -}}
{{- include "plane.refusal" (list "inbound"
      "neither cidrs nor prefixLists"
      "The controller would let everybody in"
      "the CIDRs of the clients, or the prefix lists of the edge in front") -}}
{{- end -}}
{{- include "plane.refuseWideCidrs" (list "inbound.cidrs" .Values.inbound.cidrs
      "The router asks nobody who they are, so the network has to"
      "the CIDRs of the clients, or the prefix lists of the edge in front") -}}
{{- end -}}

{{/* The router's NetworkPolicy has to let the load balancer in. */}}
{{- define "alb.refusePolicies" -}}
{{- if and .Values.global.network.policies (not .Values.global.network.albSubnetCidrs) -}}
{{- include "plane.refusal" (list "global.network.albSubnetCidrs"
      "empty, while network.policies is true"
      "The router's NetworkPolicy would let neither requests nor health checks of the load balancer in"
      "the CIDRs of the load balancer's subnets") -}}
{{- end -}}
{{- end -}}

{{- define "alb.refuseTls" -}}
{{- if and .Values.tls.enabled (not .Values.tls.certificateArns) -}}
{{- include "plane.refusal" (list "tls.certificateArns"
      "empty, while tls.enabled is true"
      "A listener for HTTPS needs a certificate"
      "the ARN of one in AWS Certificate Manager; tls.enabled: false sends prompts in clear text") -}}
{{- end -}}
{{- if and (not .Values.tls.enabled) .Values.tls.certificateArns -}}
{{- include "plane.refusal" (list "tls.certificateArns"
      "given, while tls.enabled is false"
      "Prompts would travel in clear text beside a certificate that nobody uses"
      "tls.enabled: true, or no certificate") -}}
{{- end -}}
{{- end -}}

{{/* A load balancer takes certificates and firewalls of its own Region alone. */}}
{{- define "alb.refuseRegions" -}}
{{- $region := .Values.global.aws.region -}}
{{- $arns := dict "wafAclArn" (list .Values.wafAclArn) "tls.certificateArns" .Values.tls.certificateArns -}}
{{- range $path, $list := $arns -}}
{{- range $arn := $list -}}
{{- $own := hasPrefix "arn:" $arn | ternary (splitList ":" $arn | rest | rest | rest | first) $region -}}
{{- if ne $own $region -}}
{{- include "plane.refusal" (list $path
      (printf "%s is in %s, while global.aws.region is %s" $arn $own ($region | default "empty"))
      "A load balancer takes what is in its own Region alone"
      "the ARN of one in the Region, or global.aws.region") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The load balancer waits as long as a request may take, and less long than the router keeps a connection. */}}
{{- define "alb.refuseIdle" -}}
{{- $idle := include "alb.idleSeconds" . | int -}}
{{- $request := include "plane.seconds" .Values.router.requestTimeout | int -}}
{{- $path := empty .Values.idleTimeout | ternary "router.requestTimeout" "idleTimeout" -}}
{{- if or (gt $idle 4000) (lt $idle 1) -}}
{{- include "plane.refusal" (list $path
      (printf "%ds is not from 1s to 4000s" $idle)
      "AWS has no other idle timeouts"
      "at most 4000s, here and for the router") -}}
{{- end -}}
{{- if lt $idle $request -}}
{{- include "plane.refusal" (list "idleTimeout"
      (printf "%s is shorter than router.requestTimeout %s" .Values.idleTimeout .Values.router.requestTimeout)
      "A long answer that is not streamed says nothing until it is done, and would be cut"
      (printf "null, or at least %s" .Values.router.requestTimeout)) -}}
{{- end -}}
{{- $closes := add $request 60 | int -}}
{{- if ge $idle $closes -}}
{{- include "plane.refusal" (list "idleTimeout"
      (printf "%s is not shorter than the %ds after which the router closes a connection" .Values.idleTimeout $closes)
      "The load balancer would send requests on connections that the router is closing, and answer 502"
      (printf "null, or less than %ds" $closes)) -}}
{{- end -}}
{{- end -}}

{{- define "alb.refuseDrain" -}}
{{- $delay := include "alb.deregistrationSeconds" . | int -}}
{{- if gt $delay (int .Values.router.drainSeconds) -}}
{{- include "plane.refusal" (list "targets.deregistrationDelaySeconds"
      (printf "%d is longer than router.drainSeconds %d" $delay (int .Values.router.drainSeconds))
      "The router would be gone while requests to it are still running"
      (printf "null, or at most %d, or a longer drain here and for the router" (int .Values.router.drainSeconds))) -}}
{{- end -}}
{{- end -}}

{{- define "alb.refuseTargets" -}}
{{- $targets := .Values.targets -}}
{{- $check := .Values.healthCheck -}}
{{- if and (int $targets.slowStartSeconds) (eq $targets.algorithm "least_outstanding_requests") -}}
{{- include "plane.refusal" (list "targets.slowStartSeconds"
      (printf "%d, with the algorithm least_outstanding_requests" (int $targets.slowStartSeconds))
      "AWS refuses the two together"
      "slowStartSeconds: 0, or algorithm: round_robin") -}}
{{- end -}}
{{- if ge (int $check.timeoutSeconds) (int $check.intervalSeconds) -}}
{{- include "plane.refusal" (list "healthCheck.timeoutSeconds"
      (printf "%d is not below intervalSeconds %d" (int $check.timeoutSeconds) (int $check.intervalSeconds))
      "AWS refuses a check that lasts until the next one"
      "a shorter timeoutSeconds, or a longer intervalSeconds") -}}
{{- end -}}
{{- end -}}
