"""A canary: a second fleet of a model that serves a share of its requests, and loses none of them when it is sick."""

from __future__ import annotations

import collections

import pytest
from router_harness import (
    CHAT,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    Reply,
    Traffic,
    catalogue,
    chat_body,
    model,
    wait_until,
)

from inference_plane.onehost.bed import Bed

PERCENT = 30
REQUESTS = 400

#: `kept` stays in the cluster; `summary` may fall back, and knows both fleets all the same.
FLEET = {
    name: model(name, residency, target, canary={"source": f"s3://models/{name}/v8/", "percent": PERCENT})
    for name, residency, target in (("kept", "cluster", None), ("summary", "region", REGION_TARGET))
}
BED = {"values": catalogue(FLEET, **QUICK), "max_num_seqs": 512}
SHARED = pytest.mark.parametrize("name", FLEET)


def _many(client: Client, name: str, **headers: str) -> list[Reply]:
    futures = [client.start(CHAT, chat_body(name), headers) for _ in range(REQUESTS)]
    return [future.result(60) for future in futures]


def _versions(replies: list[Reply]) -> dict[str | None, int]:
    return dict(collections.Counter(reply.version for reply in replies))


@SHARED
@pytest.mark.parametrize("restricted", [False, True])
def test_the_canary_serves_its_share_under_its_own_version(
    bed: Bed, client: Client, name: str, restricted: bool
) -> None:
    replies = _many(client, name, **({"x-residency": "cluster"} if restricted else {}))
    versions = _versions(replies)
    print(f"{name}: {versions} of {REQUESTS} with percent {PERCENT}")
    assert {(reply.status, reply.backend, reply.attempts) for reply in replies} == {(200, "fleet", 1)}
    # Five standard deviations of the binomial distribution: outside once in a million runs.
    assert abs(versions["v8"] - REQUESTS * PERCENT / 100) < 46 and set(versions) == {"v7", "v8"}
    asked = {fleet: sum(len(engine.requests) for engine in bed.engines[fleet]) for fleet in (name, f"{name}-canary")}
    assert asked == {name: versions["v7"], f"{name}-canary": versions["v8"]}
    assert {reply.json["model"] for reply in replies} == {name} and not bed.bedrock.calls


@SHARED
def test_the_audit_line_names_the_model_and_the_version_that_answered(bed: Bed, client: Client, name: str) -> None:
    audit = Audit(bed)
    replies = {reply.version: reply for reply in _many(client, name)}
    for version, reply in replies.items():
        line = audit.of(reply)
        assert (line["model"], line["model_version"], line["backend"]) == (name, version, "fleet")


@SHARED
@pytest.mark.parametrize("fault", ["dead", "overloaded", "draining", "reset"])
def test_what_a_sick_canary_does_not_answer_the_stable_fleet_answers(
    bed: Bed, client: Client, name: str, fault: str
) -> None:
    bed.engines[f"{name}-canary"][0].behaviour.update({"fault": fault})
    replies = _many(client, name)
    assert {(reply.status, reply.backend, reply.version) for reply in replies} == {(200, "fleet", "v7")}
    assert max(reply.attempts for reply in replies) == 2 and not bed.bedrock.calls


@SHARED
def test_an_empty_canary_loses_nothing(bed: Bed, client: Client, name: str) -> None:
    bed.scale(f"{name}-canary", 0)
    bed.wait_for_engines({f"{name}-canary": 0})
    replies = _many(client, name)
    assert {(reply.status, reply.backend, reply.version) for reply in replies} == {(200, "fleet", "v7")}
    assert not bed.bedrock.calls


@SHARED
def test_a_canary_that_dies_under_traffic_loses_nothing(bed: Bed, client: Client, name: str) -> None:
    (engine,) = bed.engines[f"{name}-canary"]
    try:
        with Traffic(client, [chat_body(name), chat_body(name, stream=True)]) as traffic:
            wait_until(lambda: len(traffic.replies) > 50, "traffic")
            engine.stop()
            served = len(traffic.replies)
            wait_until(lambda: len(traffic.replies) > served + 200, "traffic without the canary")
        cut = [
            reply for _, reply in traffic.replies if isinstance(reply, Reply) and reply.status == 200 and reply.error
        ]
        lost = len(traffic.lost) - len(cut)
        print(
            f"{name}: {len(traffic.replies)} requests, {lost} lost, {len(cut)} streams cut in the moment of its death"
        )
        assert lost == 0 and len(cut) <= 6
    finally:
        engine.start()


def test_a_canary_does_not_stand_in_for_the_model(bed: Bed, client: Client) -> None:
    """Its few replicas would drown in a whole fleet's requests; the fallback has them, where there is one."""
    for name in FLEET:
        bed.scale(name, 0)
        bed.wait_for_engines({name: 0})
    kept = {(reply.status, reply.version) for reply in _many(client, "kept") if reply.backend != "none"}
    assert kept <= {(200, "v8")}
    replies = _many(client, "summary")
    assert {reply.status for reply in replies} == {200}
    assert set(_versions(replies)) == {"v8", REGION_TARGET}


def test_a_canary_comes_grows_and_goes_under_traffic_and_nothing_is_lost(bed: Bed, client: Client) -> None:
    """By way of percent 0, so that no route names a cluster that Envoy does not know yet."""

    def shared(percent: int | None) -> None:
        canary = None if percent is None else {"source": "s3://models/kept/v8/", "percent": percent}
        models = {name: {**entry, "canary": canary} for name, entry in FLEET.items()}
        bed.router.reload(bed.rendered(catalogue(models, **QUICK)))

    def answers(version: str, traffic: Traffic) -> None:
        seen = len(traffic.replies)
        wait_until(
            lambda: any(r.version == version for _, r in traffic.replies[seen:] if isinstance(r, Reply)), version
        )

    known = {f"{name}-canary": 1 for name in FLEET}
    shared(None)
    totals = [f"cluster.fleet/{name}.membership_total" for name in known]
    wait_until(lambda: not any(bed.router.stats(totals).values()), "no canary")
    try:
        with Traffic(client, [chat_body(name) for name in FLEET]) as traffic:
            for percent in (0, PERCENT, 0, None):
                shared(percent)
                if percent is not None:
                    bed.wait_for_engines(known)
                answers("v8" if percent else "v7", traffic)
                seen = len(traffic.replies)
                wait_until(lambda seen=seen: len(traffic.replies) > seen + 100, "traffic")
        print(f"{len(traffic.replies)} requests while the share changed, {len(traffic.lost)} lost")
        assert not traffic.lost
    finally:
        bed.router.reload(bed.render)
        bed.wait_for_engines()
