{{/*
The pod of an engine, and how long it takes to come and to go. Every engine chart runs this one pod; charts differ in
the object that makes pods of it. A fleet is an entry of plane.fleets.
*/}}

{{/* "true" where KEDA owns the replicas of a fleet. */}}
{{- define "plane.engineScales" -}}
{{- if gt (int .replicas.max) (int .replicas.min) -}}true{{- end -}}
{{- end -}}

{{/*
Seconds that the preStop hook sleeps: (dict "root" $ "model" $fleet). An engine that knows no --shutdown-timeout aborts
what runs on SIGTERM, so that signal waits until the whole drain is over.
*/}}
{{- define "plane.enginePreStopSeconds" -}}
{{- $drain := .root.Values.drain -}}
{{- if include "plane.hasFlag" (dict "root" .root "model" .model "flag" "shutdown-timeout") -}}
{{ $drain.endpointStalenessSeconds | int }}
{{- else -}}
{{ add $drain.endpointStalenessSeconds $drain.shutdownTimeoutSeconds }}
{{- end -}}
{{- end -}}

{{/* Seconds that a drain needs: takes the root. */}}
{{- define "plane.engineDrainSeconds" -}}
{{ add .Values.drain.endpointStalenessSeconds .Values.drain.shutdownTimeoutSeconds .Values.drain.bufferSeconds }}
{{- end -}}

{{/* Seconds that Kubernetes gives a pod to leave: takes the root. */}}
{{- define "plane.engineGraceSeconds" -}}
{{ .Values.drain.terminationGracePeriodSeconds | default (include "plane.engineDrainSeconds" .) | int }}
{{- end -}}

{{/* Seconds that the weights of a fleet take to arrive: (dict "root" $ "model" $fleet). */}}
{{- define "plane.engineLoadSeconds" -}}
{{ divf .model.weightsGiB .root.Values.startup.loadGiBPerSecond | ceil | int }}
{{- end -}}

{{/* Seconds from a started container to a healthy engine. */}}
{{- define "plane.engineStartSeconds" -}}
{{ add (include "plane.engineLoadSeconds" .) .root.Values.startup.engineSeconds }}
{{- end -}}

{{/* Seconds from a pod on its node to a healthy engine: an init container's copy if there is one, and the start. */}}
{{- define "plane.engineReadySeconds" -}}
{{- $copy := include "plane.onNeuron" .model | empty | ternary 0 (include "plane.engineLoadSeconds" . | int) -}}
{{ add $copy (include "plane.engineStartSeconds" .) }}
{{- end -}}

{{/* Requests, running and waiting, that one replica of a fleet is meant to have. */}}
{{- define "plane.engineRequestsPerReplica" -}}
{{- $holds := (include "plane.fit" .model | fromJson).typicalConcurrency -}}
{{ mulf $holds .root.Values.autoscaling.utilization | floor | int | max 1 }}
{{- end -}}

{{/* How pods are replaced. */}}
{{- define "plane.engineStrategy" -}}
type: RollingUpdate
rollingUpdate:
  {{- if eq .rollout "surge" }}
  maxSurge: 1
  maxUnavailable: 0
  {{- else }}
  maxSurge: 0
  maxUnavailable: 1
  {{- end }}
{{- end -}}

{{/* The labels of a fleet's pods. None has a version of the chart: its upgrade would replace every engine. */}}
{{- define "plane.enginePodLabels" -}}
{{ include "plane.selectorLabels" (dict "component" "engine" "name" .fleet) }}
app.kubernetes.io/part-of: inference-plane
{{ include "plane.modelLabels" . }}
{{- end -}}

{{/* The container of the engine: KServe takes it by this name. */}}
{{- define "plane.engineContainer" -}}
{{ eq .engine "kserve" | ternary "kserve-container" "vllm" }}
{{- end -}}

