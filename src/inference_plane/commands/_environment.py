"""What commands take as ENV and CHART."""

import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from inference_plane import checkout, environments


class UnknownEnvironment(Exception):
    """No such environment or chart, or no values in it; the message says which there are."""


def path(environment: str) -> pathlib.Path:
    """The values file of an environment: a name under values/, or a path of its own.

    Raises:
        UnknownEnvironment: there is neither.
    """
    named = checkout.VALUES / f"{environment}.yaml"
    if named.is_file():
        return named
    if pathlib.Path(environment).is_file():
        return pathlib.Path(environment)
    names = ", ".join(sorted(file.stem for file in checkout.VALUES.glob("*.yaml"))) or "none yet"
    raise UnknownEnvironment(
        f"no environment or values file {environment!r}. Environments (values/*.yaml): {names}. "
        "Name one of them, or give the path of a values file."
    )


def load(environment: str) -> dict[str, Any]:
    """The values of an environment.

    Raises:
        UnknownEnvironment: there is no such environment, or its file is not a YAML map.
    """
    file = path(environment)
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise UnknownEnvironment(f"{file}: not YAML: {error}. Values are one map of keys.") from error
    if not isinstance(values, dict):
        raise UnknownEnvironment(f"{file}: holds no map. Values are one map of keys, such as global and router.")
    return values


def for_chart(values: Mapping[str, Any], chart: str) -> dict[str, Any]:
    """The part of an environment's values that a chart alone takes: `global`, and its own section at the root.

    Raises:
        UnknownEnvironment: there is no such chart, or its section is not a map.
    """
    if chart not in checkout.INSTALLABLE:
        raise UnknownEnvironment(f"no chart {chart!r}. Charts that install: {', '.join(sorted(checkout.INSTALLABLE))}.")
    if not isinstance(values.get(chart) or {}, Mapping):
        raise UnknownEnvironment(f"{chart}: holds no map. A chart's section is a map of its values.")
    return environments.chart_values(dict(values), chart)
