{{/*
Seconds after which a rollout without progress has failed: the node, all until the engine is healthy, and the leave of
the replica that had the accelerator before: (dict "root" $ "model" $fleet).
*/}}
{{- define "vllm.progressSeconds" -}}
{{- $leave := include "plane.engineGraceSeconds" .root -}}
{{ add .root.Values.startup.nodeBootSeconds (include "plane.engineReadySeconds" .) $leave }}
{{- end -}}