{{/* The annotations of a fleet's pods: (dict "root" $ "model" $fleet). */}}
{{- define "plane.enginePodAnnotations" -}}
checksum/files: {{ include "plane.engineFilesData" .root | sha256sum }}
kubectl.kubernetes.io/default-container: {{ include "plane.engineContainer" .model }}
{{- if and (lt (int .model.replicas.min) 2) (eq .model.fleet .model.name) }}
# There may be one replica only, so whoever moves it interrupts the model. A canary's requests have the other fleet.
karpenter.sh/do-not-disrupt: "true"
{{- end }}
{{- end -}}

{{/*
The security context of an engine's pod: vLLM's images have a user vllm (2000) whose files belong to group 0.
https://github.com/vllm-project/vllm/pull/40275
*/}}
{{- define "plane.engineSecurityContext" -}}
runAsNonRoot: true
runAsUser: 2000
runAsGroup: 0
fsGroup: 2000
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* The spec of a fleet's pods: (dict "root" $ "model" $fleet). */}}
{{- define "plane.enginePodSpec" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $context := dict "root" $root "model" $model "shutdownTimeoutSeconds" $root.Values.drain.shutdownTimeoutSeconds -}}
{{- $size := int $model.tensorParallelSize -}}
{{- $gpu := eq $model.hardware.resource "nvidia.com/gpu" -}}
serviceAccountName: {{ $model.fleet }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "plane.engineGraceSeconds" $root }}
securityContext:
  {{- include "plane.engineSecurityContext" $root | nindent 2 }}
{{- if $model.hardware.resource }}
tolerations:
  - key: {{ include "plane.taintKey" $model.hardware.resource }}
    operator: Exists
    effect: NoSchedule
affinity:
  {{- include "plane.engineAffinity" $context | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  # Not DoNotSchedule: accelerators are often to be had in one zone only.
  - topologyKey: topology.kubernetes.io/zone
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "plane.selectorLabels" (dict "component" "engine" "name" $model.fleet) | nindent 8 }}
  {{- if eq $model.spread "nodes" }}
  # Replicas that wait for nodes are bound to the first that is ready; minDomains counts a second one that is not there
  # yet. Nodes that are not ready, or not for these pods, have taints and do not count.
  - topologyKey: kubernetes.io/hostname
    maxSkew: 1
    minDomains: 2
    whenUnsatisfiable: DoNotSchedule
    nodeTaintsPolicy: Honor
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "plane.selectorLabels" (dict "component" "engine" "name" $model.fleet) | nindent 8 }}
  {{- end }}
initContainers:
  {{- if include "plane.onNeuron" $model }}
  - {{ include "plane.engineInitializer" $context | nindent 4 | trim }}
  {{- end }}
  {{- if include "plane.tls" $root }}
  - {{ include "plane.engineCertificate" $context | nindent 4 | trim }}
  {{- end }}
  - {{ include "plane.engineMetrics" $context | nindent 4 | trim }}
