{{/*
The router's alerts. Envoy counts, for each cluster: requests that ended there (upstream_rq_*), tries that went on
elsewhere (retry_upstream_rq_*), and endpoints, the no-capacity one of a fleet among them.
*/}}

{{/* The rules of the router as a whole, as JSON. */}}
{{- define "router.rules" -}}
{{- $job := printf "job=%q" (printf "%s/router" .Release.Namespace) -}}
{{- $refused := list -}}
{{- range list "cluster_manager_cds" "http_rds" -}}
{{- /* `increase` sees a bad file for five minutes, so the last moment that it did is that much late. */ -}}
{{- $refused = append $refused (printf `
max_over_time(timestamp(
  increase(envoy_%[1]s_update_rejected{%[2]s}[5m]) + increase(envoy_%[1]s_update_failure{%[2]s}[5m]) > 0
)[1d:1m]) - 300
  > envoy_%[1]s_update_time{%[2]s} / 1000` . $job | trim) -}}
{{- end -}}
{{- $rules := list
      (dict "alert" "InferenceRouterDown" "severity" "critical" "for" "2m" "runbook" "router"
        "expr" (printf `sum by (job) (up{%[1]s}) == 0 or absent(up{%[1]s})` $job)
        "summary" "No router answers"
        "description" "Prometheus reaches no router pod. Nobody is served.")
      (dict "alert" "InferenceRouterOverloaded" "severity" "critical" "for" "1m" "runbook" "router"
        "expr" (printf `
max by (pod) (envoy_overload_envoy_overload_actions_stop_accepting_requests_active{%s}) > 0` $job)
        "summary" "Router out of memory"
        "description" (printf "{{ $labels.pod }} uses 70 %% of its %s or more and answers new requests 503."
          .Values.resources.limits.memory))
      (dict "alert" "InferenceRouterConfigRejected" "severity" "warning" "for" "0m" "runbook" "router"
        "expr" (join "\nor\n" $refused)
        "summary" "Router rejects its routes or clusters"
        "description" (print "{{ $labels.pod }} refused the files of router-routes or router-clusters, and since then "
          "none was good. It goes on with the last good ones; a change of the catalogue is not in force.")) -}}
{{- if include "router.budgets" . -}}
{{- $refuses := eq .Values.budgets.whenUnavailable "refuse" -}}
{{- $rules = append $rules (dict
      "alert" "InferenceTokenBudgetsUnavailable" "severity" ($refuses | ternary "critical" "warning")
      "for" "2m" "runbook" "budgets"
      "expr" (printf `sum by (job) (rate(envoy_cluster_ratelimit_error{%s}[5m])) > 0` $job)
      "summary" "Token budgets cannot be asked for"
      "description" (printf "Requests of teams with a token budget %s, {{ $value | humanize }} a second."
        ($refuses | ternary "are refused with 503" "are served without being counted"))) -}}
{{- end -}}
{{- if include "plane.tls" . -}}
{{- $rules = append $rules (dict
      "alert" "InferenceRouterCertificateEnds" "severity" "warning" "for" "10m" "runbook" "certificates"
      "expr" (printf `
min by (pod) (envoy_listener_ssl_certificate_expiration_unix_time_seconds{%s}) - time() < %s`
        $job (include "plane.certificateAlertSeconds" .))
      "summary" "The router's certificate ends"
      "description" (print "The certificate that {{ $labels.pod }} serves ends in {{ $value | humanizeDuration }}. "
        "A client that verifies it is refused from then on.")) -}}
{{- end -}}
{{- concat $rules (include "router.policyRules" . | fromJsonArray) | toJson -}}
{{- end -}}

