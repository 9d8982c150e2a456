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
{{- $_ := set $model "version" (regexReplaceAll "^.*/([^/]+)/$" $model.source "${1}") -}}
{{- $_ := set $model "servedNames" (concat (list $name) ($model.servedNames | default list)) -}}
{{- if not (hasKey $model.replicas "max") -}}
{{- $_ := set $model.replicas "max" (max 1 $model.replicas.min) -}}
{{- end -}}
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
{{- $_ := set $models $name $model -}}
{{- end -}}
{{- end -}}
{{- toJson $models -}}
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

{{/* Where an engine answers inside the cluster: a headless Service, so that the name lists its ready pods. */}}
{{- define "plane.engineHost" -}}
{{ printf "%s.%s.svc.%s" .model.name .model.namespace .root.Values.global.clusterDomain }}
{{- end -}}

{{/* The ports of an engine pod: requests from the router only, metrics for scrapers and autoscalers. */}}
{{- define "plane.enginePort" -}}8000{{- end -}}
{{- define "plane.engineMetricsPort" -}}8001{{- end -}}