containers:
  - name: {{ include "plane.engineContainer" $model }}
    image: {{ include "plane.image" (dict "root" $root "image" $model.image) }}
    # Given, because the images' entrypoints differ: `vllm serve`, the API server's module, or a shell script.
    {{- if eq $model.engine "kserve" }}
    # KServe refuses PYTHONPATH in a container's environment.
    command: [env, PYTHONPATH=/opt/plane, vllm]
    {{- else }}
    command: [vllm]
    {{- end }}
    args:
      {{- include "plane.engineArgs" $context | nindent 6 }}
    env:
      {{- $owned := include "plane.engineEnv" $context | fromJson }}
      {{- range $variable, $value := merge $owned ($model.env | default dict) }}
      - name: {{ $variable }}
        value: {{ $value | quote }}
      {{- end }}
    ports:
      - name: http
        containerPort: {{ include "plane.enginePort" $context }}
        # Written out, as the counts of devices below are strings: in an InferenceService, unlike in a Deployment, what
        # KServe and the API server would make of it counts as a difference that no sync takes away.
        protocol: TCP
    lifecycle:
      preStop:
        sleep:
          seconds: {{ include "plane.enginePreStopSeconds" $context }}
    startupProbe:
      httpGet: {{ include "plane.engineHealth" $root }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: {{ divf (include "plane.engineStartSeconds" $context) 10 | ceil | int }}
    readinessProbe:
      httpGet: {{ include "plane.engineHealth" $root }}
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 3
    # Patient: a long prefill may keep the event loop from answering, and a restart loses every running request.
    livenessProbe:
      httpGet: {{ include "plane.engineHealth" $root }}
      periodSeconds: 15
      timeoutSeconds: 15
      failureThreshold: 8
    resources:
      requests:
        cpu: {{ include "plane.times" (list $model.hardware.cpu $size) | quote }}
        memory: {{ include "plane.times" (list $model.hardware.memory $size) }}
        {{- with $model.hardware.resource }}
        {{ . }}: {{ int $model.devices | quote }}
        {{- end }}
      limits:
        {{- if eq $model.engine "kserve" }}
        # KServe would set its own default, one CPU, where there is no limit. No node has a thousand.
        cpu: 1k
        {{- end }}
        memory: {{ include "plane.times" (list $model.hardware.memory $size) }}
        {{- with $model.hardware.resource }}
        {{ . }}: {{ int $model.devices | quote }}
        {{- end }}
    securityContext:
      # The NVIDIA container runtime writes links to its libraries into the root file system; no other needs that.
      {{- include "plane.containerSecurityContext" (not $gpu) | nindent 6 }}
    volumeMounts:
      - name: files
        mountPath: /opt/plane
        readOnly: true
      - name: shm
        mountPath: /dev/shm
      - name: cache
        mountPath: /cache
      - name: tmp
        mountPath: /tmp
      {{- if include "plane.tls" $root }}
      - name: tls
        mountPath: /etc/inference-plane/tls
        readOnly: true
      {{- end }}
      {{- if hasPrefix "s3://" (include "plane.modelPath" $model) }}
      {{- include "plane.credentialsMount" $root | nindent 6 }}
      {{- end }}
      {{- if include "plane.onNeuron" $model }}
      - name: artifacts
        mountPath: /mnt/models
      {{- end }}
volumes:
  - name: files
    configMap:
      name: {{ include "plane.engineFilesName" $root }}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ $root.Values.volumes.sharedMemory }}
  - name: cache
    emptyDir:
      sizeLimit: {{ $root.Values.volumes.cache }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ $root.Values.volumes.tmp }}
  {{- if include "plane.tls" $root }}
  {{- $certificate := dict "root" $root "name" $model.fleet }}
  {{- include "plane.certificateVolume" $certificate | nindent 2 }}
  {{- include "plane.caVolume" $certificate | nindent 2 }}
  - name: tls
    emptyDir:
      medium: Memory
      sizeLimit: 1Mi
  {{- end }}
  {{- if include "plane.fromS3" $model }}
  {{- include "plane.credentialsVolume" $root | nindent 2 }}
  {{- end }}
  {{- if include "plane.onNeuron" $model }}
  - name: artifacts
    emptyDir:
      sizeLimit: {{ include "plane.artifactsGiB" $model }}Gi
  {{- end }}
{{- end -}}