{{/* The rules of the policy service, as JSON. */}}
{{- define "router.policyRules" -}}
{{- $rules := list -}}
{{- if include "router.policyServes" . -}}
{{- $job := printf "job=%q" (printf "%s/router-policy" .Release.Namespace) -}}
{{- $router := printf "job=%q" (printf "%s/router" .Release.Namespace) -}}
{{- /* The service's own default. */ -}}
{{- $lost := .Values.policy.tuning.lostSeconds | default 60 -}}
{{- $rules = concat $rules (list
      (dict "alert" "InferencePolicyDown" "severity" "warning" "for" "5m" "runbook" "router"
      "expr" (printf `sum by (job) (up{%[1]s}) == 0 or absent(up{%[1]s})` $job)
      "summary" "No policy service answers"
      "description" (print "Prometheus reaches no pod of router-policy. Routers keep the shares that they had last; a full "
        "or empty fleet is met request by request."
        (include "plane.models" . | fromJson | include "plane.anySleeps" | empty
          | ternary "" " Models that sleep are woken, one replica each.")))
      (dict "alert" "InferencePolicyLeaderless" "severity" "warning" "for" "5m" "runbook" "router"
      "expr" (printf `sum by (job) (inference_policy_leading{%s}) != 1` $job)
      "summary" "Not exactly one policy service decides"
      "description" (print "{{ $value }} of the pods of router-policy lead. With none, the shares stay as they are; with "
        "two, routers hear either."))
      (dict "alert" "InferencePolicyReadingsOld" "severity" "warning" "for" "2m" "runbook" "router"
      "expr" (printf `max by (source) (inference_policy_signal_age_seconds{%s}) > %v` $job $lost)
      "summary" "The policy service decides by old readings: {{ $labels.source }}"
      "description" (print "{{ $labels.source }} were last read {{ $value | humanizeDuration }} ago. A share that nothing "
        "speaks for any more is lowered to 0, and demand is unknown."))) -}}
{{- if include "router.policyDecides" . -}}
{{- $rules = append $rules (dict
      "alert" "InferencePolicyUnheard" "severity" "warning" "for" "5m" "runbook" "router"
      "expr" (printf `
increase(envoy_runtime_update_failure{%[1]s}[5m]) > 0.9 * increase(envoy_runtime_update_attempt{%[1]s}[5m])` $router)
      "summary" "A router hears nothing of the policy service"
      "description" (print "{{ $labels.pod }} got no answer to nine of ten questions or more. It keeps the shares that it "
        "had last, raised ones too.")) -}}
{{- end -}}
{{- if include "plane.tls" . -}}
{{- $rules = append $rules (dict
      "alert" "InferencePolicyCertificateEnds" "severity" "warning" "for" "10m" "runbook" "certificates"
      "expr" (printf `min by (pod) (inference_policy_certificate_end_seconds{%s}) - time() < %s`
        $job (include "plane.certificateAlertSeconds" .))
      "summary" "The policy service's certificate ends"
      "description" (print "The certificate that {{ $labels.pod }} serves ends in {{ $value | humanizeDuration }}. "
        "From then on routers keep the shares that they had last.")) -}}
{{- end -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/* The rules of one model, as JSON: (dict "root" $ "model" $model). */}}
{{- define "router.modelRules" -}}
{{- $model := .model -}}
{{- $values := .root.Values -}}
{{- $alerts := $values.alerts -}}
{{- $at := printf `job="%s/router", envoy_cluster_name` .root.Release.Namespace -}}
{{- /* Whoever answers for the fleet: where there is a canary, both fleets. */ -}}
{{- $fleets := $model.canary | empty | ternary $model.name (printf "%s(-canary)?" $model.name) -}}
{{- $stable := printf `%s="fleet/%s"` $at $model.name -}}
{{- $fleet := printf `%s=~"fleet/%s"` $at $fleets -}}
{{- $bedrock := printf `%s="bedrock/%s"` $at $model.name -}}
{{- $both := printf `%s=~"(fleet|bedrock)/%s"` $at $fleets -}}
{{- $answers := printf `envoy_cluster_upstream_rq_completed{%s}` $both -}}
{{- $engines := printf `max(envoy_cluster_membership_healthy{%s}) - 1` $stable -}}
{{- $share := "{{ $value | humanizePercentage }}" -}}
{{- $page := eq $model.traffic "interactive" | ternary "critical" "warning" -}}
{{- $min := int $model.replicas.min -}}
{{- $max := int $model.replicas.max -}}
{{- $sleeps := include "plane.sleeps" $model -}}
{{- $rules := list -}}

