{{/*
The policy service, and how the routers ask it. Its configuration says what to read of each model; what it may decide
stands in the routes.
*/}}

{{/* "true" where there is something to decide or to wake: a model with a fallback, or one that scales to zero. */}}
{{- define "router.policyServes" -}}
{{- $models := include "plane.models" . | fromJson -}}
{{- $needed := or (include "plane.fallsBack" $models) (include "plane.anySleeps" $models) -}}
{{- if and .Values.policy.enabled $needed -}}true{{- end -}}
{{- end -}}

{{/* "true" where the routers ask it: for shares, which a model with a fallback alone has. */}}
{{- define "router.policyDecides" -}}
{{- if and .Values.policy.enabled (include "plane.models" . | fromJson | include "plane.fallsBack") -}}true{{- end -}}
{{- end -}}

{{- define "router.policyLabels" -}}
{{ include "plane.labels" (dict "root" $ "component" "policy" "name" "router-policy") }}
{{- end -}}

{{- define "router.policySelector" -}}
{{ include "plane.selectorLabels" (dict "component" "policy" "name" "router-policy") }}
{{- end -}}

{{/* Where the routers ask. */}}
{{- define "router.policyCluster" -}}
{{- $host := include "router.innerHost" (dict "root" . "name" "router-policy") -}}
name: policy
connect_timeout: 1s
cluster_type: {{ include "router.dnsClusterType" . | nindent 2 }}
load_assignment:
  cluster_name: policy
  endpoints:
    - lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: {{ $host }}
                port_value: {{ .Values.policy.port }}
{{- if include "plane.tls" . }}
transport_socket: {{ include "router.tls" (dict "host" $host "inside" true) | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The namespaces where it looks at pods and endpoints: the models' and the router's, as a JSON list. */}}
{{- define "router.policyNamespaces" -}}
{{- $namespaces := list .Release.Namespace -}}
{{- range include "plane.models" . | fromJson }}{{ $namespaces = append $namespaces .namespace }}{{ end -}}
{{- $namespaces | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* What the service reads, as inference_plane.policy describes it. Models without a fallback have a demand alone. */}}
{{- define "router.policyConfig" -}}
{{- $models := dict -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- $fleets := list -}}
{{- $deployments := list -}}
{{- range $fleet, $entry := include "plane.fleets" (dict $name $model) | fromJson -}}
{{- $fleets = append $fleets $fleet -}}
{{- $deployments = append $deployments (include "plane.engineDeployment" $entry) -}}
{{- end -}}
{{- $entry := dict
      "namespace" $model.namespace
      "fleets" $fleets
      "deployments" $deployments
      "metricsPort" (include "plane.engineMetricsPort" $ | int)
      "fallback" (not (empty $model.fallback))
      "minReplicas" (int $model.replicas.min)
      "maxReplicas" (int $model.replicas.max)
      "requestsPerReplica" (add $model.maxNumSeqs $model.maxQueuedRequests) -}}
{{- with $model.firstTokenBudget -}}
{{- $_ := set $entry "firstTokenBudgetMs" (include "plane.milliseconds" . | int) -}}
{{- end -}}
{{- $_ := set $models $name $entry -}}
{{- end -}}
{{- $tls := dict
      "certificate" "/etc/inference-plane/certificate/tls.crt"
      "key" "/etc/inference-plane/certificate/tls.key"
      "ca" "/etc/inference-plane/ca/ca.crt"
      "name" (include "router.innerHost" (dict "root" . "name" "router-policy")) -}}
{{- dict
      "listen" (dict "address" "0.0.0.0" "port" (int .Values.policy.port) "statusPort" (int .Values.policy.statusPort))
      "tls" (include "plane.tls" . | empty | ternary nil $tls)
      "namespace" .Release.Namespace
      "lease" (dict "name" "router-policy")
      "routers" (dict "namespace" .Release.Namespace "service" "router" "port" (int .Values.status.port))
      "tuning" .Values.policy.tuning
      "models" $models | toJson -}}
{{- end -}}
