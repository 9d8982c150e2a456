{{/*
What Prometheus gets: PrometheusRules, and the rules of an engine whichever chart runs it.

Rules tell series apart by `job`, which the Prometheus Operator sets to NAMESPACE/NAME of the PodMonitor, and by `pod`;
everything else is in the exposition. Ratios have a floor of requests below them, and a ratio without any traffic is no
number, which no comparison takes.
*/}}

{{/*
plane.prometheusRule: (dict "root" $ "component" "router" "name" "router" "namespace" $namespace "rules" $rules), with
"model" $model where the rules are of one. A rule is (dict "alert" "severity" "for" "runbook" "expr" "summary"
"description"); its runbook is a file under global.runbookUrl, with a heading of the alert's name.
*/}}
{{- define "plane.prometheusRule" -}}
{{- $labels := dict "namespace" .namespace -}}
{{- $runbooks := trimSuffix "/" .root.Values.global.runbookUrl -}}
{{- with .model -}}
{{- $_ := merge $labels (dict "model" .name "residency" .residency) -}}
{{- range $label, $value := dict "team" .team "cost_center" .costCenter -}}
{{- if $value -}}{{- $_ := set $labels $label $value -}}{{- end -}}
{{- end -}}
{{- end -}}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels:
    {{- include "plane.monitoringLabels" . | nindent 4 }}
spec:
  groups:
    - name: {{ .namespace }}/{{ .name }}
      rules:
        {{- range .rules }}
        - alert: {{ .alert }}
          expr: |-
            {{- .expr | trim | nindent 12 }}
          for: {{ .for }}
          labels:
            severity: {{ .severity }}
            {{- toYaml $labels | nindent 12 }}
          annotations:
            summary: {{ .summary | quote }}
            description: {{ .description | quote }}
            runbook_url: {{ printf "%s/%s.md#%s" $runbooks .runbook (lower .alert) }}
        {{- end }}
{{- end -}}