{{- $failing := include "router.share" (list
      (printf `rate(envoy_cluster_upstream_rq_xx{%s, envoy_response_code_class="5"}[10m])` $fleet)
      $answers $alerts.errorShare) -}}
{{- if or (not $model.fallback) $sleeps -}}
{{- /* No engine is an alert of its own, and pages as this one does. */ -}}
{{- $failing = printf "%s\nunless\n%s < 1" $failing $engines -}}
{{- end -}}
{{- $rules = append $rules (dict
      "alert" "InferenceRequestsFail" "severity" $page "for" "5m" "runbook" "router"
      "expr" $failing
      "summary" (printf "Requests fail: %s" $model.name)
      "description" (printf (print "%s of the answers are 5xx from the fleet or from the router in its place; "
        "no other try helped.") $share)) -}}

{{- $then := "Clients get 503." -}}
{{- if $model.fallback -}}
{{- $then = "Amazon Bedrock answers what may go there; the rest gets 503." -}}
{{- end -}}
{{- if $sleeps -}}
{{- /*
Asleep on purpose is no alert. Whoever woke it is told to come back, so one request is reason to watch it for as long as
a replica takes to start, and some time more, which is shorter than KEDA's cooldown. Of a fleet that is known to be
empty all that may leave goes to Amazon Bedrock at once, so that both clusters count.
*/ -}}
{{- $start := int $model.startSeconds -}}
{{- $rules = append $rules (dict
      "alert" "InferenceStaysAsleep" "severity" (empty $model.fallback | ternary $page "warning")
      "for" (printf "%ds" $start) "runbook" "node-starvation"
      "expr" (printf `
%s < 1
and
sum(increase(envoy_cluster_upstream_rq_total{%s}[%ds])) > 0` $engines $both (add $start 300))
      "summary" (printf "A model at zero replicas does not start: %s" $model.name)
      "description" (printf (print "It was asked for, and for %d s, which a replica takes to start, no engine has been "
        "ready. %s") $start $then)) -}}
{{- else -}}
{{- $rules = append $rules (dict
      "alert" "InferenceNoEngine" "severity" (empty $model.fallback | ternary $page "warning")
      "for" "2m" "runbook" "node-starvation"
      "expr" (printf `
%s < 1
and
sum(increase(envoy_cluster_upstream_rq_total{%s}[5m])) > 0` $engines $fleet)
      "summary" (printf "No engine is ready: %s" $model.name)
      "description" (printf "Requests come in and no engine is ready; replicas.min is %d. %s" $min $then)) -}}
{{- end -}}

{{- if include "plane.tls" .root -}}
{{- $rules = append $rules (dict
      "alert" "InferenceEngineUntrusted" "severity" "warning" "for" "1m" "runbook" "certificates"
      "expr" (printf `
sum by (envoy_cluster_name) (increase(envoy_cluster_ssl_fail_verify_error{%[1]s}[5m]))
+ sum by (envoy_cluster_name) (increase(envoy_cluster_ssl_fail_verify_san{%[1]s}[5m])) > 0` $fleet)
      "summary" (printf "An engine does not prove its name: %s" $model.name)
      "description" (print "Routers refused the certificate of an engine of {{ $labels.envoy_cluster_name }} "
        "{{ $value | humanize }} times in 5 minutes, and sent it nothing.")) -}}
{{- end -}}

{{- $small := printf `%s < %d` $engines $min -}}
{{- if gt $max $min -}}
{{- $full := printf `%s < %d
  and
  sum(rate(envoy_cluster_retry_upstream_rq{%s, envoy_response_code="429"}[5m])) > 0` $engines $max $fleet -}}
{{- $small = $sleeps | empty | ternary (printf "%s\nor\n(\n  %s\n)" $small $full) $full -}}
{{- end -}}
{{- $rules = append $rules (dict
      "alert" "InferenceFleetTooSmall" "severity" "warning" "for" $alerts.fleetPatience "runbook" "node-starvation"
      "expr" $small
      "summary" (printf "Fleet smaller than asked: %s" $model.name)
      "description" (printf (print "{{ $value }} engines are ready; replicas are %d to %d. That has lasted %s: "
        "fewer than the minimum, or fewer than the maximum while engines turn requests away.")
        $min $max $alerts.fleetPatience)) -}}

