"""The service's own metrics, made from its state when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .decide import Reason

if TYPE_CHECKING:
    from .service import Service


def exposition(service: Service, now: float) -> bytes:
    """Prometheus' text. A value that is not known has no sample."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service, now))
    return generate_latest(registry)


class _Collector:
    def __init__(self, service: Service, now: float) -> None:
        self._service, self._now = service, now

    def collect(self) -> Iterator[Metric]:
        service, now = self._service, self._now
        views, models = service.views, ["model"]
        demands = {name: service.demand(name) for name in views}
        yield _gauge("inference_demand", "Requests that want an engine at once", models, demands)
        per_model = {
            "inference_policy_share": ("Points of 100 that go to the fallback first", lambda v: v.decision.share),
            "inference_policy_ready_engines": ("Engines that take requests", lambda v: v.decision.ready),
            "inference_policy_room_requests": ("Requests that the fleet admits at once", lambda v: v.decision.room),
            "inference_policy_wanted_requests": ("Smoothed demand on the fleet", lambda v: v.decision.wanted),
            "inference_policy_pending_pods": ("Engine pods without a node", lambda v: v.signals.pending),
            "inference_policy_pending_seconds": ("Wait of the oldest of them", lambda v: v.signals.pending_seconds),
            "inference_policy_relapses": ("Failures while it recovered", lambda v: v.memory.relapses),
        }
        for name, (text, value) in per_model.items():
            yield _gauge(name, text, models, {model: value(view) for model, view in views.items()})
        reasons = GaugeMetricFamily("inference_policy_reason", "1 while a reason holds", labels=["model", "reason"])
        for model, view in views.items():
            for reason in Reason:
                reasons.add_metric([model, reason.value], float(reason in view.decision.reasons))
        yield reasons
        changes = CounterMetricFamily("inference_policy_share_changes", "Changes of a share", labels=models)
        for model in views:
            changes.add_metric([model], service.changes[model])
        yield changes

        leading = service.elector.leading
        # What was never read is as old as its lead.
        ages = {source: min(age, now - service.led_since) for source, age in service.book.ages(now).items()}
        text = "Age of what is read; of the leader"
        yield _gauge("inference_policy_signal_age_seconds", text, ["source"], ages if leading else {})
        errors = CounterMetricFamily("inference_policy_source_errors", "Failed reads", labels=["source", "kind"])
        for (source, kind), count in service.errors.items():
            errors.add_metric([source, kind], count)
        yield errors
        failing: dict[str, float] = dict.fromkeys(
            ("endpoints", "pods", "engine", "router", "lease", "leader", "certificate"), 0.0)
        for source in service.failing:
            kind = source.split(" ")[0]
            failing[kind] = failing.get(kind, 0.0) + 1
        yield _gauge("inference_policy_sources_failing", "Sources that fail now", ["source"], failing)
        events = CounterMetricFamily("inference_policy_events", "Kubernetes Events", labels=["result"])
        for result in ("written", "withheld"):
            events.add_metric([result], service.events[result])
        yield events
        single = {
            "inference_policy_leading": ("1 on the replica that reads and decides", float(leading)),
            "inference_policy_lease_held": ("1 while its Lease is good", float(service.elector.held(now))),
            "inference_policy_state_age_seconds": ("Age of what is served", now - service.decided_at),
            "inference_policy_tick_seconds": ("What the last tick took", service.tick_seconds),
        }
        if service.certificates is not None:
            text = "When the certificate that is served ends, in Unix time"
            single["inference_policy_certificate_end_seconds"] = text, service.certificates.ends
        for name, (text, value) in single.items():
            if math.isfinite(value):
                yield GaugeMetricFamily(name, text, value)
        yield CounterMetricFamily("inference_policy_config_errors", "Files refused", service.config_errors)


def _gauge(name: str, text: str, labels: list[str], values: dict[str, float | None]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values.items():
        if value is not None and math.isfinite(value):
            gauge.add_metric([label], value)
    return gauge
