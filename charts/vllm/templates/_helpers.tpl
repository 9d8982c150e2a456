{{/* The models of the catalogue that this release runs, as plane.models gives them. */}}
{{- define "vllm.models" -}}
{{- $models := dict -}}
{{- range $name, $model := include "plane.models" . | fromJson -}}
{{- $byTeam := or (not $.Values.select.team) (eq ($model.team | default "") ($.Values.select.team | default "")) -}}
{{- $byName := or (not $.Values.select.models) (has $name ($.Values.select.models | default list)) -}}
{{- if and (eq $model.engine "vllm") $byTeam $byName -}}
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/* The namespaces in which this release runs models, as a JSON list. */}}
{{- define "vllm.namespaces" -}}
{{- $namespaces := list -}}
{{- range include "vllm.models" . | fromJson -}}
{{- $namespaces = append $namespaces .namespace -}}
{{- end -}}
{{- $namespaces | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The ConfigMap with what runs inside engine pods. The release is in its name: releases may share a namespace. */}}
{{- define "vllm.filesName" -}}
{{ .Release.Name }}-engine-files
{{- end -}}

{{/* "true" where KEDA owns the replicas of a model. */}}
{{- define "vllm.scales" -}}
{{- if gt (int .replicas.max) (int .replicas.min) -}}true{{- end -}}
{{- end -}}

{{/* "true" where weights come from S3. */}}
{{- define "vllm.fromS3" -}}
{{- if hasPrefix "s3://" .source -}}true{{- end -}}
{{- end -}}

{{/*
Seconds that the preStop hook sleeps: (dict "root" $ "model" $model). An engine that knows no --shutdown-timeout aborts
what runs on SIGTERM, so that signal waits until the whole drain is over.
*/}}
{{- define "vllm.preStopSeconds" -}}
{{- $drain := .root.Values.drain -}}
{{- if include "plane.hasFlag" (dict "root" .root "model" .model "flag" "shutdown-timeout") -}}
{{ $drain.endpointStalenessSeconds | int }}
{{- else -}}
{{ add $drain.endpointStalenessSeconds $drain.shutdownTimeoutSeconds }}
{{- end -}}
{{- end -}}

{{/* Seconds that a drain needs. */}}
{{- define "vllm.drainSeconds" -}}
{{ add .Values.drain.endpointStalenessSeconds .Values.drain.shutdownTimeoutSeconds .Values.drain.bufferSeconds }}
{{- end -}}

{{/* Seconds that Kubernetes gives a pod to leave. */}}
{{- define "vllm.graceSeconds" -}}
{{ .Values.drain.terminationGracePeriodSeconds | default (include "vllm.drainSeconds" .) | int }}
{{- end -}}

{{/* Seconds that the weights of a model take to arrive: (dict "root" $ "model" $model). */}}
{{- define "vllm.loadSeconds" -}}
{{ divf .model.weightsGiB .root.Values.startup.loadGiBPerSecond | ceil | int }}
{{- end -}}

{{/* Seconds from a started container to a healthy engine. */}}
{{- define "vllm.startSeconds" -}}
{{ add (include "vllm.loadSeconds" .) .root.Values.startup.engineSeconds }}
{{- end -}}

{{/* Seconds from a pod on its node to a healthy engine: the init container's copy where there is one, and the start. */}}
{{- define "vllm.readySeconds" -}}
{{- $copy := include "plane.onNeuron" .model | empty | ternary 0 (include "vllm.loadSeconds" . | int) -}}
{{ add $copy (include "vllm.startSeconds" .) }}
{{- end -}}

{{/*
Seconds after which a rollout without progress has failed: the node, all until the engine is healthy, and the leave of
the replica that had the accelerator before.
*/}}
{{- define "vllm.progressSeconds" -}}
{{ add .root.Values.startup.nodeBootSeconds (include "vllm.readySeconds" .) (include "vllm.graceSeconds" .root) }}
{{- end -}}

{{/* Requests, running and waiting, that one replica of a model is meant to have. */}}
{{- define "vllm.requestsPerReplica" -}}
{{- $holds := (include "plane.fit" .model | fromJson).typicalConcurrency -}}
{{ mulf $holds .root.Values.autoscaling.utilization | floor | int | max 1 }}
{{- end -}}

{{/* Size of the Neuron volume: the weights, and an artifact that may hold them once more, already sharded. */}}
{{- define "vllm.artifactsSize" -}}
{{ mulf .weightsGiB 2 | ceil | int | add 20 }}Gi
{{- end -}}

{{/* The images that this chart names itself beside the models' own, as a JSON list: the helm test's. */}}
{{- define "vllm.images" -}}
{{- if and .Values.global.network.policies (include "vllm.models" . | fromJson) -}}["curl"]{{- else -}}[]{{- end -}}
{{- end -}}
