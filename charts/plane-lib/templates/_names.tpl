{{/*
Names and labels. Every helper takes a context: the root ($) of the chart, or a dict of the fields it names.
*/}}

{{/* The namespace of the router: this release's, unless the environment says that it is another. */}}
{{- define "plane.routerNamespace" -}}
{{ .Values.global.routerNamespace | default .Release.Namespace }}
{{- end -}}

{{/* Labels of every object: (dict "root" $ "component" "engine" "name" "clinical-summary"). */}}
{{- define "plane.labels" -}}
{{ include "plane.selectorLabels" . }}
app.kubernetes.io/part-of: inference-plane
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/*
Labels that selectors use. They never change for an object's life, so they hold no version; the release stays out of
them too, because the router selects engines of another release by them.
*/}}
{{- define "plane.selectorLabels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}
