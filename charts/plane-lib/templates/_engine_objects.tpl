{{/*
What belongs to a fleet beside the object that makes its pods: one helper an object, each taking
(dict "root" $ "model" $fleet). An engine chart is named after its engine and gives its own root.
*/}}

{{/* The models that this release runs, as plane.models gives them: those of its engine that match select. */}}
{{- define "plane.engineModels" -}}
{{- $models := dict -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- $byTeam := or (not $.Values.select.team) (eq ($model.team | default "") ($.Values.select.team | default "")) -}}
{{- $byName := or (not $.Values.select.models) (has $name ($.Values.select.models | default list)) -}}
{{- if and (eq $model.engine $.Chart.Name) $byTeam $byName -}}
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/* Their fleets, as plane.fleets gives them. */}}
{{- define "plane.engineFleets" -}}
{{ include "plane.fleets" (include "plane.engineModels" . | fromJson) }}
{{- end -}}

{{/* The namespaces in which this release runs models, as a JSON list. */}}
{{- define "plane.engineNamespaces" -}}
{{- $namespaces := list -}}
{{- range include "plane.engineModels" . | fromJson -}}
{{- $namespaces = append $namespaces .namespace -}}
{{- end -}}
{{- $namespaces | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The images that an engine chart names itself beside the models' own, as a JSON list: the helm test's. */}}
{{- define "plane.engineImages" -}}
{{- $tests := and .Values.global.network.policies (include "plane.engineModels" . | fromJson) -}}
{{ $tests | empty | ternary list (list "curl") | toJson }}
{{- end -}}

{{/* The metadata of a fleet's object. */}}
{{- define "plane.engineMetadata" -}}
name: {{ .model.fleet }}
namespace: {{ .model.namespace }}
labels:
  {{- include "plane.labels" (dict "root" .root "component" "engine" "name" .model.fleet) | nindent 2 }}
  {{- include "plane.modelLabels" .model | nindent 2 }}
{{- end -}}

{{/* The selector of a fleet's pods. */}}
{{- define "plane.engineSelector" -}}
matchLabels:
  {{- include "plane.selectorLabels" (dict "component" "engine" "name" .model.fleet) | nindent 2 }}
{{- end -}}

