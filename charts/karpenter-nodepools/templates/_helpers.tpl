{{/*
nodepools.pools: the pools of this release as a JSON object "<accelerator>/<traffic>" -> pool: one for each accelerator
and traffic class that an enabled model uses or that `pools` names. Accelerators without a resource run on any node and
get none. Fields:
  name, accelerator, traffic, hardware
  models      names of the models, and of their canaries, that it is for
  biggest     the model whose replica needs most of it; absent without models
  floor       accelerators that all replicas need at their minimum
  ceiling     accelerators that they may come to need: at their maximum, while a rollout surges, and the headroom's
  limit       accelerators that it may bring: Karpenter launches no node that would pass it, so it leaves room for one
  headroom    replicas of the biggest model to keep room for
*/}}
{{- define "nodepools.pools" -}}
{{- $pools := dict -}}
{{- range $accelerator, $classes := .Values.pools -}}
{{- range $traffic, $entry := $classes -}}
{{- if kindIs "map" $entry -}}
{{- $_ := set $pools (printf "%s/%s" $accelerator $traffic) (dict "accelerator" $accelerator "traffic" $traffic) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $models := include "plane.fleets" (include "plane.models" . | fromJson) | fromJson -}}
{{- range $models -}}
{{- if .hardware.resource -}}
{{- $_ := set $pools (printf "%s/%s" .accelerator .traffic) (dict "accelerator" .accelerator "traffic" .traffic) -}}
{{- end -}}
{{- end -}}
{{- range $key, $pool := $pools -}}
{{- $entry := get (get $.Values.pools $pool.accelerator | default dict) $pool.traffic | default dict -}}
{{- $names := list -}}
{{- $biggest := dict -}}
{{- $floor := 0 -}}
{{- $ceiling := 0 -}}
{{- range $name, $model := $models -}}
{{- if and (eq $model.accelerator $pool.accelerator) (eq $model.traffic $pool.traffic) -}}
{{- $names = append $names $name -}}
{{- if gt (int $model.tensorParallelSize) (int $biggest.tensorParallelSize) -}}
{{- $biggest = $model -}}
{{- end -}}
{{- $surge := eq $model.rollout "surge" | ternary 1 0 -}}
{{- $floor = add $floor (mul $model.devices (int $model.replicas.min)) -}}
{{- $ceiling = add $ceiling (mul $model.devices (add (int $model.replicas.max) $surge)) -}}
{{- end -}}
{{- end -}}
{{- $headroom := int $entry.headroom -}}
{{- $ceiling = add $ceiling (mul $headroom (int $biggest.devices)) -}}
{{- $hardware := get $.Values.global.accelerators $pool.accelerator | default dict -}}
{{- $largest := get (include "plane.largestNode" $ | fromJson) ($hardware.resource | default "") | int -}}
{{- $name := printf "%s%s-%s" $.Values.namePrefix $pool.accelerator $pool.traffic -}}
{{- $_ := set $pool "name" ($entry.name | default $name) -}}
{{- $_ := set $pool "hardware" $hardware -}}
{{- $_ := set $pool "models" $names -}}
{{- $_ := set $pool "biggest" $biggest -}}
{{- $_ := set $pool "floor" $floor -}}
{{- $_ := set $pool "ceiling" $ceiling -}}
{{- $_ := set $pool "limit" ($entry.limit | default (add $ceiling $largest) | int) -}}
{{- $_ := set $pool "headroom" $headroom -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{/* The accelerators that have pools, as a JSON object name -> pools: each gets a node class. */}}
{{- define "nodepools.accelerators" -}}
{{- $accelerators := dict -}}
{{- range include "nodepools.pools" . | fromJson -}}
{{- $_ := set $accelerators .accelerator (append (get $accelerators .accelerator | default list) .) -}}
{{- end -}}
{{- toJson $accelerators -}}
{{- end -}}

{{/* The name of an accelerator's node class: (dict "root" $ "accelerator" "l40s"). */}}
{{- define "nodepools.className" -}}
{{ .root.Values.namePrefix }}{{ .accelerator }}
{{- end -}}

{{/* "true" under EKS Auto Mode. */}}
{{- define "nodepools.auto" -}}
{{- if eq .Values.mode "autoMode" -}}true{{- end -}}
{{- end -}}

{{/* The API group of the labels that describe an instance. Auto Mode has its own, and refuses Karpenter's. */}}
{{- define "nodepools.labelGroup" -}}
{{ include "nodepools.auto" . | empty | ternary "karpenter.k8s.aws" "eks.amazonaws.com" }}
{{- end -}}

{{/*
Cluster-wide objects outlive the release: without its NodePool Karpenter ends every node of it, with all that runs.
*/}}
{{- define "nodepools.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=false,Delete=false
{{- end -}}

{{/* Images that this chart names, as a JSON list. */}}
{{- define "nodepools.images" -}}
{{- $images := list -}}
{{- range include "nodepools.pools" . | fromJson -}}
{{- if .headroom -}}
{{- $images = list "pause" -}}
{{- end -}}
{{- end -}}
{{- toJson $images -}}
{{- end -}}

{{/* What both kinds of node class select by tags. */}}
{{- define "nodepools.selectors" -}}
{{- $class := .Values.nodeClass -}}
subnetSelectorTerms:
  - tags:
      {{- include "nodepools.strings" $class.subnetTags | nindent 6 }}
securityGroupSelectorTerms:
  - tags:
      {{- include "nodepools.strings" $class.securityGroupTags | nindent 6 }}
{{- with include "nodepools.strings" $class.capacityReservationTags }}
capacityReservationSelectorTerms:
  - tags:
      {{- . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A map of strings as YAML, quoted. An overlay takes an entry out by null. */}}
{{- define "nodepools.strings" -}}
{{- $lines := list -}}
{{- range $key, $value := . -}}
{{- if kindIs "string" $value -}}
{{- $lines = append $lines (printf "%s: %s" (quote $key) (quote $value)) -}}
{{- end -}}
{{- end -}}
{{- join "\n" $lines -}}
{{- end -}}
