"""The catalogue of the elastic plane, and what a run takes of it. Pure, but for the file that it reads."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from inference_plane import helm

from .times import Times

ENVIRONMENT = Path(__file__).with_name("environment.yaml")
#: What the control loops add to a start, in seconds, at most (docs/scale-to-zero.md).
LOOPS = 30
#: Seconds by which a model stays awake for longer than a start takes, so that those who woke it find it so.
STAYS = 15


@functools.cache
def environment() -> dict[str, Any]:
    """The values with the whole catalogue. Not to be changed."""
    return yaml.safe_load(ENVIRONMENT.read_text())


def chosen(names: Collection[str], times: Times) -> dict[str, Any]:
    """The values for a plane on which these models can be asked for.

    A model that sleeps is in it only where it is asked for; the others are all in it, unless none of them is. Of those
    that sleep, `startSeconds` is what `times` and the control loops take, and they go back to sleep soon after.

    Raises:
        LookupError: the catalogue has not all of them.
    """
    whole = environment()
    every = whole["global"]["models"]
    if missing := sorted(set(names) - every.keys()):
        raise LookupError(
            f"--target elastic: has no model {', '.join(missing)}, only {', '.join(sorted(every))}. Every request for "
            f"it would be a 404. Set --model {missing[0]}=NAME"
        )
    asleep = set(sleeping(whole))
    left_out = asleep - set(names) | (set() if set(names) - asleep else every.keys() - asleep)
    values = helm.merged(whole, {"global": {"models": {name: None for name in left_out}}})
    sleep = sleeping(values)
    if not sleep:
        return values
    start = math.ceil(sum(vars(times).values())) + LOOPS
    return helm.merged(values, {
        "global": {"models": {name: {"startSeconds": start} for name in sleep}},
        **{engine: {"autoscaling": {"cooldownSeconds": start + STAYS}} for engine in ("vllm", "kserve")},
    })


def models(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values["global"]["models"]


def sleeping(values: Mapping[str, Any]) -> list[str]:
    """The models that may have no replica."""
    return [name for name, entry in models(values).items() if entry["replicas"]["min"] == 0]


def engine(entry: Mapping[str, Any]) -> str:
    return entry.get("engine", "vllm")


def kserve(values: Mapping[str, Any]) -> bool:
    """Whether KServe runs any of the models."""
    return any(engine(entry) == "kserve" for entry in models(values).values())


def deployments(values: Mapping[str, Any]) -> dict[str, str]:
    """The name of each model's Deployment; KServe gives its own another one."""
    return {
        name: f"{name}-predictor" if engine(entry) == "kserve" else name for name, entry in models(values).items()
    }