{{- define "plane.engineServiceAccount" -}}
# Its role reads this fleet's prefix and nothing else.
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "plane.engineMetadata" . | nindent 2 }}
  {{- if include "plane.fromS3" .model }}
  {{- $account := dict "namespace" .model.namespace "serviceAccount" .model.fleet }}
  {{- include "plane.serviceAccountAnnotations" (merge (dict "root" .root) $account) | nindent 2 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{/* The role of a fleet and its association, where these charts make them. */}}
{{- define "plane.engineIdentity" -}}
{{- if include "plane.fromS3" .model -}}
{{- $policy := include "plane.enginePermissions" (dict "global" .root.Values.global "model" .model) -}}
{{- $account := dict "namespace" .model.namespace "serviceAccount" .model.fleet -}}
{{ dict "root" .root "component" "engine" "policy" $policy | merge $account | include "plane.identity" }}
{{- end -}}
{{- end -}}

{{- define "plane.engineService" -}}
# Headless: its name lists the ready pods, among which the router chooses.
apiVersion: v1
kind: Service
metadata:
  {{- include "plane.engineMetadata" . | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: false
  selector:
    {{- include "plane.selectorLabels" (dict "component" "engine" "name" .model.fleet) | nindent 4 }}
  ports:
    - name: http
      port: {{ include "plane.enginePort" . }}
      targetPort: http
    # KEDA takes only ports that the Service's EndpointSlices list.
    - name: metrics
      port: {{ include "plane.engineMetricsPort" . }}
      targetPort: metrics
{{- end -}}

{{/* Of a fleet, where cert-manager makes it. */}}
{{- define "plane.engineTls" -}}
{{ include "plane.certificate" (dict "root" .root "name" .model.fleet "metadata" (include "plane.engineMetadata" .)
      "dnsNames" (list (include "plane.engineHost" .))) }}
{{- end -}}

{{- define "plane.enginePolicy" -}}
{{- $network := .root.Values.global.network -}}
{{- $readers := $network.scraperNamespaces -}}
{{- if include "plane.engineScales" .model -}}
{{- $readers = concat $readers $network.autoscalerNamespaces | uniq -}}
{{- end -}}
# Only the router reaches the engine, and the engine reaches nothing but its weights.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "plane.engineMetadata" . | nindent 2 }}
spec:
  podSelector:
    {{- include "plane.engineSelector" . | nindent 4 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: {{ include "plane.routerNamespace" .root }}
          podSelector:
            matchLabels:
              {{- include "plane.selectorLabels" (dict "component" "router" "name" "router") | nindent 14 }}
      ports:
        - {protocol: TCP, port: {{ include "plane.enginePort" . }}}
    - from:
        # The policy service, which reads the queue.
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: {{ include "plane.routerNamespace" .root }}
          podSelector:
            matchLabels:
              {{- include "plane.selectorLabels" (dict "component" "policy" "name" "router-policy") | nindent 14 }}
      ports:
        - {protocol: TCP, port: {{ include "plane.engineMetricsPort" . }}}
    {{- $reads := dict "namespaces" $readers "port" (include "plane.engineMetricsPort" .) }}
    {{- include "plane.ingressFromNamespaces" $reads | nindent 4 }}
  {{- if or (include "plane.fromS3" .model) (include "plane.engineTraces" .) }}
  egress:
    {{- include "plane.egressDns" .root | nindent 4 }}
    {{- if include "plane.fromS3" .model }}
    {{- include "plane.egressCredentials" .root | nindent 4 }}
    {{- include "plane.egressHttps" $network.s3Cidrs | nindent 4 }}
    {{- end }}
    {{- if include "plane.engineTraces" . }}
    {{- include "plane.egressTraces" .root | nindent 4 }}
    {{- end }}
  {{- else }}
  egress: []
  {{- end }}
{{- end -}}

{{/* Of fleets that have two replicas at least; the pod of a smaller one asks not to be disrupted. */}}
{{- define "plane.engineBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "plane.engineMetadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  # A replica that never became ready must not hold a node for ever.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    {{- include "plane.engineSelector" . | nindent 4 }}
{{- end -}}

{{- define "plane.enginePodMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .model.fleet }}
  namespace: {{ .model.namespace }}
  labels:
    {{- include "plane.monitoringLabels" (merge (dict "component" "engine" "name" .model.fleet) .) | nindent 4 }}
spec:
  selector:
    {{- include "plane.engineSelector" . | nindent 4 }}
  podTargetLabels: [inference-plane/team, inference-plane/cost-center, inference-plane/version]
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: {{ .root.Values.podMonitor.interval }}
{{- end -}}

{{/* The alerts of a fleet's engines. */}}
{{- define "plane.engineAlerts" -}}
{{- $certificate := include "plane.tls" .root | empty | ternary 0 (include "plane.certificateAlertSeconds" .root | int) -}}
{{- $rules := include "plane.engineRules" (dict "model" .model
      "readySeconds" (include "plane.engineReadySeconds" .)
      "firstTokenSeconds" .root.Values.alerts.firstTokenSeconds
      "certificateSeconds" $certificate) | fromJsonArray -}}
{{ include "plane.prometheusRule" (dict "root" .root "component" "engine" "name" .model.fleet
      "namespace" .model.namespace "model" .model "rules" $rules) }}
{{- end -}}

{{/*
plane.demand: the formula by which KEDA scales a fleet whose requests may be where no engine sees them, which is at its
fallback or nowhere, while it has no replica. Empty for any other, and where no policy service knows the demand.
*/}}
{{- define "plane.demand" -}}
{{- $model := .model -}}
{{- $sleeps := include "plane.sleeps" $model -}}
{{- if and .root.Values.autoscaling.demandPort (or $sleeps $model.fallback) -}}
{{- $engines := "(running ?? 0) + (waiting ?? 0)" -}}
{{- $unknown := $sleeps | empty | ternary "running + waiting" (printf "max(1, %s)" $engines) -}}
{{- /* The demand is that of the model; each of two fleets has its share of it. */ -}}
{{- $percent := int $model.percent -}}
{{- $own := eq $percent 100 | ternary "demand" (printf "demand * %v" (divf $percent 100)) -}}
{{ printf "demand == nil ? %s : max(%s, %s)" $unknown $own $engines }}
{{- end -}}
{{- end -}}

{{/* KEDA's part of a fleet. */}}
{{- define "plane.engineScaledObject" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $metrics := dict "running" "vllm:num_requests_running" "waiting" "vllm:num_requests_waiting" -}}
{{- $demand := include "plane.demand" (dict "root" $root "model" $model) -}}
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  {{- include "plane.engineMetadata" . | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "plane.engineDeployment" $model }}
  minReplicaCount: {{ int $model.replicas.min }}
  maxReplicaCount: {{ int $model.replicas.max }}
  pollingInterval: {{ int $root.Values.autoscaling.pollingSeconds }}
  {{- if include "plane.sleeps" $model }}
  cooldownPeriod: {{ int $root.Values.autoscaling.cooldownSeconds }}
  {{- end }}
  {{- if $demand }}
  # A value that could not be read three times is nil in the formula, so that a short silence neither wakes nor ends
  # anything. Without replicas the engines' values always are, and KEDA's condition Fallback says so.
  fallback: {failureThreshold: 2, replicas: {{ max 1 (int $model.replicas.min) }}, behavior: scalingModifiers}
  {{- end }}
  advanced:
    scalingModifiers:
      {{- if $demand }}
      # What wants an engine, wherever it is now, or what the engines have, whichever is more, over what one replica is
      # meant to have. What is at the fallback is in no engine, so that without the demand a fleet that sheds would
      # never grow. A demand that nobody knows ends no replica but for want of work: the engines alone count then, and
      # while they cannot be read either the number stays, or is one where it may be none.
      formula: {{ $demand | quote }}
      {{- else }}
      # Requests in the engines over what one replica is meant to have. The queue alone would take replicas away as soon
      # as it is empty, however busy they are. No `??`: while no engine can be read the number of replicas stays.
      formula: {{ keys $metrics | sortAlpha | join " + " }}
      {{- end }}
      target: {{ include "plane.engineRequestsPerReplica" . | quote }}
      metricType: AverageValue
    horizontalPodAutoscalerConfig:
      behavior:
        {{- range $direction := list "scaleUp" "scaleDown" }}
        {{- $pace := get $root.Values.autoscaling $direction }}
        {{ $direction }}:
          stabilizationWindowSeconds: {{ int $pace.stabilizationSeconds }}
          policies:
            - {type: Pods, value: {{ int $pace.pods }}, periodSeconds: {{ int $pace.periodSeconds }}}
        {{- end }}
  triggers:
    {{- if $demand }}
    - type: metrics-api
      name: demand
      metadata:
        # Of every ready replica of the policy service: they tell the same, and one that is gone is passed by.
        url: http://router-policy.{{ include "plane.routerNamespace" $root }}.svc:
          {{- int $root.Values.autoscaling.demandPort }}/demand/{{ $model.name }}
        format: json
        valueLocation: demand
        aggregateFromKubeServiceEndpoints: "true"
        aggregationType: max
        targetValue: "1"
        timeout: 3s
    {{- end }}
    {{- range $trigger, $metric := $metrics }}
    - type: metrics-api
      name: {{ $trigger }}
      metadata:
        # Of every ready pod behind the Service, on the pods' port.
        url: http://{{ $model.fleet }}.{{ $model.namespace }}.svc:{{ include "plane.engineMetricsPort" $ }}/metrics
        format: prometheus
        valueLocation: {{ printf "%s{model_name=%q}" $metric $model.name | squote }}
        aggregateFromKubeServiceEndpoints: "true"
        aggregationType: sum
        targetValue: "1"
        timeout: 3s
    {{- end }}
{{- end -}}

{{/* The ConfigMap with what runs inside engine pods. Releases and engines may share a namespace, so it names both. */}}
{{- define "plane.engineFilesName" -}}
{{ .Release.Name }}-{{ .Chart.Name }}-files
{{- end -}}

{{- define "plane.engineFilesData" -}}
plane_middleware.py: |
  {{- .Files.Get "files/plane_middleware.py" | nindent 2 }}
metrics_port.py: |
  {{- .Files.Get "files/metrics_port.py" | nindent 2 }}
{{- if include "plane.tls" . }}
certificate.py: |
  {{- .Files.Get "files/certificate.py" | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "namespace" $namespace) */}}
{{- define "plane.engineFiles" -}}
{{- $name := include "plane.engineFilesName" .root -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "plane.labels" (dict "root" .root "component" "engine" "name" "engine-files") | nindent 4 }}
data:
  {{- include "plane.engineFilesData" .root | nindent 2 }}
{{- end -}}

{{/* The pod of `helm test`, and its way out: takes the root. */}}
{{- define "plane.engineStranger" -}}
{{- $name := printf "%s-%s-stranger" .Release.Name .Chart.Name -}}
# The stranger may send to every engine of the release, so that it is the engines' own policies that refuse it.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "plane.labels" (dict "root" $ "component" "test" "name" "stranger") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-weight: "-1"
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  podSelector:
    matchLabels:
      {{- include "plane.selectorLabels" (dict "component" "test" "name" "stranger") | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    {{- include "plane.egressDns" $ | nindent 4 }}
    {{- $namespaces := list }}
    {{- range include "plane.engineFleets" $ | fromJson }}
    {{- $namespaces = append $namespaces .namespace }}
    {{- end }}
    - to:
        {{- range uniq $namespaces | sortAlpha }}
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: {{ . }}
          podSelector:
            matchLabels:
              app.kubernetes.io/component: engine
        {{- end }}
      ports:
        - {protocol: TCP, port: {{ include "plane.enginePort" $ }}}
        - {protocol: TCP, port: {{ include "plane.engineMetricsPort" $ }}}
---
# A pod that is not the router: every port of every engine must refuse it.
apiVersion: v1
kind: Pod
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "plane.labels" (dict "root" $ "component" "test" "name" "stranger") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    {{- include "plane.podSecurityContext" 65532 | nindent 4 }}
  containers:
    - name: stranger
      image: {{ include "plane.image" (dict "root" $ "image" "curl") }}
      command: [sh, -c]
      args:
        - |
          {{- .Files.Get "files/stranger.sh" | nindent 10 }}
        - stranger
        {{- range include "plane.engineFleets" $ | fromJson }}
        {{- $context := dict "root" $ "model" . }}
        - {{ include "plane.engineHost" $context }}:{{ include "plane.enginePort" $context }}
        - {{ include "plane.engineHost" $context }}:{{ include "plane.engineMetricsPort" $context }}
        {{- end }}
      resources:
        requests: {cpu: 10m, memory: 32Mi}
        limits: {memory: 32Mi}
      securityContext:
        {{- include "plane.containerSecurityContext" true | nindent 8 }}
{{- end -}}

{{/* NOTES of an engine chart: takes the root. */}}
{{- define "plane.engineNotes" -}}
{{- $models := include "plane.engineModels" . | fromJson -}}
{{- if and .Values.global.models (not $models) }}
This release runs no model: none of global.models is enabled, has engine {{ .Chart.Name }} and matches select.
{{- else }}
{{- include "plane.notes" (dict "root" $ "models" $models "images" (include "plane.engineImages" $ | fromJsonArray)) }}
{{- range $name, $model := include "plane.fleets" $models | fromJson }}
{{- $version := include "plane.engineVersion" (dict "root" $ "model" $model) }}
{{- range $flag, $loss := include "plane.flagsLost" $ | fromYaml }}
{{- $since := get (include "plane.flagsSince" $ | fromYaml) $flag }}
{{- $wanted := or (ne $flag "otlp-traces-endpoint") $.Values.global.tracing.endpoint }}
{{- if and $wanted (not (include "plane.hasFlag" (dict "root" $ "model" $model "flag" $flag))) }}
- vLLM {{ $version }} of {{ $name }} has no --{{ $flag }}: {{ $loss }}. Set an image of {{ $since }} or newer.
{{- end }}
{{- end }}
{{- end }}
{{ range $namespace := include "plane.engineNamespaces" $ | fromJsonArray }}
Pods in {{ $namespace }} meet the restricted Pod Security Standard. Have the namespace demand it:
  kubectl label namespace {{ $namespace }} pod-security.kubernetes.io/enforce=restricted
{{- end }}
{{- end }}
{{- end -}}
