{{/*
What a schema cannot say of an engine chart's values: rules between fields. plane.validateCatalogue has those of the
catalogue that concern every chart.
*/}}

{{/* Fails once with every refusal; renders nothing otherwise. */}}
{{- define "plane.validateEngines" -}}
{{- $refusals := list (include "plane.refuseMonitoring" .) -}}
{{- range $rule := list "Select" "Drain" "Nobody" -}}
{{- $refusals = append $refusals (include (printf "plane.refuseEngine%s" $rule) $) -}}
{{- end -}}
{{- range $name, $model := include "plane.engineFleets" . | fromJson -}}
{{- $context := dict "root" $ "model" $model "path" $model.path -}}
{{- /* A canary has its entry's `args` and `env`, which are refused there. */ -}}
{{- $rules := list "Zero" "Version" "Neuron" -}}
{{- range $rule := eq $name $model.name | ternary (concat $rules (list "Args" "Env")) $rules -}}
{{- $refusals = append $refusals (include (printf "plane.refuseEngine%s" $rule) $context) -}}
{{- end -}}
{{- end -}}
{{- include "plane.failOn" (dict "of" "the catalogue" "refusals" $refusals) -}}
{{- end -}}

{{- define "plane.refuseEngineSelect" -}}
{{- range $name := .Values.select.models -}}
{{- if not (hasKey $.Values.global.models $name) -}}
{{- include "plane.unknown" (list "select.models" $name "global.models" $.Values.global.models) -}}
{{- end -}}
{{- end -}}
{{- with .Values.select.team -}}
{{- if not (kindIs "map" (get $.Values.global.teams .)) -}}
{{- include "plane.unknown" (list "select.team" . "global.teams" $.Values.global.teams) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plane.refuseEngineDrain" -}}
{{- $drain := .Values.drain -}}
{{- $need := include "plane.engineDrainSeconds" . | int -}}
{{- $grace := include "plane.engineGraceSeconds" . | int -}}
{{- if lt $grace $need -}}
{{- $sum := list -}}
{{- range list "endpointStalenessSeconds" "shutdownTimeoutSeconds" "bufferSeconds" -}}
{{- $sum = append $sum (printf "%s %d" . (get $drain . | int)) -}}
{{- end -}}
{{- $sum = join " + " $sum -}}
{{- include "plane.refusal" (list "drain.terminationGracePeriodSeconds"
      (printf "%d is less than the drain of %d (%s)" $grace $need $sum)
      "Kubernetes would kill the engine while it still answers"
      (printf "%d or more, or null for the sum" $need)) -}}
{{- end -}}
{{- if lt (int $drain.endpointStalenessSeconds) 10 -}}
{{- include "plane.refusal" (list "drain.endpointStalenessSeconds"
      (printf "%d is less than 10" (int $drain.endpointStalenessSeconds))
      (print "A pod's DNS record lives for 5 s (30 s under kubeadm and kind) and caches may hold it as long, "
             "so requests still come that long to an engine that refuses them")
      "10 or more") -}}
{{- end -}}
{{- if lt (int $drain.bufferSeconds) 5 -}}
{{- include "plane.refusal" (list "drain.bufferSeconds"
      (printf "%d is less than 5" (int $drain.bufferSeconds))
      "vLLM ends its workers after its last answer, and the sum alone would leave no time for it"
      "5 or more") -}}
{{- end -}}
{{- end -}}

{{/* Readers that the policies would keep out. */}}
{{- define "plane.refuseEngineNobody" -}}
{{- $network := .Values.global.network -}}
{{- if $network.policies -}}
{{- $scaled := list -}}
{{- range $name, $model := include "plane.engineFleets" . | fromJson -}}
{{- if include "plane.engineScales" $model -}}
{{- $scaled = append $scaled $name -}}
{{- end -}}
{{- end -}}
{{- if and $scaled (not $network.autoscalerNamespaces) -}}
{{- include "plane.refusal" (list "global.network.autoscalerNamespaces"
      (printf "empty, while %s scale by queue" (join ", " $scaled))
      "KEDA reads the queue from the pods, and the NetworkPolicies deny what nobody names"
      "the namespace of KEDA, or equal replicas.min and replicas.max") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A fleet that may have no replica: who wakes it, and that it is not asleep again before its clients are back. */}}
{{- define "plane.refuseEngineZero" -}}
{{- $path := printf "%s.replicas.min" .path -}}
{{- $autoscaling := .root.Values.autoscaling -}}
{{- if include "plane.sleeps" .model -}}
{{- if ne .model.fleet .model.name -}}
{{- include "plane.refusal" (list $path
      "0 scales a canary to zero"
      "The stable fleet answers while a canary sleeps, so that nothing would be learned of it"
      "replicas.min to 1, or canary: null") -}}
{{- else if not $autoscaling.demandPort -}}
{{- include "plane.refusal" (list "autoscaling.demandPort"
      (printf "null, while %s is 0" $path)
      "The policy service alone knows that somebody asks for a model without replicas, so it would never be started"
      (printf "the port of the policy service (8091), or %s.replicas.min: 1" .model.name)) -}}
{{- else if le (int $autoscaling.cooldownSeconds) (int .model.startSeconds) -}}
{{- include "plane.refusal" (list "autoscaling.cooldownSeconds"
      (printf "%d is not above the %d s that %s takes to start" (int $autoscaling.cooldownSeconds)
        (int .model.startSeconds) .model.name)
      "It would go back to sleep before those who woke it come back"
      (printf "more than %d, or a startSeconds that was measured" (int .model.startSeconds))) -}}
{{- end -}}
{{- if gt (int $autoscaling.pollingSeconds) 30 -}}
{{- include "plane.refusal" (list "autoscaling.pollingSeconds"
      (printf "%d is more than 30, while %s scales to zero" (int $autoscaling.pollingSeconds) .model.name)
      "The policy service tells for a minute that somebody asked, and KEDA could miss it"
      "30 or less") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plane.refuseEngineVersion" -}}
{{- $oldest := include "plane.oldestEngine" . -}}
{{- if semverCompare (printf "<%s" $oldest) (include "plane.engineVersion" .) -}}
{{- include "plane.refusal" (list (printf "global.images.%s.version" .model.image)
      (printf "%s is older than %s" (include "plane.engineVersion" .) $oldest)
      (printf "It runs %s, and older engines lack flags that the plane relies on" .model.name)
      (printf "an image of vLLM %s or newer" $oldest)) -}}
{{- end -}}
{{- end -}}

{{- define "plane.refuseEngineArgs" -}}
{{- $context := . -}}
{{- range $flag, $value := .model.args -}}
{{- with include "plane.ownedFlag" $flag -}}
{{- include "plane.refusal" (list (printf "%s.args.%s" $context.path $flag)
      "not for an entry to set"
      (printf "The flag is the chart's: %s" .)
      "the entry's own field where there is one, and take the flag out") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plane.refuseEngineEnv" -}}
{{- $context := . -}}
{{- range $variable, $value := .model.env -}}
{{- with include "plane.ownedVariable" (dict "root" $context.root "model" $context.model "variable" $variable) -}}
{{- include "plane.refusal" (list (printf "%s.env.%s" $context.path $variable)
      "not for an entry to set"
      (printf "The variable is the chart's: %s" .)
      "another variable, or take this one out") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Neuron runs what was compiled, for exactly the lengths and cores it was compiled for. */}}
{{- define "plane.refuseEngineNeuron" -}}
{{- $context := . -}}
{{- $model := .model -}}
{{- if include "plane.onNeuron" $model -}}
{{- if not $model.compiled -}}
{{- include "plane.refusal" (list (printf "%s.compiled" .path)
      (printf "absent, while %s is Neuron" $model.accelerator)
      "Without a compiled artifact each replica compiles for minutes to hours at its start"
      "compiled.source and the tensorParallelSize, maxModelLen and maxNumSeqs it was compiled for") -}}
{{- end -}}
{{- if not (include "plane.fromS3" $model) -}}
{{- include "plane.refusal" (list (printf "%s.source" .path)
      (printf "%s is not in S3" $model.source)
      "On Neuron an init container copies the weights from S3"
      "an s3:// prefix") -}}
{{- end -}}
{{- range $field := list "tensorParallelSize" "maxModelLen" "maxNumSeqs" -}}
{{- $is := get $model $field | int -}}
{{- $was := dig $field $is ($model.compiled | default dict) | int -}}
{{- if ne $is $was -}}
{{- /* A canary has the entry's shape, so what can differ is its artifact. */ -}}
{{- $at := eq $model.fleet $model.name | ternary $field (printf "compiled.%s" $field) -}}
{{- include "plane.refusal" (list (printf "%s.%s" $context.path $at)
      (printf "%d, but the artifact was compiled for %d" $is $was)
      "Neuron runs only the shapes that were compiled, and would compile again at each start"
      (printf "%s: %d, or an artifact compiled for %d" $field $was $is)) -}}
{{- end -}}
{{- end -}}
{{- else if $model.compiled -}}
{{- include "plane.refusal" (list (printf "%s.compiled" .path)
      (printf "given, while %s is not Neuron" $model.accelerator)
      "Only Neuron loads compiled artifacts"
      "a Neuron accelerator, or take compiled out") -}}
{{- end -}}
{{- end -}}
