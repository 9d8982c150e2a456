"""The pure parts of the policy service, one by one: configuration, readings, the book, the decision, demand, Events."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from pathlib import Path
from typing import Any

import pytest
from policy_bed import ENVOY, IDLE, MODEL, NAMESPACE, SATURATED, World, engine_text

import inference_plane.policy as package
from inference_plane.policy.book import Book
from inference_plane.policy.config import Config, ConfigError, Model, Routers, Tuning, parse
from inference_plane.policy.decide import Decision, Memory, Reason, Signals, decide
from inference_plane.policy.demand import Asked, demand, remember
from inference_plane.policy.events import Budget, event, words
from inference_plane.policy.readings import (
    ROUTER_FILTER,
    ClusterReading,
    EngineReading,
    GarbageError,
    WaitingPods,
    parse_engine,
    parse_router,
    quantile,
)
from inference_plane.policy.service import Service, View, _imported

TUNING = Tuning()
FLEET = (NAMESPACE, MODEL)
ENTRY = Model(namespace=NAMESPACE, fleets=(MODEL,), fallback=True, requestsPerReplica=12)
#: Two engines that run one request each; everything is known and new.
WELL = Signals(
    ready=2, cluster_age=0, routers_ready=2, running=2, engines_age=0, in_fleet=2, tries=100, routers_age=0
)
#: Both are full, 6 run and 6 wait in each; 12 more are at the fallback.
FULL = dataclasses.replace(WELL, running=12, waiting=12, in_fleet=24, saturated=6.0, elsewhere=12)


def decided(signals: Signals, memory: Memory | None = None, now: float = 1000.0, model: Model = ENTRY) -> Decision:
    return decide(model, TUNING, signals, memory or Memory(known_at=now), now)[0]


class Run:
    """Decisions second by second."""

    def __init__(self, model: Model = ENTRY, tuning: Tuning = TUNING) -> None:
        self.model, self.tuning, self.memory, self.now = model, tuning, Memory(known_at=0.0), 0.0

    def __call__(self, signals: Signals, seconds: int = 1) -> list[int]:
        shares = []
        for _ in range(seconds):
            self.now += 1
            self.last, self.memory = decide(self.model, self.tuning, signals, self.memory, self.now)
            shares.append(self.last.share)
        return shares


# The configuration.


def configured(**changes: Any) -> Config:
    return parse(json.dumps(World().config() | changes))


def of_model(**changes: Any) -> dict[str, Any]:
    model = {"namespace": "i", "fleets": ["a"], "fallback": True, "requestsPerReplica": 1}
    return {"models": {"a": model | changes}}


def test_the_config_of_the_docstring_is_one() -> None:
    text = package.__doc__.split("need a restart:")[1].split("`namespace` is")[0]
    shown = parse(text)
    assert shown.models["summary"].fleets == ("summary", "summary-canary")
    least = {"namespace": "inference", "routers": {"namespace": "inference"}, "models": {}}
    assert shown.tls and shown.tls.name == "router-policy.inference.svc.cluster.local"
    assert dataclasses.replace(shown, models={}, tls=None) == parse(json.dumps(least)), "what stands there are the defaults"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tikSeconds": 1}, "tikSeconds: nobody knows this key; known are lease, listen, models, namespace, routers, "),
        ({"tuning": {"hold": 1}}, "tuning.hold: nobody knows this key; known are "),
        ({"models": {"a": {}}}, "models.a.namespace: it is missing and has no default"),
        ({"models": {"a": "b"}}, "models.a: it is no object"),
        ({"tls": {"name": "x"}}, "tls.certificate: it is missing and has no default"),
        ({"listen": {"port": 8091}}, "listen.statusPort: 8091 is the port of the shares; they are served apart"),
        (of_model(fleets=[]), "models.a.fleets: it is empty, so there is nothing to read"),
        (of_model(fleets="a"), "models.a.fleets: it is no list"),
        (of_model(fallback="yes"), 'models.a.fallback: "yes" is no true or false'),
        (of_model(requestsPerReplica=1.5), "models.a.requestsPerReplica: 1.5 is no whole number"),
        (of_model(requestsPerReplica=0), "models.a.requestsPerReplica: it is below 1"),
        ({"tickSeconds": 0}, "tickSeconds: it is not above 0"),
        ({"lease": {"durationSeconds": 5}}, "lease: durationSeconds 5 is not 2 x renewSeconds 5 or more, so one slow "),
        ({"tuning": {"easyUse": 1}}, "tuning.easyUse: it is not below targetUse and 1, so the share would swing"),
        ({"tuning": {"holdSeconds": -1}}, "tuning.holdSeconds: -1 is not above 0"),
    ],
)
def test_a_wrong_configuration_names_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(**change)
    assert str(error.value).startswith(message)


def test_whole_numbers_may_be_written_as_helm_writes_them() -> None:
    model = World().config()["models"][MODEL] | {"requestsPerReplica": 72.0, "firstTokenBudgetMs": 2000}
    assert configured(models={MODEL: model}).models[MODEL].requestsPerReplica == 72


# Readings.


def test_a_saturated_engine_as_captured() -> None:
    reading = parse_engine(SATURATED.encode())
    assert (reading.running, reading.waiting) == (4, 8)
    assert reading.kv_cache == pytest.approx(0.00073, abs=1e-5)
    assert reading.first_tokens[0.25] == 4 and reading.first_tokens[0.1] == 0 and reading.first_tokens[math.inf] == 4


def test_an_engine_without_a_queue_as_captured() -> None:
    reading = parse_engine(IDLE.encode())
    assert (reading.running, reading.waiting) == (4, 0)


def test_data_parallel_engines_of_a_pod_are_added_up() -> None:
    text = engine_text(3, 1)
    second = "\n".join(line.replace('engine="0"', 'engine="1"') for line in text.splitlines() if "_requests_" in line)
    reading = parse_engine(f"{text}\n{second}\n".encode())
    assert (reading.running, reading.waiting) == (6, 2)


@pytest.mark.parametrize("text", ["", "<html></html>", "up 1\n", 'vllm:num_requests_running{engine="0"} many\n'])
def test_what_is_no_engine_is_said_to_be_none(text: str) -> None:
    with pytest.raises(GarbageError):
        parse_engine(text.encode())


def test_numbers_that_cannot_be_are_garbage() -> None:
    with pytest.raises(GarbageError, match="is nan"):
        parse_engine(engine_text(math.nan, 0).encode())
    with pytest.raises(GarbageError, match="is -1"):
        parse_engine(engine_text(-1, 0).encode())


def test_a_router_as_captured() -> None:
    clusters = parse_router(ENVOY.encode())
    assert set(clusters) == {"fleet/summary", "fleet/intake", "bedrock/summary"}
    summary = clusters["fleet/summary"]
    assert summary.healthy == 1 and summary.active == 0
    assert summary.final == {"200": 1, "429": 1, "503": 1} and summary.retried == {"429": 5, "503": 3}
    assert clusters["bedrock/summary"].completed == 3


def test_the_filter_asks_for_all_that_is_parsed_and_little_else() -> None:
    """Envoy matches its own names: cluster.NAME.stat, where Prometheus' name has no NAME."""
    stats = {
        "cluster.fleet/summary.membership_healthy", "cluster.fleet/summary.upstream_rq_active",
        "cluster.bedrock/summary.upstream_rq_completed", "cluster.fleet/summary.upstream_rq_429",
        "cluster.fleet/summary.retry.upstream_rq_503",
    }
    assert all(re.search(ROUTER_FILTER, stat) for stat in stats)
    others = ("cluster.fleet/summary.upstream_rq_time", "cluster.admin.upstream_rq_active", "http.plane.rq_total")
    assert not any(re.search(ROUTER_FILTER, stat) for stat in others)


