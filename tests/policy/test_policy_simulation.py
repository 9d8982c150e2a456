"""Hours of the policy in seconds: how much it sends to the fallback against what could not be avoided, how quickly it
acts, how often it changes its mind. "Unavoidable" is what the rules of each request alone send there, of the same
requests: they use the last free place of a fleet, at the price of tries in vain."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from inference_plane.bench.simulation import NAME, Result, World
from inference_plane.policy.book import Book
from inference_plane.policy.decide import Memory, Reason

HOUR = 3600
#: Two engines of 16 places and a queue of 8 each, 15 s a request: 2.1 requests a second fit.
SMALL = {"replicas": 2, "slots": 16, "admits": 24}
Script = Mapping[int, Callable[[World], None]]


def simulate(seconds: int, rate: Callable[[float], float], script: Script | None = None, **world: Any) -> Result:
    one = World(rate, **world)
    one.script = dict(script or {})
    return one.run(seconds)


def both(seconds: int, rate: Callable[[float], float], script: Script | None = None, **world: Any) -> list[Result]:
    """Without and with the policy."""
    return [simulate(seconds, rate, script, policy=policy, **world) for policy in (False, True)]


def surge(low: float, high: float, begin: int, end: int) -> Callable[[float], float]:
    return lambda t: high if begin <= t < end else low


#: Twice what fits for half an hour, which several tests disturb.
RATE = surge(1, 4, 600, 2400)


@functools.cache
def undisturbed() -> Result:
    return simulate(HOUR, RATE, **SMALL)


def test_a_fleet_with_room_is_left_alone() -> None:
    for rate in (1.2, 1.7):
        result = World(lambda t, r=rate: r, **SMALL).run(HOUR)
        assert max(result.shares) == 0 and result.bedrock == 0, rate


def test_a_surge_is_shed_by_what_does_not_fit() -> None:
    """2.3 times what fits for 40 minutes: 57 % cannot be served here."""
    alone, policy = both(2 * HOUR, surge(4, 20, 1800, 4200))
    assert policy.fraction <= alone.fraction + 0.02
    assert policy.vain_tries < alone.vain_tries / 20
    begun = policy.first(lambda share: share > 0)
    assert begun is not None and 1800 <= begun <= 1820, "as soon as the queues are full"
    most = policy.first(lambda share: share >= 45)
    assert most is not None and most <= 1860, "as quickly as requests pile up"
    assert policy.switches == 1
    assert max(policy.shares) <= 70
    steady = policy.shares[2100:4200]
    assert min(steady) >= 45, "it does not sag while the surge lasts"
    assert policy.first(lambda share: share == 0, 4200) <= 4200 + 300, "and it ends"
    assert policy.changes <= 60


def test_hovering_at_the_limit_does_not_flap() -> None:
    alone, policy = both(2 * HOUR, lambda t: 2.15, **SMALL)
    assert policy.switches <= 30, "one in four minutes"
    assert policy.fraction <= alone.fraction + 0.06
    assert max(policy.shares) <= 45


def test_an_autoscaler_catches_up_by_the_demand() -> None:
    """Replicas take four minutes to start; the share carries the surge until then, and then makes way for them."""
    alone, policy = both(2 * HOUR, surge(1, 5, 1800, 5400), max_replicas=8, **SMALL)
    assert policy.fraction <= alone.fraction + 0.04
    assert policy.switches <= 3
    late = policy.shares[1800 + 900 : 5400]
    assert sum(late) / len(late) <= 6, "little is left of it when the replicas are there"
    peak = max(demand for demand in policy.demands[1860:2100] if demand is not None)
    assert 60 <= peak <= 130, "about 75 requests are wanted at once"


def test_a_region_without_accelerators_for_an_hour() -> None:
    alone, policy = both(3 * HOUR, surge(1, 5, 1800, 7200), max_replicas=8, shortage=(1700, 1700 + HOUR), **SMALL)
    assert policy.fraction <= alone.fraction + 0.08
    assert policy.vain_tries < alone.vain_tries / 10
    during = range(2100, 5000)
    assert all(Reason.PENDING in policy.decisions[t].reasons for t in during if policy.shares[t])
    assert min(policy.shares[t] for t in during) >= 35
    assert policy.switches <= 3
    assert max(policy.shares[6000:7200]) <= 10, "the nodes are there again"


def test_nothing_is_left_of_the_fleet_and_it_comes_back() -> None:
    def lose(world: World) -> None:
        for pod in list(world.pods):
            world.kill(pod)

    def start(world: World) -> None:
        world.pods = [world._pod(world.now) for _ in range(2)]

    policy = simulate(HOUR, lambda t: 1.2, {600: lose, 601: start}, **SMALL)
    assert policy.shares[601] == 100 and policy.decisions[601].reasons[0] is Reason.NO_ENGINE
    back = next(t for t in range(620, HOUR) if policy.decisions[t].ready)
    assert 830 <= back <= 850
    assert set(policy.shares[601:back]) == {100}
    assert policy.first(lambda share: share < 100, back) <= back + 35, "after the hold time"
    assert policy.first(lambda share: share == 0, back) <= back + 60, "within a minute"
    assert policy.switches == 1
    # What is asked for at once is known at zero replicas as well: 1.2 a second for 15 s.
    assert 10 <= policy.demands[back - 30] <= 30


def test_a_pod_that_comes_and_goes_keeps_its_share() -> None:
    def flip(down: bool) -> Callable[[World], None]:
        def step(world: World) -> None:
            world.pods[0].down = down

        return step

    script = {t: flip((t // 20) % 2 == 0) for t in range(600, 1800, 20)} | {1800: flip(False)}
    policy = simulate(HOUR, lambda t: 0.7, script, replicas=1, slots=16, admits=24)
    assert set(policy.shares[601:1800]) == {100}, "an engine of 20 s is none"
    assert policy.switches == 1
    assert policy.first(lambda share: share == 0, 1800) <= 1800 + 60


def test_a_sick_fleet_keeps_a_probe_share_and_its_recovery_is_seen() -> None:
    def errors(ratio: float) -> Callable[[World], None]:
        def step(world: World) -> None:
            for pod in world.pods:
                pod.error_ratio = ratio

        return step

    alone, policy = both(HOUR, lambda t: 1.2, {600: errors(1.0), 1800: errors(0.0)}, **SMALL)
    assert policy.vain_tries < alone.vain_tries / 10
    assert policy.first(lambda share: share >= 25) <= 630
    sick = policy.shares[700:1800]
    assert max(sick) == 95, "never all of it: nobody would see that it is well"
    assert sum(sick) / len(sick) >= 85
    assert policy.switches == 1
    assert policy.first(lambda share: share == 0, 1800) <= 1800 + 400


def test_one_sick_engine_of_two_is_the_routers_matter() -> None:
    def errors(ratio: float) -> Callable[[World], None]:
        def step(world: World) -> None:
            world.pods[0].error_ratio = ratio

        return step

    alone, policy = both(HOUR, lambda t: 0.9, {600: errors(1.0), 1800: errors(0.0)}, **SMALL)
    assert policy.fraction <= alone.fraction + 0.04


def test_late_first_tokens_are_avoided() -> None:
    """At a price: a queue that is short enough for the budget leaves places empty now and then."""
    alone, policy = both(HOUR, surge(1, 3.5, 600, 2400), budget=2.0, **SMALL)
    assert policy.late < alone.late / 10
    assert policy.fraction <= alone.fraction + 0.16
    assert policy.switches <= 2


def test_requests_that_may_not_leave_get_the_room_of_those_that_may() -> None:
    """Half may leave: what the arithmetic for all of them says is too little, and steps make up for it."""
    alone, policy = both(HOUR, surge(1, 3, 600, 3000), movable=0.5, **SMALL)
    assert policy.turned_away < alone.turned_away / 3
    assert policy.switches <= 2


def test_a_full_kv_cache_keeps_the_queue_short() -> None:
    """Long prompts: 10 run in an engine that admits 60."""
    alone, policy = both(HOUR, surge(0.8, 2, 600, 2400), replicas=2, slots=10, admits=60, kv_places=10)
    assert policy.waits(0.95) < alone.waits(0.95) / 2
    assert policy.fraction <= alone.fraction + 0.08
    assert policy.switches <= 3


@pytest.mark.parametrize("speed", [5.0, 45.0])
def test_a_fallback_that_is_quicker_or_slower_changes_little(speed: float) -> None:
    alone, policy = both(HOUR, lambda t: 3.5, bedrock_seconds=speed, **SMALL)
    assert abs(policy.fraction - alone.fraction) <= 0.06


@pytest.mark.parametrize("source", ["engines", "routers", "cluster"])
def test_missed_scrapes_change_nothing(source: str) -> None:
    """Five seconds without one of the sources, each minute, in a surge and without."""
    lose, find = (lambda w: w.lost.add(source)), (lambda w: w.lost.clear())
    script = {t: lose for t in range(60, HOUR, 60)} | {t + 5: find for t in range(60, HOUR, 60)}
    seen, missed = undisturbed(), simulate(HOUR, RATE, script, **SMALL)
    assert abs(missed.fraction - seen.fraction) <= 0.03
    assert missed.switches == seen.switches
    assert missed.changes <= 1.5 * seen.changes


def test_lost_signals_hold_a_share_for_a_while_and_not_for_ever() -> None:
    script = {
        1200: lambda w: w.lost.update({"engines", "routers", "cluster"}),
        2400: lambda w: w.lost.clear(),
    }
    policy = simulate(HOUR, surge(1, 4, 600, 3000), script, **SMALL)
    held = policy.shares[1199]
    assert held >= 35
    assert set(policy.shares[1200:1260]) == {held}
    assert policy.first(lambda share: share == 0, 1200) <= 1200 + 140
    assert set(policy.shares[1340:2399]) == {0}
    assert policy.first(lambda share: share >= 30, 2400) <= 2410, "it is back with the signals"


def test_engines_that_do_not_answer_are_seen_through_the_routers() -> None:
    script = {900: lambda w: w.lost.add("engines"), 3000: lambda w: w.lost.clear()}
    seen, blind = undisturbed(), simulate(HOUR, RATE, script, **SMALL)
    assert abs(blind.fraction - seen.fraction) <= 0.03
    assert blind.switches == seen.switches


def test_a_router_that_restarts_or_is_new_is_no_surge() -> None:
    def restart(world: World) -> None:
        """Its counters begin anew."""
        router = next(iter(world.routers.values()))
        for counter in (router.final, router.retried, router.completed):
            counter.clear()

    script = {t: restart for t in (300, 900, 1200, 1500, 2700)}
    seen, restarted = undisturbed(), simulate(HOUR, RATE, script, **SMALL)
    assert abs(restarted.fraction - seen.fraction) <= 0.02
    assert set(restarted.shares[:600]) == {0} and restarted.switches == seen.switches
    assert all(demand is not None and demand < 150 for demand in restarted.demands[5:])


def test_a_new_leader_goes_on_from_the_copied_state() -> None:
    """It has the memory as JSON, from a machine whose clock reads something else, and no counters at all."""

    def take_over(world: World) -> None:
        durations = json.loads(json.dumps(world.book.durations(NAME)))
        copied = json.loads(json.dumps(world.memory.to_json(world.now)))
        world.book, world.memory = Book(world.config), Memory.from_json(copied, world.now)
        world.book.restore_durations(NAME, durations)

    script = {t: take_over for t in (300, 615, 1200, 1800, 2450)}
    seen, changed = undisturbed(), simulate(HOUR, RATE, script, **SMALL)
    for t in (300, 1200, 1800):
        assert changed.shares[t - 1] == changed.shares[t], t
    assert changed.switches == seen.switches
    assert abs(changed.fraction - seen.fraction) <= 0.03
