{{/*
What Prometheus and Grafana get: PrometheusRules, the rules of an engine whichever chart runs it, and dashboards.

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
Labels of a PodMonitor, a PrometheusRule or a dashboard: (dict "root" $ "component" "router" "name" "router"), with
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
"firstTokenSeconds" $seconds), where `readySeconds` is how long a placed replica may take until it serves. The
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

{{/*
plane.dashboard: a Grafana dashboard as JSON from a file of panels: (dict "uid" $uid "text" $yaml). The file has a
`title`, `variables` (name, query, multi, regex) and `panels` (title, description, unit, queries of legend and expr).
*/}}
{{- define "plane.dashboard" -}}
{{- $file := fromYaml .text -}}
{{- $datasource := dict "type" "prometheus" "uid" "${datasource}" -}}
{{- $variables := list (dict "name" "datasource" "label" "Data source" "type" "datasource" "query" "prometheus") -}}
{{- range $file.variables -}}
{{- $variables = append $variables (dict "name" .name "type" "query" "datasource" $datasource "query" .query
      "regex" (.regex | default "") "refresh" 2 "multi" .multi "includeAll" .multi
      "current" (.multi | ternary (dict "text" "All" "value" "$__all") dict)) -}}
{{- end -}}
{{- $panels := list -}}
{{- range $number, $panel := $file.panels -}}
{{- $targets := list -}}
{{- range $index, $query := $panel.queries -}}
{{- $targets = append $targets (dict "refId" (substr $index (add1 $index | int) "ABCDEF") "datasource" $datasource
      "expr" $query.expr "legendFormat" $query.legend) -}}
{{- end -}}
{{- $defaults := dict "unit" $panel.unit "min" 0 "custom" (dict "fillOpacity" 10 "showPoints" "never") -}}
{{- $panels = append $panels (dict "id" (add1 $number) "type" "timeseries" "title" $panel.title
      "description" ($panel.description | default "") "datasource" $datasource "targets" $targets
      "gridPos" (dict "h" 8 "w" 12 "x" (mul 12 (mod $number 2)) "y" (mul 8 (div $number 2)))
      "fieldConfig" (dict "defaults" $defaults "overrides" list)
      "options" (dict "legend" (dict "displayMode" "list" "placement" "bottom" "showLegend" true "calcs" list)
                      "tooltip" (dict "mode" "multi" "sort" "desc"))) -}}
{{- end -}}
{{- dict "uid" .uid "title" $file.title "tags" (list "inference-plane") "schemaVersion" 41 "version" 1 "editable" false
      "refresh" "30s" "time" (dict "from" "now-3h" "to" "now") "templating" (dict "list" $variables)
      "annotations" (dict "list" list) "panels" $panels | toPrettyJson -}}
{{- end -}}

{{/* plane.refuseMonitoring: podMonitor, alerts and dashboards of a chart that do not go together. */}}
{{- define "plane.refuseMonitoring" -}}
{{- $network := .Values.global.network -}}
{{- if and .Values.podMonitor.enabled $network.policies (not $network.scraperNamespaces) -}}
{{- include "plane.refusal" (list "global.network.scraperNamespaces"
      "empty, while podMonitor.enabled is true"
      "Prometheus reads metrics from the pods, and the NetworkPolicies deny what nobody names"
      "the namespace of Prometheus, or podMonitor.enabled: false") -}}
{{- end -}}
{{- range $reader := list "alerts" "dashboards" -}}
{{- if and (get $.Values $reader).enabled (not $.Values.podMonitor.enabled) -}}
{{- include "plane.refusal" (list (printf "%s.enabled" $reader)
      "true, while podMonitor.enabled is false"
      "They read what the PodMonitor collects, and would stay silent or empty without it"
      (printf "podMonitor.enabled: true, or %s.enabled: false" $reader)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.alerts.enabled (gt (include "plane.milliseconds" .Values.podMonitor.interval | int) 60000) -}}
{{- include "plane.refusal" (list "podMonitor.interval"
      (printf "%s is longer than 1m, while alerts.enabled is true" .Values.podMonitor.interval)
      "Alerts look at rates over five minutes, which need some samples"
      "at most 1m, or alerts.enabled: false") -}}
{{- end -}}
{{- end -}}