def test_quantiles_are_linear_within_a_bucket() -> None:
    buckets = {1.0: 50.0, 2.0: 100.0, math.inf: 100.0}
    assert quantile(0.5, buckets) == 1.0
    assert quantile(0.95, buckets) == pytest.approx(1.9)
    assert quantile(0.95, {1.0: 0.0, math.inf: 10.0}) == 1.0, "beyond the last bound nothing is known"
    with pytest.raises(ValueError, match="no observations"):
        quantile(0.95, {})


# The book.


def book(**model: Any) -> Book:
    entry = dataclasses.replace(ENTRY, **model)
    return Book(Config(NAMESPACE, Routers(NAMESPACE), {MODEL: entry}))


def router_reading(
    active: float = 0, elsewhere: float = 0, healthy: int = 3, **codes: float
) -> dict[str, ClusterReading]:
    final = {name[6:]: count for name, count in codes.items() if name.startswith("final_")}
    retried = {name[8:]: count for name, count in codes.items() if name.startswith("retried_")}
    return {
        f"fleet/{MODEL}": ClusterReading(healthy, active, sum(final.values()), final, retried),
        f"bedrock/{MODEL}": ClusterReading(1, elsewhere),
    }


def filled(one: Book, now: float, engines: int = 2, routers: int = 2) -> None:
    one.put_endpoints(NAMESPACE, {FLEET: [f"10.0.0.{i}" for i in range(engines)]}, now)
    one.put_routers([f"10.1.0.{i}" for i in range(routers)], now)