{{- if and $model.canary (gt (int ($model.canary | default dict).percent) 0) -}}
{{- $rules = append $rules (dict
      "alert" "InferenceCanaryEmpty" "severity" "warning" "for" $alerts.fleetPatience "runbook" "node-starvation"
      "expr" (printf `max(envoy_cluster_membership_healthy{%s="fleet/%s-canary"}) - 1 < 1` $at $model.name)
      "summary" (printf "Canary without an engine: %s" $model.name)
      "description" (printf (print "No engine of the canary has been ready for %s, so the %d %% of the requests that are "
        "meant for it go to the stable fleet.") $alerts.fleetPatience (int $model.canary.percent))) -}}
{{- end -}}

{{- $rules = append $rules (dict
      "alert" "InferenceRequestsTurnedAway" "severity" $page "for" "10m" "runbook" "node-starvation"
      "expr" (include "router.share" (list
        (printf `rate(envoy_cluster_upstream_rq{%s, envoy_response_code="429"}[10m])` $fleet)
        $answers $alerts.refusedShare))
      "summary" (printf "Clients are turned away: %s" $model.name)
      "description" (printf "%s of the answers are 429: the engines are full. Replicas are %d to %d."
        $share $min $max)) -}}

{{- $rules = append $rules (dict
      "alert" "InferenceRequestsTimeOut" "severity" "warning" "for" "10m" "runbook" "latency"
      "expr" (include "router.share" (list
        (printf (print `rate(envoy_cluster_upstream_rq_timeout{%[1]s}[10m]) + `
          `rate(envoy_cluster_upstream_rq_per_try_timeout{%[1]s}[10m])`) $both)
        $answers 0.01))
      "summary" (printf "Requests time out: %s" $model.name)
      "description" (printf "%s of the answers met requestTimeout (%s) or, for one try, hangGuard (%s)."
        $share $values.requestTimeout $values.hangGuard)) -}}

{{- $rules = append $rules (dict
      "alert" "InferenceLimitReached" "severity" "warning" "for" "0m" "runbook" "router"
      "expr" (printf `
sum by (envoy_cluster_name) (
  increase(envoy_cluster_upstream_rq_pending_overflow{%[1]s}[10m])
  + increase(envoy_cluster_upstream_rq_retry_overflow{%[1]s}[10m])
) > 0` $both)
      "summary" (printf "A limit of the router refuses requests: %s" $model.name)
      "description" (printf (print "{{ $value | humanize }} requests or retries to {{ $labels.envoy_cluster_name }} "
        "met a limit within ten minutes. Per router limits.requests is %d, limits.pendingRequests %d, "
        "fallback.maxConcurrent %d.")
        (int $values.limits.requests) (int $values.limits.pendingRequests) (int $values.fallback.maxConcurrent))) -}}

{{- if include "router.budgets" .root -}}
{{- $spent := printf `envoy_cluster_ratelimit_over_limit{%s}` $fleet -}}
{{- $rules = append $rules (dict
      "alert" "InferenceTokenBudgetSpent" "severity" "warning" "for" "10m" "runbook" "budgets"
      "expr" (printf `
sum(rate(%[1]s[10m]))
  / (sum(rate(%[1]s[10m])) + (sum(rate(envoy_cluster_ratelimit_ok{%[2]s}[10m])) or vector(0))) > %[3]v
and
sum(increase(%[1]s[10m])) >= 10` $spent $fleet $alerts.refusedShare)
      "summary" (printf "A token budget is spent: %s" $model.name)
      "description" (printf (print "%s of the requests of teams with a token budget are answered 429, because a budget "
        "is spent. The audit lines tell whose.") $share)) -}}
{{- end -}}

