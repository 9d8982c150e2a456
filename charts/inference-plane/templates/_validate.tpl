{{/* What no chart can say alone, because it sees its own values. */}}

{{/* KEDA asks the policy service where it listens. */}}
{{- define "inference-plane.validateDemand" -}}
{{- $refusals := list -}}
{{- range $engine := list "vllm" "kserve" -}}
{{- if and (get $.Values $engine).enabled $.Values.router.enabled -}}
{{- $own := int (get $.Values $engine).autoscaling.demandPort -}}
{{- $port := int $.Values.router.policy.statusPort -}}
{{- if and $own (not $.Values.router.policy.enabled) -}}
{{- range $name, $model := include "plane.models" $ | fromJson -}}
{{- if and (eq $model.engine $engine) $model.fallback (include "plane.engineScales" $model) -}}
{{- $refusals = append $refusals (include "plane.refusal" (list (printf "%s.autoscaling.demandPort" $engine)
      (printf "%d, while router.policy.enabled is false" $own)
      (printf "KEDA would ask nobody how many requests want %s, and report it as failing for ever" $name)
      "null, so that its engines' queues alone count, or router.policy.enabled: true")) -}}
{{- end -}}
{{- end -}}
{{- else if and $own (ne $own $port) -}}
{{- $refusals = append $refusals (include "plane.refusal" (list (printf "%s.autoscaling.demandPort" $engine)
      (printf "%d, while router.policy.statusPort is %d" $own $port)
      "KEDA would ask where nobody answers, and a model at zero replicas would be started for it"
      (printf "%d in both places" $port))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the engines and the router" "refusals" $refusals) -}}
{{- end -}}

{{/* The load balancer is made for the router as it is. */}}
{{- define "inference-plane.validateLoadBalancer" -}}
{{- $balancer := index .Values "alb-ingress" -}}
{{- if and $balancer.enabled .Values.router.enabled -}}
{{- $router := .Values.router -}}
{{- $refusals := list -}}
{{- $figures := dict
      "requestTimeout" (list "requestTimeout" $router.requestTimeout
        "It would cut answers, or hold what the router has given up")
      "drainSeconds" (list "drainSeconds" (int $router.drainSeconds)
        "Requests on a leaving router would be cut, or held for nothing")
      "statusPort" (list "status.port" (int $router.status.port)
        "It would check a port where nobody answers, and send nothing") -}}
{{- range $key, $figure := $figures -}}
{{- $own := get $balancer.router $key -}}
{{- if ne (toString $own) (index $figure 1 | toString) -}}
{{- $refusals = append $refusals (include "plane.refusal" (list (printf "alb-ingress.router.%s" $key)
      (printf "%v, while router.%s is %v" $own (index $figure 0) (index $figure 1))
      (printf "The load balancer is made for a router that is not there. %s" (index $figure 2))
      (printf "%v in both places" (index $figure 1)))) -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "alb-ingress and the router" "refusals" $refusals) -}}
{{- end -}}
{{- end -}}
