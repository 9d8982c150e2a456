"""A model at zero replicas for hours: one request starts it, idleness ends it, and nobody's silence does either.

KEDA is simulated; the ScaledObject is the one that the chart renders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from test_policy_simulation import HOUR, simulate, surge

from inference_plane import helm
from inference_plane.bench.simulation import NAME, Request, World

START = 240  # seconds: a node and the weights, in this world
NOBODY = lambda t: 0.0  # noqa: E731


@functools.cache
def scaled_object() -> Mapping[str, Any]:
    entry = {"source": "s3://models/summary/v1/", "weightsGiB": 7.6, "accelerator": "l4", "maxModelLen": 16384}
    model = {**entry, "maxNumSeqs": 16, "replicas": {"min": 0, "max": 4}}
    shared = {"aws": {"region": "eu-central-1"}, "tls": {"mode": "none"}, "network": {"policies": False}}
    rendered = helm.template("vllm", values={"global": {**shared, "models": {NAME: model}}})
    return rendered.find("ScaledObject", NAME)["spec"]


def zero(**more: Any) -> dict[str, Any]:
    return {"replicas": 0, "min_replicas": 0, "max_replicas": 4, "slots": 16, "admits": 24, "keda": scaled_object(), **more}


def asks(seconds: float = 10.0, movable: bool = False) -> Callable[[World], None]:
    return lambda world: world._arrive(Request(world.now, seconds, movable))


def switch(*lost: str) -> Callable[[World], None]:
    def step(world: World) -> None:
        world.lost = set(lost)

    return step


COOLDOWN = scaled_object()["cooldownPeriod"]


@pytest.mark.parametrize("movable", [False, True], ids=["turned away", "at Bedrock"])
@pytest.mark.parametrize("seed", range(4))
def test_one_request_starts_it_and_idleness_ends_it(seed: int, movable: bool) -> None:
    """Whatever moment it comes in, and however short its answer is."""
    asked = 600 + 7 * seed
    result = simulate(2 * HOUR, NOBODY, {asked: asks(0.3, movable)}, seed=seed, **zero())
    assert result.steps == [0, 1, 0]
    assert result.replicas.index(1) <= asked + 20
    slept = len(result.replicas) - result.replicas[::-1].index(1)
    assert COOLDOWN <= slept - asked <= COOLDOWN + 120


def test_it_is_back_before_whoever_woke_it() -> None:
    """Those who were told to come back meet an engine."""
    script = {600: asks(), 600 + 422: asks()}
    result = simulate(2 * HOUR, NOBODY, script, **zero())
    assert result.turned_away == 1 and result.steps == [0, 1, 0]


def test_a_model_that_is_asked_for_now_and_then_stays_awake() -> None:
    script = {t: asks() for t in range(600, 6 * HOUR, COOLDOWN - 300)}
    result = simulate(6 * HOUR, NOBODY, script, **zero())
    assert result.steps == [0, 1]


def test_a_model_that_is_asked_for_seldom_starts_once_each_time() -> None:
    times = range(600, 8 * HOUR, COOLDOWN + 900)
    result = simulate(8 * HOUR, NOBODY, {t: asks() for t in times}, **zero())
    assert result.steps == [0, 1] * len(times)


def test_a_working_day() -> None:
    """From nothing to more than one replica holds and back: nobody flaps, and no request runs in a replica that goes."""
    result = simulate(6 * HOUR, surge(0, 2.5, HOUR, 4 * HOUR), **zero())
    assert result.replicas[HOUR - 1] == 0 and result.replicas[HOUR + 20] >= 1
    # 37 requests at once, 12 of which one replica is meant to have.
    busy = result.replicas[HOUR + 1500 : 4 * HOUR]
    assert min(busy) >= 3 and len({*busy}) <= 2
    assert result.steps[-1] == 0 and result.replicas[-1] == 0
    peak = result.steps.index(max(result.steps))
    assert result.steps[peak:] == sorted(result.steps[peak:], reverse=True), "down once and not up again"
    assert result.drained == 0


def test_a_short_silence_of_the_policy_service_changes_nothing() -> None:
    for seed in range(3):
        script = {600: switch("policy"), 630: switch(), 3600: switch("policy"), 3630: switch()}
        assert simulate(2 * HOUR, NOBODY, script, seed=seed, **zero()).steps == [0], seed


def test_a_demand_that_nobody_knows_keeps_one_replica() -> None:
    result = simulate(4 * HOUR, NOBODY, {600: switch("policy"), 2 * HOUR: switch()}, **zero())
    assert result.steps == [0, 1, 0]
    assert 630 <= result.replicas.index(1) <= 680, "after three looks"
    assert set(result.replicas[700 : 2 * HOUR + COOLDOWN - 30]) == {1}


def test_it_scales_by_its_queues_while_the_demand_is_not_known() -> None:
    rate = surge(0, 2.5, HOUR, 3 * HOUR)
    result = simulate(6 * HOUR, rate, {HOUR + 900: switch("policy"), 4 * HOUR: switch()}, **zero())
    assert min(result.replicas[HOUR + 2400 : 3 * HOUR]) >= 3
    assert min(result.replicas[HOUR + 60 : 4 * HOUR]) >= 1 and result.replicas[-1] == 0


def test_nothing_that_can_be_read_never_ends_the_last_replica() -> None:
    script = {HOUR + 900: switch("policy", "queues", "cluster", "engines", "routers")}
    result = simulate(5 * HOUR, surge(0, 1, HOUR, 5 * HOUR), script, **zero())
    assert min(result.replicas[HOUR + 60 :]) >= 1


def test_engines_that_cannot_be_read_are_known_by_the_demand() -> None:
    result = simulate(4 * HOUR, surge(0, 2.5, HOUR, 3 * HOUR), {HOUR + 900: switch("queues")}, **zero())
    assert min(result.replicas[HOUR + 1800 : 3 * HOUR]) >= 3 and result.replicas[-1] == 0


def test_it_waits_for_an_accelerator_as_long_as_it_takes() -> None:
    """Those who come back meanwhile ask for the same replica."""
    script = {t: asks(movable=True) for t in range(600, 2 * HOUR, 450)}
    result = simulate(3 * HOUR, NOBODY, script, shortage=(500, 500 + HOUR), **zero())
    assert result.steps == [0, 1, 0], "the end is that of the cooldown"
    assert result.bedrock >= HOUR // 450 and result.turned_away == 0