{{/*
The nodes of an engine: those with its accelerator, never Spot for interactive traffic, and never those of the other
traffic class: its nodes go, and stay, by other rules. Nodes that somebody else labels without a class are for both.
*/}}
{{- define "plane.engineAffinity" -}}
{{- $model := .model -}}
{{- $batch := eq $model.traffic "batch" -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - key: {{ .root.Values.instanceFamilyLabel }}
            operator: In
            values: {{ toJson $model.hardware.instanceFamilies }}
          - key: inference-plane/traffic
            operator: NotIn
            values: [{{ $batch | ternary "interactive" "batch" }}]
          {{- if not $batch }}
          - key: karpenter.sh/capacity-type
            operator: In
            values: [on-demand, reserved]
          {{- end }}
  {{- if $batch }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      preference:
        matchExpressions:
          - key: karpenter.sh/capacity-type
            operator: In
            values: [spot]
  {{- end }}
{{- end -}}

{{/* The container that copies weights and compiled artifact for Neuron, which cannot stream them. */}}
{{- define "plane.engineInitializer" -}}
name: artifacts
image: {{ include "plane.image" (dict "root" .root "image" "storage-initializer") }}
# KServe's initializer: pairs of source and folder.
args:
  - {{ .model.source }}
  - /mnt/models/weights
  {{- with .model.compiled }}
  - {{ .source }}
  - /mnt/models/compiled
  {{- end }}
env:
  {{- range $variable, $value := include "plane.awsEnv" .root | fromJson }}
  - name: {{ $variable }}
    value: {{ $value | quote }}
  {{- end }}
  - name: HOME
    value: /tmp
resources:
  {{- toYaml .root.Values.initializer.resources | nindent 2 }}
securityContext:
  {{- include "plane.containerSecurityContext" true | nindent 2 }}
volumeMounts:
  - name: artifacts
    mountPath: /mnt/models
  - name: tmp
    mountPath: /tmp
  {{- include "plane.credentialsMount" .root | nindent 2 }}
{{- end -}}

{{/* What a probe asks. The kubelet checks no certificate. */}}
{{- define "plane.engineHealth" -}}
{path: /health, port: http{{ if include "plane.tls" . }}, scheme: HTTPS{{ end }}}
{{- end -}}

{{/*
Copies the certificate to where vLLM sees it change: of a mounted Secret it would follow the first renewal alone. The
engine starts once it is there.
*/}}
{{- define "plane.engineCertificate" -}}
name: certificate
restartPolicy: Always
image: {{ include "plane.image" (dict "root" .root "image" .model.image) }}
command: [python3, /opt/plane/certificate.py]
args:
  - --source=/etc/inference-plane/certificate
  - --target=/etc/inference-plane/tls
{{- include "plane.engineNoDevices" . }}
startupProbe:
  exec:
    command: [test, -s, /etc/inference-plane/tls/tls.key]
  periodSeconds: 1
  failureThreshold: 60
resources:
  requests: {cpu: 5m, memory: 24Mi}
  limits: {memory: 64Mi}
securityContext:
  {{- include "plane.containerSecurityContext" true | nindent 2 }}
volumeMounts:
  - name: files
    mountPath: /opt/plane
    readOnly: true
  - name: certificate
    mountPath: /etc/inference-plane/certificate
    readOnly: true
  - name: tls
    mountPath: /etc/inference-plane/tls
{{- end -}}

{{/* The environment of a container beside the engine, whose image asks for every GPU of the node. */}}
{{- define "plane.engineNoDevices" -}}
{{- if eq .model.hardware.resource "nvidia.com/gpu" }}
env:
  - name: NVIDIA_VISIBLE_DEVICES
    value: void
{{- end }}
{{- end -}}

{{/* Serves /metrics alone. A sidecar, so that the metrics of a draining engine are still to be had. */}}
{{- define "plane.engineMetrics" -}}
name: metrics
restartPolicy: Always
image: {{ include "plane.image" (dict "root" .root "image" .model.image) }}
command: [python3, /opt/plane/metrics_port.py]
args:
  - --port={{ include "plane.engineMetricsPort" . }}
  - --engine-port={{ include "plane.enginePort" . }}
  {{- if include "plane.tls" .root }}
  - --engine-name={{ include "plane.engineHost" . }}
  - --ca-file=/etc/inference-plane/ca/ca.crt
  {{- end }}
{{- include "plane.engineNoDevices" . }}
ports:
  - name: metrics
    containerPort: {{ include "plane.engineMetricsPort" . }}
    protocol: TCP
resources:
  {{- toYaml .root.Values.metrics.resources | nindent 2 }}
securityContext:
  {{- include "plane.containerSecurityContext" true | nindent 2 }}
volumeMounts:
  - name: files
    mountPath: /opt/plane
    readOnly: true
  {{- if include "plane.tls" .root }}
  - name: ca
    mountPath: /etc/inference-plane/ca
    readOnly: true
  {{- end }}
{{- end -}}
