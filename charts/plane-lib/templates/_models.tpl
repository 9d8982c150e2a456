{{/*
The catalogue: what an entry means once its defaults are in, and what follows from it.
*/}}

{{/*
plane.models: the enabled entries of global.models with their defaults, as a JSON object name -> entry.
Order of defaults: modelDefaults, modelDefaults.profiles.<profile>, the entry. Fields added to each entry:
  name, namespace, costCenter
  version     the immutable version at the end of `source`
  hardware    the accelerator's profile
  devices     how many of hardware.resource a pod asks for
  startSeconds  how long a replica takes from nothing
  reach       how far its fallback takes a prompt, as a residency; absent without a fallback
*/}}
{{- define "plane.models" -}}
{{- $global := .Values.global -}}
{{- $models := dict -}}
{{- range $name, $entry := $global.models -}}
{{- if and $entry (ne (toString $entry.enabled) "false") -}}
{{- $defaults := $global.modelDefaults -}}
{{- $profile := get $defaults.profiles ($entry.profile | default "") | default dict -}}
{{- $model := mergeOverwrite (omit $defaults "profiles" | deepCopy) (deepCopy $profile) (deepCopy $entry) -}}
{{- $_ := set $model "name" $name -}}
{{- $_ := set $model "namespace" ($model.namespace | default $.Release.Namespace) -}}
{{- $team := get $global.teams ($model.team | default "") | default dict -}}
{{- $_ := set $model "costCenter" ($model.costCenter | default $team.costCenter | default "") -}}
{{- $_ := set $model "version" (include "plane.version" $model.source) -}}
{{- $_ := set $model "servedNames" (concat (list $name) ($model.servedNames | default list)) -}}
{{- if not (hasKey $model.replicas "max") -}}
{{- $_ := set $model.replicas "max" (max 1 $model.replicas.min) -}}
{{- end -}}
{{- $_ := set $model "startSeconds" ($model.startSeconds | default (include "plane.startSeconds" $model | int)) -}}
{{- $hardware := get $global.accelerators ($model.accelerator | default "") | default dict | deepCopy -}}
{{- $_ := set $model "hardware" $hardware -}}
{{- $_ := set $model "devices" (include "plane.devices" $model | int) -}}
{{- $_ := set $model "image" ($model.image | default $hardware.image | default "") -}}
{{- if $model.fallback -}}
{{- $_ := set $model "reach" (include "plane.reach" (dict "global" $global "id" $model.fallback.model)) -}}
{{- else -}}
{{- /* A budget from modelDefaults or a profile means the models that have somewhere to fall back to. */ -}}
{{- $_ := unset $model "firstTokenBudget" -}}
{{- end -}}
{{- if not $model.access -}}
{{- $_ := unset $model "access" -}}
{{- end -}}
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
{{- end -}}

{{/*
Seconds that a replica takes from nothing where nobody has measured: a node, an image of 9 GB and the engine's start in
360, the weights at a quarter of a GiB a second.
*/}}
{{- define "plane.startSeconds" -}}
{{ mulf .weightsGiB 4 | ceil | int | add 360 }}
{{- end -}}

{{/* "true" where a model or fleet may have no replica. */}}
{{- define "plane.sleeps" -}}
{{- if eq (int .replicas.min) 0 -}}true{{- end -}}
{{- end -}}

{{/* "true" where one of these models may have no replica, which the policy service's demand wakes. */}}
{{- define "plane.anySleeps" -}}
{{- range . -}}{{- if include "plane.sleeps" . }}{{ "true" }}{{ end -}}{{- end -}}
{{- end -}}

{{/* The immutable version at the end of a source. */}}
{{- define "plane.version" -}}
{{ regexReplaceAll "^.*/([^/]+)/$" . "${1}" }}
{{- end -}}

{{/*
plane.fleets: the fleets of resolved models (plane.models), as a JSON object name -> fleet. A fleet is a number of equal
engines with a Service, a role and a version of their own: one a model, and MODEL-canary where the entry has a canary.
It is the model's entry, the canary's with what `canary` says instead, and
  fleet       its name, which is that of its objects; `name` is the model's
  percent     its share of the model's requests
  path        where it stands in the values
*/}}
{{- define "plane.fleets" -}}
{{- $fleets := dict -}}
{{- range $name, $model := . -}}
{{- $path := printf "global.models.%s" $name -}}
{{- $share := $model.canary | empty | ternary 0 (int ($model.canary | default dict).percent) -}}
{{- $stable := dict "fleet" $name "percent" (sub 100 $share) "path" $path -}}
{{- $_ := set $fleets $name (mergeOverwrite (deepCopy $model) $stable) -}}
{{- with $model.canary -}}
{{- $fleet := printf "%s-canary" $name -}}
{{- $canary := mergeOverwrite (omit $model "canary" "compiled" | deepCopy) (deepCopy .) -}}
{{- $_ := mergeOverwrite $canary (dict "fleet" $fleet "path" (printf "%s.canary" $path)) -}}
{{- $_ := set $canary "version" (include "plane.version" .source) -}}
{{- $_ := set $canary "replicas" (mergeOverwrite (dict "min" 1) (.replicas | default dict)) -}}
{{- if not (hasKey $canary.replicas "max") -}}
{{- $_ := set $canary.replicas "max" (max 1 $canary.replicas.min) -}}
{{- end -}}
{{- $_ := set $fleets $fleet $canary -}}
{{- end -}}
{{- end -}}
{{- toJson $fleets -}}
{{- end -}}