def test_several_routers_are_added_up_and_missing_ones_taken_for_like() -> None:
    one = book()
    filled(one, 0)
    one.put_router("10.1.0.0", router_reading(active=4, elsewhere=3), 1)
    one.put_router("10.1.0.1", router_reading(active=6, elsewhere=5), 1)
    assert (one.signals(MODEL, 1).in_fleet, one.signals(MODEL, 1).elsewhere) == (10, 8)
    one.put_router("10.1.0.0", router_reading(active=4, elsewhere=3), 20)
    signals = one.signals(MODEL, 20)
    assert (signals.in_fleet, signals.elsewhere) == (8, 6), "the silent one stands for what the other says"
    assert signals.routers_age == 0
    filled(one, 21, routers=1)
    assert one.signals(MODEL, 21).elsewhere == 3, "one that left counts no more"


def test_what_a_router_counted_before_it_was_watched_is_no_surge() -> None:
    one = book()
    filled(one, 0)
    one.put_router("10.1.0.0", router_reading(final_429=5000, retried_429=9000), 1)
    assert one.signals(MODEL, 1).tries == 0
    one.put_router("10.1.0.0", router_reading(final_429=5010, retried_429=9010, final_200=5), 2)
    signals = one.signals(MODEL, 2)
    assert (signals.tries, signals.refused) == (25, 20)
    assert signals.turned_away == pytest.approx(10 / TUNING.windowSeconds)


def test_a_router_that_restarted_began_at_nothing() -> None:
    one = book()
    filled(one, 0)
    one.put_router("10.1.0.0", router_reading(final_200=1000), 1)
    one.put_router("10.1.0.0", router_reading(final_200=7), 2)
    assert one.signals(MODEL, 2).tries == 7


def test_a_rate_forgets_after_its_window() -> None:
    one = book()
    filled(one, 0)
    one.put_router("10.1.0.0", router_reading(), 1)
    one.put_router("10.1.0.0", router_reading(final_429=10), 2)
    assert one.signals(MODEL, 2 + TUNING.windowSeconds - 1).refused == 10
    assert one.signals(MODEL, 2 + TUNING.windowSeconds).refused == 0


def test_an_empty_fleets_503_are_no_engines_errors() -> None:
    one = book()
    filled(one, 0)
    one.put_router("10.1.0.0", router_reading(healthy=1), 1)
    one.put_router("10.1.0.0", router_reading(healthy=1, retried_503=40, final_503=3), 2)
    signals = one.signals(MODEL, 2)
    assert signals.routers_ready == 0
    assert signals.errors == 0 and signals.turned_away == pytest.approx(3 / TUNING.windowSeconds)
    one.put_router("10.1.0.0", router_reading(healthy=3, retried_503=50, final_503=3), 3)
    assert one.signals(MODEL, 3).errors == 0, "nor those until an engine was seen"
    one.put_router("10.1.0.0", router_reading(healthy=3, retried_503=50, final_503=3, retried_500=4), 4)
    assert one.signals(MODEL, 4).errors == 4


