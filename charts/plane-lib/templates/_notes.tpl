{{/*
What NOTES of several charts print: what each model may do, and what is risky about these values.
*/}}

{{/*
plane.notes: a block for each model, then the risks: (dict "root" $ "models" $models "images" (list "envoy")), where
`models` are resolved and `images` those that the chart names itself; "auth" is the router's, of a release that has one.
*/}}
{{- define "plane.notes" -}}
{{- $global := .root.Values.global -}}
{{- range $name, $model := .models }}
{{ include "plane.notesModel" (dict "global" $global "model" $model) }}
{{ end -}}
{{- with include "plane.risks" (dict "global" $global "models" .models "images" .images "auth" .auth) | trim }}
Risks
{{ . }}
{{- end -}}
{{- end -}}

{{/* One model: (dict "global" $global "model" $model). */}}
{{- define "plane.notesModel" -}}
{{- $model := .model -}}
{{- $global := .global -}}
{{- $fit := include "plane.fit" $model | fromJson -}}
{{- $where := dict
      "cluster" "never leave the cluster"
      "region" (printf "may be processed in the Region %s" $global.aws.region)
      "geography" (printf "may be processed in the geography %s" $global.residency.geography)
      "anywhere" "may be processed anywhere" -}}
{{ $model.name }} {{ $model.version }}{{ with rest $model.servedNames }} (also {{ join ", " . }}){{ end }}
  engine    {{ $model.engine }}, image {{ $model.image }}, in namespace {{ $model.namespace }}
  runs on   {{ $model.tensorParallelSize }} x {{ $model.accelerator }} a replica,
{{- printf " %s, %s" (include "plane.notesReplicas" $model.replicas) $model.traffic }}
{{- if $model.fallback }}
  prompts   {{ get $where $model.reach }} (residency {{ $model.residency }})
  fallback  {{ $model.fallback.model }} on Amazon Bedrock in {{ $global.aws.region }},
{{- printf " data retention %s" $model.fallback.retention }}
{{- else if eq $model.residency "cluster" }}
  prompts   never leave the cluster (residency cluster)
  fallback  none
{{- else }}
  prompts   never leave the cluster, as there is no fallback (residency {{ $model.residency }} would allow one)
  fallback  none
{{- end }}
{{- with $model.canary }}
{{- $canary := get (include "plane.fleets" (dict $model.name $model) | fromJson) (printf "%s-canary" $model.name) }}
  canary    {{ $canary.version }} for {{ int .percent }} % of the requests,
{{- printf " %s, image %s" (include "plane.notesReplicas" $canary.replicas) $canary.image }}
{{- end }}
{{- if include "plane.sleeps" $model }}
  at zero   the first request starts a replica, which takes some {{ int $model.startSeconds }} s:
{{- $model.fallback | empty | ternary " it hears 503 with Retry-After" " Amazon Bedrock answers meanwhile" }}
{{- end }}
{{ printf "  memory    %.1f of %.1f GiB needed, %.1f GiB for the KV cache" $fit.needGiB $fit.haveGiB $fit.kvGiB }}
{{ printf "  at once   %d sequences a replica of %d tokens each (worst case),"
     (int $fit.worstCaseConcurrency) (int $model.maxModelLen) }}
{{- printf " %d of %d (typical: a quarter of maxModelLen)"
     (int $fit.typicalConcurrency) (div $model.maxModelLen 4) }}
{{- end -}}

{{- define "plane.notesReplicas" -}}
{{- $min := int .min -}}
{{- $max := int .max -}}
{{- if ne $min $max -}}
{{ $min }} to {{ $max }} replicas
{{- else -}}
{{ $min }} {{ eq $min 1 | ternary "replica" "replicas" }}
{{- end -}}
{{- end -}}

{{/* plane.risks: a line for each thing that is set, or left, riskily; takes what plane.notes does, and its global. */}}
{{- define "plane.risks" -}}
{{- $global := .global -}}
{{- $images := list -}}
{{- $single := list -}}
{{- $assumed := list -}}
{{- $kept := list -}}
{{- $callers := include "plane.callers" .models | fromJsonArray -}}
{{- range $name, $model := .models -}}
{{- $entry := get $global.models $name -}}
{{- $profile := get $global.modelDefaults.profiles ($model.profile | default "") | default dict -}}
{{- if eq (int $model.replicas.min) 1 -}}
{{- $single = append $single $name -}}
{{- end -}}
{{- if not (or $entry.kvBytesPerToken $profile.kvBytesPerToken) -}}
{{- $assumed = append $assumed $name -}}
{{- end -}}
{{- with $model.fallback -}}
{{- if ne .retention "none" -}}
{{- $kept = append $kept (printf "%s (%s)" $name .retention) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $used := include "plane.fleets" .models | fromJson | include "plane.modelImages" | fromJsonArray -}}
{{- range concat .images $used | uniq | sortAlpha -}}
{{- if not (get $global.images .).digest -}}
{{- $images = append $images . -}}
{{- end -}}
{{- end -}}
{{- if not .models }}
- No models yet: nothing is served. Add one to global.models.
{{- end }}
{{- with $images }}
- No digest for the images {{ join ", " . }}: a tag can move. Set global.images.NAME.digest, then
{{- " global.requireDigest: true." }}
{{- end }}
{{- with $single }}
- One replica of {{ join ", " . }}: a node's drain or loss interrupts it. Set replicas.min: 2.
{{- end }}
{{- with $assumed }}
- The KV cache of {{ join ", " . }} is assumed at {{ int $global.modelDefaults.kvBytesPerToken }} bytes a token.
{{- " Set kvBytesPerToken to what scripts/fit --config config.json says." }}
{{- end }}
{{- with $kept }}
- Amazon Bedrock may keep prompts of {{ join ", " . }}. Set the account's data-retention mode to none, then
{{- " retention: none." }}
{{- end }}
{{- if eq (.auth | default dict).mode "none" }}
- Nobody is asked for a token (the router's auth.mode is none): whoever reaches the router is served. Set auth.mode: jwt.
{{- end }}
{{- if and .models (eq $global.tls.mode "none") }}
- Prompts, answers and tokens cross the cluster's network in clear text (tls.mode none). Set global.tls.mode: certManager.
{{- end }}
{{- if not $global.network.policies }}
- NetworkPolicies are off: any pod may call the engines, and they may call anywhere. Set global.network.policies: true.
{{- end }}
{{- if and (eq $global.identity.mode "irsa") (include "plane.fallsBack" .models) }}
- Envoy has its credentials from an STS whose certificate it does not check (identity irsa, with a fallback).
{{- " Set global.identity.mode: podIdentity." }}
{{- end }}
{{- if and $callers (eq $global.identity.mode "none") }}
- Pods get no AWS credentials (identity none), while S3 or Amazon Bedrock is called for {{ join ", " $callers }}.
{{- " Set global.identity.mode: podIdentity." }}
{{- end }}
{{- end -}}
