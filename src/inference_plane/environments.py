"""The environments under values/ and the example values under each chart's ci/: every install that must render."""

import dataclasses
import functools
import pathlib
from typing import Any

import yaml

from inference_plane import checkout


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to install a chart: `name` is for people, `chart` is under charts/, `values` is what Helm gets."""

    name: str
    chart: str
    values: dict[str, Any]


def environments() -> list[pathlib.Path]:
    """Every environment's file."""
    return sorted(checkout.VALUES.glob("*.yaml"))


def chart_values(environment: dict[str, Any], chart: str) -> dict[str, Any]:
    """The part of an environment that a chart takes when it is installed alone: `global` and its own section."""
    if chart == "inference-plane":
        return environment
    own = {key: value for key, value in (environment.get(chart) or {}).items() if key != "enabled"}
    return {"global": environment.get("global") or {}, **own}


def installs(environment: dict[str, Any], chart: str) -> bool:
    """Whether the umbrella installs the chart for an environment: its `enabled`, or the umbrella's own default."""
    if chart == "inference-plane":
        return True
    return ((_defaults().get(chart) or {}) | (environment.get(chart) or {})).get("enabled", True)


@functools.cache
def _defaults() -> dict[str, Any]:
    """The umbrella's own values."""
    return yaml.safe_load((checkout.CHARTS / "inference-plane" / "values.yaml").read_text())


def cases() -> list[Case]:
    """Every environment by the umbrella and by each chart alone that is on in it, and every ci/ file."""
    found = [
        Case(f"{path.stem}/{chart}", chart, chart_values(values, chart))
        for path in environments()
        for values in [yaml.safe_load(path.read_text())]
        for chart in checkout.INSTALLABLE
        if installs(values, chart)
    ]
    found += [
        Case(f"{chart}/ci/{path.stem.removesuffix('-values')}", chart, yaml.safe_load(path.read_text()))
        for chart in checkout.INSTALLABLE
        for path in sorted((checkout.CHARTS / chart / "ci").glob("*-values.yaml"))
    ]
    return found