def test_the_fleets_of_a_canary_are_one_models() -> None:
    one = book(fleets=(MODEL, f"{MODEL}-canary"))
    one.put_endpoints(NAMESPACE, {FLEET: ["10.0.0.1"], (NAMESPACE, f"{MODEL}-canary"): ["10.0.0.2"]}, 0)
    one.put_routers(["10.1.0.0"], 0)
    one.put_engine(MODEL, "10.0.0.1", EngineReading(running=3), 1)
    one.put_engine(MODEL, "10.0.0.2", EngineReading(running=1, waiting=2), 1)
    one.put_pods(NAMESPACE, {FLEET: WaitingPods(1, 30), (NAMESPACE, f"{MODEL}-canary"): WaitingPods(2, 90)}, 1)
    clusters = {f"fleet/{fleet}": ClusterReading(healthy=2, active=2) for fleet in (MODEL, f"{MODEL}-canary")}
    one.put_router("10.1.0.0", clusters, 1)
    signals = one.signals(MODEL, 1)
    assert (signals.ready, signals.routers_ready, signals.running, signals.waiting) == (2, 2, 4, 2)
    assert signals.saturated == 1 and signals.in_fleet == 4
    assert (signals.pending, signals.pending_seconds) == (3, 90)


def test_engines_are_as_old_as_the_one_that_is_silent_longest() -> None:
    one = book()
    filled(one, 0)
    one.put_engine(MODEL, "10.0.0.0", EngineReading(running=1), 30)
    assert one.signals(MODEL, 30).engines_age == 30, "the other has not answered since it is known"
    one.put_engine(MODEL, "10.0.0.1", EngineReading(running=1), 31)
    assert one.signals(MODEL, 31).engines_age == 1
    filled(one, 40, engines=0)
    assert one.signals(MODEL, 40).engines_age == 0, "no engine has nothing to say"
    one.put_engine(MODEL, "10.0.0.0", EngineReading(running=9), 41)
    assert one.signals(MODEL, 41).running == 0, "an answer of one that left is late"


def test_a_namespace_that_cannot_be_read_harms_its_own_models_alone() -> None:
    one = Book(
        Config(
            NAMESPACE,
            Routers(NAMESPACE),
            {MODEL: ENTRY, "other": dataclasses.replace(ENTRY, namespace="elsewhere", fleets=("other",))},
        )
    )
    filled(one, 0)
    assert one.signals(MODEL, 1).cluster_age == 1 and one.signals("other", 1).cluster_age == math.inf
    assert one.ages(1)["endpoints"] == math.inf, "and it is seen"


def test_how_long_requests_take_is_measured_with_and_without_the_queue() -> None:
    one = book()
    filled(one, 0, engines=1)
    one.put_engine(MODEL, "10.0.0.0", EngineReading(seconds=100, queue_seconds=40, requests=10), 1)
    assert one.signals(MODEL, 1).engine_seconds is None
    one.put_engine(MODEL, "10.0.0.0", EngineReading(seconds=180, queue_seconds=70, requests=15), 2)
    signals = one.signals(MODEL, 2)
    assert (signals.engine_seconds, signals.serving_seconds) == (16, 10)
    restored = book()
    restored.restore_durations(MODEL, json.loads(json.dumps(one.durations(MODEL))))
    assert restored.signals(MODEL, 2).engine_seconds == 16


def test_first_tokens_are_those_of_the_window() -> None:
    one = book(firstTokenBudgetMs=2000)
    filled(one, 0, engines=1)
    one.put_engine(MODEL, "10.0.0.0", EngineReading(first_tokens={1.0: 900, 2.0: 900, math.inf: 900}), 1)
    assert one.signals(MODEL, 1).first_token_p95_ms is None
    one.put_engine(MODEL, "10.0.0.0", EngineReading(first_tokens={1.0: 900, 2.0: 920, math.inf: 920}), 2)
    assert one.signals(MODEL, 2).first_token_p95_ms == pytest.approx(1950)
    assert one.signals(MODEL, 60).first_token_p95_ms is None


# The decision.


def test_what_does_not_fit_is_the_share() -> None:
    decision = decided(FULL)
    assert (decision.ready, decision.room, decision.wanted) == (2, 12, 24)
    assert decision.share == 50 and decision.reasons == (Reason.QUEUE,)


def test_a_quicker_fallback_counts_as_the_engine_time_it_saves() -> None:
    quick = dataclasses.replace(FULL, elsewhere=6, serving_seconds=20.0, fallback_seconds=10.0)
    assert decided(quick).share == 50


