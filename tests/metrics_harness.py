"""Metrics as they are exposed, and what expressions ask of them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser as promql

DATA = Path(__file__).parent / "data"
#: What the engines' metrics port says itself, what a router shows, without and with token budgets, and the policy service.
METRICS_PORT, ROUTER, BUDGETS, POLICY = (
    DATA / name
    for name in ("metrics-port.txt", "envoy-1.40/metrics.txt", "envoy-1.40/metrics-budgets.txt", "policy.txt")
)
CAPTURES = (*sorted((DATA / "vllm-0.32").glob("metrics-*.txt")), METRICS_PORT, ROUTER, BUDGETS, POLICY)

#: What Prometheus itself says of every target.
SYNTHETIC = frozenset({"up"})

#: Labels that the Prometheus Operator gives the targets of a PodMonitor, beside its podTargetLabels.
TARGET_LABELS = frozenset({"job", "namespace", "pod"})

_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? \S+$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

Series = dict[str, str]


def exposed(text: str) -> list[Series]:
    """The series of an exposition as labels, the metric's name being `__name__`."""
    lines = (_LINE.match(line) for line in text.splitlines() if line and not line.startswith("#"))
    return [{"__name__": line[1], **dict(_LABEL.findall(line[2] or ""))} for line in lines if line]


@functools.cache
def captured() -> tuple[Series, ...]:
    """Every series that real engines and a real Envoy showed."""
    return tuple(series for path in CAPTURES for series in exposed(path.read_text()))


def complaints(expression: str, real: Iterable[Series], target_labels: Iterable[str]) -> Iterator[str]:
    """What an expression asks for that no series has: a metric, a label, or a value of one.

    Raises ValueError where it is no PromQL.
    """
    parts: list[Any] = []
    promql.walk(promql.parse(expression), lambda node: parts.append(node))
    selectors = [part for part in parts if isinstance(part, promql.VectorSelector)]
    target = TARGET_LABELS | set(target_labels)
    labels = set(target)
    for selector in selectors:
        if selector.name in SYNTHETIC:
            continue
        candidates = [series for series in real if series["__name__"] == selector.name]
        if not candidates:
            yield f"nothing exposes {selector.name}"
        labels |= {label for series in candidates for label in series}
        own = [matcher for matcher in selector.matchers.matchers if matcher.name not in target]
        if candidates and not any(all(_matches(matcher, series) for matcher in own) for series in candidates):
            yield f"no series of {selector.name} has {', '.join(f'{m.name} {m.value}' for m in own)}"
    for part in parts:
        if isinstance(part, promql.AggregateExpr) and part.modifier:
            yield from (f"no series has the label {name}" for name in part.modifier.labels if name not in labels)


def _matches(matcher: promql.Matcher, series: Mapping[str, str]) -> bool:
    value, wanted = series.get(matcher.name, ""), matcher.value
    match matcher.op:
        case promql.MatchOp.Equal:
            return value == wanted
        case promql.MatchOp.NotEqual:
            return value != wanted
        case promql.MatchOp.Re:
            return bool(re.fullmatch(wanted, value))
    return not re.fullmatch(wanted, value)


def rules(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every alert of every PrometheusRule among the objects."""
    return [
        rule
        for o in objects
        if o["kind"] == "PrometheusRule"
        for group in o["spec"]["groups"]
        for rule in group["rules"]
    ]


def dashboards(objects: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The dashboards in the ConfigMaps among the objects."""
    return [
        json.loads(text)
        for o in objects
        if o["kind"] == "ConfigMap" and o["metadata"]["name"].endswith("-dashboards")
        for text in o["data"].values()
    ]


def queries(dashboard: Mapping[str, Any]) -> list[str]:
    """The expressions of a dashboard as Grafana sends them where every model is picked."""
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for variable in dashboard["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]):
            found.append(match[1])
    return [
        q.replace("$__rate_interval", "1m").replace("$namespace", "inference").replace("$model", ".+") for q in found
    ]