{{/*
How many devices a pod of a model asks for. Where the resource is a whole device of several cores (Trainium), the
cores that tensorParallelSize counts are rounded up to devices.
*/}}
{{- define "plane.devices" -}}
{{- if eq (.hardware.resource | default "") "" -}}
0
{{- else if eq .hardware.resource "aws.amazon.com/neuron" -}}
{{ divf .tensorParallelSize (.hardware.coresPerDevice | default 1) | ceil | int }}
{{- else -}}
{{ .tensorParallelSize | int }}
{{- end -}}
{{- end -}}

{{/* "true" where the weights of a model or fleet come from S3. */}}
{{- define "plane.fromS3" -}}
{{- if hasPrefix "s3://" .source -}}true{{- end -}}
{{- end -}}

{{/* "true" where it runs on Neuron. */}}
{{- define "plane.onNeuron" -}}
{{- if hasPrefix "aws.amazon.com/" (.hardware.resource | default "") -}}true{{- end -}}
{{- end -}}

{{/* GiB of a replica's volume on Neuron: weights, and an artifact that may hold them once more, already sharded. */}}
{{- define "plane.artifactsGiB" -}}
{{ mulf .weightsGiB 2 | ceil | int | add 20 }}
{{- end -}}

{{/* The taint of nodes with an accelerator, which engines tolerate: takes its resource. */}}
{{- define "plane.taintKey" -}}
{{ eq . "nvidia.com/gpu" | ternary "nvidia.com/gpu" "aws.amazon.com/neuron" }}
{{- end -}}

{{/* What the largest node brings: p5.48xlarge 8 GPUs, inf2.48xlarge 24 cores, trn2.48xlarge 16 devices. */}}
{{- define "plane.largestNode" -}}
{"nvidia.com/gpu": 8, "aws.amazon.com/neuroncore": 24, "aws.amazon.com/neuron": 16}
{{- end -}}

{{/* "true" where one node has what a pod of a model asks for. */}}
{{- define "plane.fitsOneNode" -}}
{{- $largest := get (include "plane.largestNode" . | fromJson) (.hardware.resource | default "") -}}
{{- if or (not $largest) (le (include "plane.devices" . | int) (int $largest)) -}}true{{- end -}}
{{- end -}}

{{/* Residencies in order of distance: a prompt may travel as far as its own and no farther. */}}
{{- define "plane.residencyRank" -}}
{{ get (dict "cluster" 0 "region" 1 "geography" 2 "anywhere" 3) . }}
{{- end -}}

{{/*
plane.reach: how far a Bedrock id takes a prompt, from the id alone: (dict "global" $global "id" $id). A bare
foundation model is called in global.aws.region; a system inference profile of the own geography stays inside it; any
other may process elsewhere. "hidden": the id does not show its destination (an ARN, an application inference profile,
a prompt router, a prefix nobody has listed).
https://docs.aws.amazon.com/bedrock/latest/userguide/cross-region-inference.html
*/}}
{{- define "plane.reach" -}}
{{- $first := splitList "." .id | first -}}
{{- if or (eq $first "") (contains ":" $first) (contains "/" .id) (not (contains "." .id)) -}}
hidden
{{- else if eq $first .global.residency.geography -}}
geography
{{- /* Before the providers, so that no entry there can turn a profile into a foundation model. */ -}}
{{- else if or (eq $first "global") (get .global.bedrock.profileRegions $first) -}}
anywhere
{{- else if has $first .global.bedrock.providers -}}
region
{{- else -}}
hidden
{{- end -}}
{{- end -}}

{{/* A duration such as 500ms, 2s or 10m in milliseconds. The schemas allow no other unit and no blank. */}}
{{- define "plane.milliseconds" -}}
{{- $number := regexFind "^[0-9.]+" . -}}
{{- $unit := trimPrefix $number . -}}
{{ mulf $number (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit) | int }}
{{- end -}}

{{/* A duration in whole seconds, rounded up. */}}
{{- define "plane.seconds" -}}
{{ divf (include "plane.milliseconds" .) 1000 | ceil | int }}
{{- end -}}

{{/* The Deployment of a fleet: KServe makes one of another name than the InferenceService's. */}}
{{- define "plane.engineDeployment" -}}
{{ .fleet }}{{ eq .engine "kserve" | ternary "-predictor" "" }}
{{- end -}}

{{/* Where a fleet answers inside the cluster: a headless Service, so that the name lists its ready pods. */}}
{{- define "plane.engineHost" -}}
{{ printf "%s.%s.svc.%s" .model.fleet .model.namespace .root.Values.global.clusterDomain }}
{{- end -}}

{{/* The ports of an engine pod: requests from the router only, metrics for scrapers and autoscalers. */}}
{{- define "plane.enginePort" -}}8000{{- end -}}
{{- define "plane.engineMetricsPort" -}}8001{{- end -}}