def test_a_full_kv_cache_makes_a_fleet_full_that_still_admits() -> None:
    """4 run where 12 are admitted, and as many wait."""
    bound = dataclasses.replace(WELL, running=4, waiting=5, in_fleet=9, saturated=2.0, kv_cache=0.97)
    assert decided(bound).reasons == (Reason.KV_CACHE,) and decided(bound).share == 20
    assert decided(dataclasses.replace(bound, kv_cache=0.9)).share == 0
    assert decided(dataclasses.replace(bound, waiting=3)).share == 0


def test_waiting_for_accelerators_makes_full_come_earlier() -> None:
    busy = dataclasses.replace(WELL, running=12, waiting=8, saturated=6.0, elsewhere=4)
    assert decided(busy).share == 0
    starved = dataclasses.replace(busy, pending=1, pending_seconds=61)
    assert decided(starved).share == 30, "1 - 12 / (16 + what is above 80 % of 24)"
    assert decided(starved).reasons == (Reason.PENDING, Reason.QUEUE)
    assert decided(dataclasses.replace(starved, pending_seconds=59)).share == 0, "a node takes a minute"


def test_no_engine_is_everything_whoever_says_so() -> None:
    assert decided(dataclasses.replace(WELL, ready=0)).reasons == (Reason.NO_ENGINE,)
    unreachable = dataclasses.replace(WELL, routers_ready=0)
    assert decided(unreachable).share == 100, "engines that no router reaches are none"
    blind = dataclasses.replace(WELL, ready=0, routers_age=math.inf, engines_age=math.inf)
    assert decided(blind).share == 100, "nothing else needs to be known"


def test_only_a_model_with_a_fallback_gets_a_share() -> None:
    alone = dataclasses.replace(ENTRY, fallback=False)
    assert decided(dataclasses.replace(WELL, ready=0), model=alone).share == 0
    assert decided(FULL, model=alone).share == 0


def test_it_rises_at_once_and_falls_in_steps_after_a_time_without_need() -> None:
    run = Run()
    assert run(FULL) == [50]
    shares = run(WELL, 120)
    assert shares[:29] == [50] * 29
    assert shares.index(40) == 29 and shares.index(30) == 31 and shares[-1] == 0
    assert run.last.reasons == ()


def test_need_in_between_starts_the_wait_anew() -> None:
    run = Run(tuning=dataclasses.replace(TUNING, smoothingSeconds=0))
    run(FULL)
    run(WELL, 25)
    run(FULL)
    assert set(run(WELL, 25)) == {50}


def test_a_fleet_with_engines_keeps_its_probe() -> None:
    broken = dataclasses.replace(WELL, tries=20, errors=20)
    decision = decided(broken)
    assert decision.share == 95 and decision.reasons == (Reason.ERRORS,)


def test_errors_count_by_what_fails_twice() -> None:
    assert decided(dataclasses.replace(WELL, tries=100, errors=60)).share == 35
    assert decided(dataclasses.replace(WELL, tries=100, errors=40)).share == 0, "another engine served them"
    assert decided(dataclasses.replace(WELL, tries=4, errors=4)).share == 0, "four are no proof"


def test_few_probes_do_not_make_it_well_and_none_do_not_keep_it_sick_for_ever() -> None:
    run = Run()
    run(dataclasses.replace(WELL, tries=20, errors=20))
    silent = dataclasses.replace(WELL, tries=0)
    assert set(run(silent, 59)) == {95}
    assert run(silent, 60)[-1] < 95
    run = Run()
    run(dataclasses.replace(WELL, tries=20, errors=20))
    assert run(dataclasses.replace(WELL, tries=3, errors=0), 31)[-1] == 85, "three good ones do"


def test_a_relapse_doubles_the_wait() -> None:
    run = Run()
    broken, well = dataclasses.replace(WELL, tries=20, errors=20), dataclasses.replace(WELL, tries=20)
    waits = []
    for _ in range(5):
        run(broken)
        shares = run(well, 300)
        waits.append(shares.index(85) + 1)
        run.memory = dataclasses.replace(run.memory, share=50)  # It fails again while it recovers.
    assert waits == [30, 60, 120, 240, 240]