{{- if $model.fallback -}}
{{- $target := $model.fallback.model -}}
{{- $why := "the engine was full" -}}
{{- with $model.firstTokenBudget -}}
{{- $why = printf "%s, or the first token would have missed its budget of %s" $why . -}}
{{- end -}}
{{- $rules = append $rules (dict
      "alert" "InferenceEnginesTurnAway" "severity" "warning" "for" "10m" "runbook" "latency"
      "expr" (include "router.share" (list
        (printf `rate(envoy_cluster_retry_upstream_rq{%s, envoy_response_code="429"}[10m])` $fleet)
        (printf `envoy_cluster_upstream_rq_total{%s}` $fleet) $alerts.refusedShare))
      "summary" (printf "Engines turn requests away: %s" $model.name)
      "description" (printf "%s of the tries in the fleet ended in 429: %s. They went on elsewhere." $share $why)) -}}

{{- $fallen := include "router.share" (list
      (printf `rate(envoy_cluster_upstream_rq_completed{%s}[10m])` $bedrock) $answers $alerts.fallbackShare) -}}
{{- if $sleeps -}}
{{- /* What it is there for while a replica starts. */ -}}
{{- $fallen = printf "%s\nunless\n%s < 1" $fallen $engines -}}
{{- end -}}
{{- $rules = append $rules (dict
      "alert" "InferenceFallbackShare" "severity" "warning" "for" "15m" "runbook" "fallback"
      "expr" $fallen
      "summary" (printf "Fallback in use: %s" $model.name)
      "description" (printf "Amazon Bedrock (%s) gives %s of the answers, at the price of its tokens."
        $target $share)) -}}

{{- $rules = append $rules (dict
      "alert" "InferenceBedrockErrors" "severity" $page "for" "5m" "runbook" "fallback"
      "expr" (include "router.share" (list
        (printf `rate(envoy_cluster_upstream_rq{%s, envoy_response_code=~"40[34]|429|5.."}[10m])` $bedrock)
        (printf `envoy_cluster_upstream_rq_completed{%s}` $bedrock) $alerts.errorShare))
      "summary" (printf "Amazon Bedrock refuses or fails: %s" $model.name)
      "description" (printf "%s of the answers of %s are throttles, denials or errors, which clients see."
        $share $target)) -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/*
That a part of something counted is above a share of it, where ten were counted within ten minutes: (list PART COUNTER
SHARE), PART being a rate. Without traffic there is no number, which is above nothing.
*/}}
{{- define "router.share" -}}
{{ printf `sum(%[1]s)
  / sum(rate(%[2]s[10m])) > %[3]v
and
sum(increase(%[2]s[10m])) >= 10` (index . 0) (index . 1) (index . 2) }}
{{- end -}}

{{/*
Which of Envoy's statistics a scrape asks for, as an expression over their names inside Envoy: what alerts and
dashboards read. Everything would be some 270 series a cluster.
*/}}
{{- define "router.scraped" -}}
{{- list
      `^cluster\.(fleet|bedrock)/[^.]+\.membership_(healthy|total)$`
      `^cluster\.(fleet|bedrock)/[^.]+\.(retry\.)?upstream_rq_[0-9]{3}$`
      `^cluster\.(fleet|bedrock)/[^.]+\.upstream_rq_([0-9]xx|total|completed|active|time|timeout|per_try_timeout)$`
      `^cluster\.(fleet|bedrock)/[^.]+\.upstream_rq_(pending|retry)_overflow$`
      `^cluster\.fleet/[^.]+\.ratelimit\.(ok|over_limit|error)$`
      `^cluster\.fleet/[^.]+\.ssl\.fail_verify_(error|san)$`
      `^listener\.plane\.ssl\.certificate\.certificate\.expiration_unix_time_seconds$`
      `^runtime\.update_(attempt|failure)$`
      `^cluster_manager\.cds\.update_(rejected|failure|time)$`
      `^http\.plane\.rds\.plane\.update_(rejected|failure|time)$`
      `^http\.plane\.downstream_(rq_([0-9]xx|active)|cx_active)$`
      `^http\.no_capacity\.downstream_rq_completed$`
      `^usage\.(requests|tokens)\.`
      `^overload\.envoy\.(overload_actions\.stop_accepting_requests\.active|resource_monitors\.fixed_heap\.pressure)$`
    | join "|" -}}
{{- end -}}
