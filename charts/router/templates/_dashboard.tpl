{{/*
router.dashboard: a Grafana dashboard as JSON from a file of panels: (dict "uid" $uid "text" $yaml). The file has a
`title`, `variables` (name, query, multi, regex) and `panels` (title, description, unit, queries of legend and expr).
*/}}
{{- define "router.dashboard" -}}
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