def test_a_fleet_that_has_grown_waits_no_longer_for_what_a_smaller_one_did() -> None:
    run = Run()
    broken, well = dataclasses.replace(WELL, tries=20, errors=20), dataclasses.replace(WELL, tries=20)

    def wait(ready: int) -> int:
        run(dataclasses.replace(broken, ready=ready, routers_ready=ready))
        shares = run(dataclasses.replace(well, ready=ready, routers_ready=ready), 300)
        run.memory = dataclasses.replace(run.memory, share=50)  # It fails again while it recovers.
        return shares.index(85) + 1

    least = WELL.ready
    assert [wait(least), wait(least), wait(least)] == [30, 60, 120]
    # It fails again in the moment in which the larger one is first seen, and that counts.
    assert wait(least + 1) == 60
    # Engines that come and go are no growth.
    assert [wait(least), wait(least + 1)] == [120, 240]


def test_an_engine_that_comes_while_a_share_falls_back_ends_the_longer_wait() -> None:
    run = Run()
    broken, well = dataclasses.replace(WELL, tries=20, errors=20), dataclasses.replace(WELL, tries=20)
    for _ in range(3):
        run(broken)
        run(well, 300)
        run.memory = dataclasses.replace(run.memory, share=50)
    run(broken)
    more = dataclasses.replace(well, ready=WELL.ready + 1, routers_ready=WELL.ready + 1)
    assert run(more, 60).index(85) + 1 == 30


def test_late_first_tokens_and_refusals_add_steps_while_they_last() -> None:
    run = Run(dataclasses.replace(ENTRY, firstTokenBudgetMs=2000))
    late = dataclasses.replace(WELL, first_token_p95_ms=1900.0)
    assert run(late) == [5] and Reason.FIRST_TOKEN in run.last.reasons
    assert run(late, 30) == [5] * 14 + [10] * 15 + [15]
    assert run(dataclasses.replace(late, first_token_p95_ms=1700.0)) == [15], "not late, and not yet early either"
    refused = dataclasses.replace(WELL, refused=30)
    assert decided(refused).share == 5 and Reason.REFUSED in decided(refused).reasons
    assert decided(dataclasses.replace(WELL, refused=20)).share == 0


def test_old_signals_are_as_good_as_their_last_value_for_a_while() -> None:
    old = dataclasses.replace(FULL, cluster_age=9, engines_age=9, routers_age=9)
    assert decided(old).share == 50


@pytest.mark.parametrize(
    ("lost", "known"),
    [
        ({"cluster_age": math.inf}, True),
        ({"engines_age": math.inf}, True),
        ({"cluster_age": math.inf, "engines_age": math.inf}, True),
        ({"routers_age": math.inf}, False),
        ({"cluster_age": math.inf, "routers_age": math.inf}, False),
    ],
)
def test_what_can_be_missing(lost: dict[str, float], known: bool) -> None:
    decision = decided(dataclasses.replace(FULL, **lost))
    assert (decision.share > 0) is known
    assert (Reason.SIGNALS_LOST in decision.reasons) is not known


def test_a_share_without_signals_is_held_and_then_lowered() -> None:
    run = Run()
    run(FULL)
    shares = run(Signals(), 120)
    assert set(shares[:59]) == {50} and shares.index(40) == 59 and shares[-1] == 0
    assert run.last.reasons == (Reason.SIGNALS_LOST,)


def test_a_memory_survives_json_and_another_clock() -> None:
    run = Run()
    run(FULL, 3)
    copy = Memory.from_json(json.loads(json.dumps(run.memory.to_json(run.now))) | {"of_a_newer_one": 1}, 5e6 + run.now)
    assert dataclasses.replace(copy, **{key: getattr(run.memory, key) + 5e6 for key in _times(copy)}) == copy
    before, _ = decide(ENTRY, TUNING, WELL, run.memory, run.now + 29)
    after, _ = decide(ENTRY, TUNING, WELL, copy, 5e6 + run.now + 29)
    assert before == after


def _times(memory: Memory) -> list[str]:
    return [key for key in Memory._TIMES if getattr(memory, key) != -math.inf]


# Demand and Events.