{{/*
Labels of a PodMonitor or a PrometheusRule: (dict "root" $ "component" "router" "name" "router"), with
"model" $model where it is of one.
*/}}
{{- define "plane.monitoringLabels" -}}
{{ include "plane.labels" (pick . "root" "component" "name") }}
{{- with .model }}
{{ include "plane.modelLabels" . }}
{{- end }}
{{- with .root.Values.global.monitoringLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
plane.engineRules: the rules of a fleet's engines as JSON: (dict "model" $fleet "readySeconds" $seconds
"firstTokenSeconds" $seconds "certificateSeconds" $seconds), where `readySeconds` is how long a placed replica may take
until it serves, and `certificateSeconds` how long before its end a certificate is an alert, 0 where there is none. The
PodMonitor has the fleet's name.
*/}}
{{- define "plane.engineRules" -}}
{{- $model := .model -}}
{{- $job := printf "job=%q" (printf "%s/%s" $model.namespace $model.fleet) -}}
{{- $fit := include "plane.fit" $model | fromJson -}}
{{- $rules := list -}}
{{- $rules = append $rules (dict
      "alert" "InferenceKVCacheFull" "severity" "warning" "for" "10m" "runbook" "memory"
      "expr" (printf `
max by (pod) (avg_over_time(vllm:kv_cache_usage_perc{%[1]s}[10m])) > 0.9
and
sum by (pod) (rate(vllm:num_preemptions_total{%[1]s}[10m])) > 0` $job)
      "summary" (printf "KV cache full: %s" $model.fleet)
      "description" (printf (print
          "The KV cache of {{ $labels.pod }} is {{ $value | humanizePercentage }} full, and the engine preempts "
          "requests and computes them again. It holds %d requests of %d tokens at once; maxNumSeqs is %d.")
          (int $fit.worstCaseConcurrency) (int $model.maxModelLen) (int $model.maxNumSeqs))) -}}
{{- $rules = append $rules (dict
      "alert" "InferenceEngineRestarts" "severity" "warning" "for" "0m" "runbook" "memory"
      "expr" (printf `sum by (pod) (changes(process_start_time_seconds{%s}[1h])) >= 2` $job)
      "summary" (printf "Engine restarts: %s" $model.fleet)
      "description" (print "The engine in {{ $labels.pod }} started anew {{ $value }} times within an hour. "
          "Out of memory is the usual cause, on the accelerator or in the container.")) -}}
{{- $rules = append $rules (dict
      "alert" "InferenceReplicaNotReady" "severity" "warning" "for" (printf "%vs" .readySeconds)
      "runbook" "model-load"
      "expr" (printf `max by (pod) (up{%s}) == 0` $job)
      "summary" (printf "Replica does not become ready: %s" $model.fleet)
      "description" (printf (print "{{ $labels.pod }} has a node, and its engine has served no metrics for %v s. "
          "%v GiB of weights and the engine's start are expected to take no longer.")
          .readySeconds $model.weightsGiB)) -}}
{{- with .certificateSeconds -}}
{{- $rules = append $rules (dict
      "alert" "InferenceEngineCertificateEnds" "severity" "warning" "for" "10m" "runbook" "certificates"
      "expr" (printf `
min by (pod) (plane_engine_certificate_expiry_timestamp_seconds{%s}) - time() < %v` $job .)
      "summary" (printf "An engine's certificate ends: %s" $model.fleet)
      "description" (print "The certificate that {{ $labels.pod }} serves ends in {{ $value | humanizeDuration }}. "
          "The router sends it nothing from then on.")) -}}
{{- end -}}
{{- /* A stream that misses its budget moves on before its first token, so it is the router that counts those. */ -}}
{{- if and (eq $model.traffic "interactive") (not $model.firstTokenBudget) -}}
{{- $rules = append $rules (dict
      "alert" "InferenceFirstTokenLate" "severity" "critical" "for" "10m" "runbook" "latency"
      "expr" (printf `
histogram_quantile(0.95, sum by (le) (rate(vllm:time_to_first_token_seconds_bucket{%[1]s}[10m]))) > %[2]v
and
sum(increase(vllm:time_to_first_token_seconds_count{%[1]s}[10m])) >= 10` $job .firstTokenSeconds)
      "summary" (printf "First token late: %s" $model.fleet)
      "description" (printf (print "One request of 20 waits {{ $value | humanizeDuration }} or longer for its first "
          "token; the objective is %v s.") .firstTokenSeconds)) -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/* plane.refuseMonitoring: podMonitor and alerts of a chart that do not go together. */}}
{{- define "plane.refuseMonitoring" -}}
{{- $network := .Values.global.network -}}
{{- if and .Values.podMonitor.enabled $network.policies (not $network.scraperNamespaces) -}}
{{- include "plane.refusal" (list "global.network.scraperNamespaces"
      "empty, while podMonitor.enabled is true"
      "Prometheus reads metrics from the pods, and the NetworkPolicies deny what nobody names"
      "the namespace of Prometheus, or podMonitor.enabled: false") -}}
{{- end -}}
{{- if and .Values.alerts.enabled (not .Values.podMonitor.enabled) -}}
{{- include "plane.refusal" (list "alerts.enabled"
      "true, while podMonitor.enabled is false"
      "They read what the PodMonitor collects, and would stay silent without it"
      "podMonitor.enabled: true, or alerts.enabled: false") -}}
{{- end -}}
{{- if and .Values.alerts.enabled (gt (include "plane.milliseconds" .Values.podMonitor.interval | int) 60000) -}}
{{- include "plane.refusal" (list "podMonitor.interval"
      (printf "%s is longer than 1m, while alerts.enabled is true" .Values.podMonitor.interval)
      "Alerts look at rates over five minutes, which need some samples"
      "at most 1m, or alerts.enabled: false") -}}
{{- end -}}
{{- end -}}
