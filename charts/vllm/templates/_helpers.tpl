{{/*
Seconds after which a rollout without progress has failed: the node, the init container's copy where there is one, the
start, and the leave of the replica that had the accelerator before: (dict "root" $ "model" $fleet).
*/}}
{{- define "vllm.progressSeconds" -}}
{{- $copy := include "plane.onNeuron" .model | empty | ternary 0 (include "plane.engineLoadSeconds" . | int) -}}
{{ add .root.Values.startup.nodeBootSeconds $copy (include "plane.engineStartSeconds" .) (include "plane.engineGraceSeconds" .root) }}
{{- end -}}