def test_demand_counts_everything_once() -> None:
    signals = dataclasses.replace(FULL, turned_away=0.5, engine_seconds=20.0)
    assert demand(signals, TUNING) == 24 + 12 + 10
    assert demand(dataclasses.replace(signals, engines_age=math.inf, in_fleet=20), TUNING) == 20 + 12 + 10
    empty = Signals(ready=0, cluster_age=0, engines_age=0, routers_age=0, elsewhere=3, turned_away=0.2)
    assert demand(empty, TUNING) == 3 + 0.2 * TUNING.typicalSeconds
    assert demand(dataclasses.replace(signals, routers_age=math.inf), TUNING) is None


def test_a_request_that_came_and_went_between_two_looks_is_demand() -> None:
    idle = Signals(ready=1, cluster_age=0, engines_age=0, routers_age=0)
    assert demand(idle, TUNING) == 0
    seconds, window = TUNING.typicalSeconds, TUNING.windowSeconds
    assert demand(dataclasses.replace(idle, tries=1), TUNING) == pytest.approx(seconds / window)
    assert demand(dataclasses.replace(idle, left=1 / window), TUNING) == pytest.approx(seconds / window)
    assert demand(dataclasses.replace(idle, tries=100), TUNING) == 1, "no more than that it is not 0"


def test_what_was_asked_of_an_empty_fleet_is_remembered_whole_and_of_another_up_to_1() -> None:
    wanted, asked = remember(30.0, 0, Asked(), TUNING, 0)
    assert (wanted, asked) == (30, Asked(30, 0))
    assert remember(2.0, 0, asked, TUNING, 60) == (30, asked)
    assert remember(2.0, 0, asked, TUNING, 61) == (2, Asked(2, 61))
    assert remember(0.0, 1, asked, TUNING, 30) == (1, asked), "the first replica is there"
    assert remember(12.0, 1, asked, TUNING, 30) == (12, Asked(1, 30))
    assert remember(0.0, 1, Asked(0.5, 0), TUNING, 60) == (0.5, Asked(0.5, 0))
    assert remember(0.0, 1, Asked(0.5, 0), TUNING, 61) == (0, Asked(0, 61))
    assert remember(None, 0, asked, TUNING, 30) == (None, asked), "unknown is not what was asked"


def test_what_was_asked_survives_the_leader() -> None:
    view = View(Decision(0, (), 0, None, None), Memory(), Signals(), 30.0, 5.0, Asked(30.0, 4.0))
    service = types.SimpleNamespace(book=types.SimpleNamespace(durations=lambda name: {}))
    value = json.loads(json.dumps(Service._exported(service, MODEL, view, 10.0)))
    copy = _imported(value, 1000.0)
    assert (copy.demand, copy.demand_at, copy.asked) == (30, 995, Asked(30, 994))
    del value["asked"]
    assert _imported(value, 1000.0).asked == Asked(), "of a leader that knows nothing of it"


def test_events_are_for_people() -> None:
    no_engine = Decision(100, (Reason.NO_ENGINE,), 0, 0.0, None)
    assert event(MODEL, ENTRY, 0, no_engine, "one")["type"] == "Warning"
    asleep = dataclasses.replace(ENTRY, minReplicas=0)
    assert event(MODEL, asleep, 0, no_engine, "one")["type"] == "Normal", "a model at rest is no trouble"
    ended = event(MODEL, ENTRY, 50, Decision(0, (), 2, 24.0, 2.0), "one")
    assert (ended["reason"], ended["type"]) == ("FallbackShareEnded", "Normal")
    assert ended["note"] == f"All requests to {MODEL} go to its fleet first again"
    budget = Budget()
    assert budget.allows("a", True, 0) and not budget.allows("a", True, 59)
    assert budget.allows("a", False, 59) and budget.allows("a", True, 61)
    assert sum(budget.allows(f"m{i}", True, 61) for i in range(100)) == 18, "a burst of twenty is bounded"
    assert budget.allows("later", True, 61 + 10)


def test_every_reason_has_words_and_a_place_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    for reason in Reason:
        assert words([reason]) and f"`{reason.value}`" in guide, reason


def test_every_tuning_is_in_the_guide_with_its_default() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    for field in dataclasses.fields(Tuning):
        assert f"| `{field.name}` | {field.default:.10g} |" in guide, field.name
