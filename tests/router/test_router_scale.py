"""Many at once, and pods that come and go: nothing is lost. With the chart's own health and DNS settings.

The counts are printed (`pytest -rP`).
"""

from __future__ import annotations

import collections
import time
from typing import Any

import pytest
from router_harness import CHAT, REGION_TARGET, Client, Reply, Traffic, catalogue, chat_body, model, wait_until

from inference_plane.onehost.bed import Bed

AT_ONCE = 200
OUT_OF_ROTATION = 10.0  # seconds

FLEET = {
    "summary": model("summary", "region", REGION_TARGET, replicas=2, firstTokenBudget="2s"),
    "intake": model("intake", "cluster", replicas=2),
    "rolling": model("rolling", "cluster", replicas=4),
}
BED = {"values": catalogue(FLEET), "max_num_seqs": 4, "max_num_queued_reqs": 8}


def _by_backend(replies: list[Any]) -> dict[str, int]:
    return dict(
        collections.Counter(
            f"{reply.status} {reply.backend}" if isinstance(reply, Reply) else repr(reply) for reply in replies
        )
    )


def _healthy(bed: Bed, name: str) -> int:
    """The engines that Envoy sends to, without its own no-capacity endpoint."""
    gauge = f"cluster.fleet/{name}.membership_healthy"
    return bed.router.stats([gauge])[gauge] - 1


def _ejections(bed: Bed, name: str) -> int:
    counter = f"cluster.fleet/{name}.outlier_detection.ejections_total"
    return bed.router.stats([counter])[counter]


def test_two_hundred_streams_at_a_saturated_fleet_are_all_answered(bed: Bed, client: Client) -> None:
    body = chat_body("summary", stream=True, x_test={"token_delay": 0.02, "tokens": 10})
    started = time.monotonic()
    replies = client.all((CHAT, body) for _ in range(AT_ONCE))
    counts = _by_backend(replies)
    refused = sum(engine.surface.counters.rejections for engine in bed.engines["summary"])
    print(f"{AT_ONCE} streams in {time.monotonic() - started:.1f} s: {counts}; engines refused {refused} tries")
    assert set(counts) == {"200 fleet", "200 bedrock"} and sum(counts.values()) == AT_ONCE
    assert all(reply.events[-1] == "[DONE]" and not reply.error for reply in replies if isinstance(reply, Reply))
    assert counts["200 bedrock"] == len(bed.bedrock.calls)
    assert refused > 0 and _ejections(bed, "summary") == 0 and _healthy(bed, "summary") == 2


@pytest.mark.parametrize("fault", ["overloaded", "draining"])
def test_two_hundred_answers_at_once_survive_a_fleet_that_takes_none(bed: Bed, client: Client, fault: str) -> None:
    for engine in bed.engines["summary"]:
        engine.behaviour.update({"fault": fault})
    ejected = _ejections(bed, "summary")
    replies = client.all([(CHAT, chat_body("summary"))] * AT_ONCE)
    counts = _by_backend(replies)
    print(f"{AT_ONCE} answers, engines {fault}: {counts}; ejected {_ejections(bed, 'summary') - ejected}")
    assert counts == {"200 bedrock": AT_ONCE}
    if fault == "overloaded":
        assert _ejections(bed, "summary") == ejected and _healthy(bed, "summary") == 2
    else:
        assert _healthy(bed, "summary") >= 1


def test_two_hundred_restricted_answers_at_once_stay_in_the_fleet(bed: Bed, client: Client) -> None:
    futures = [client.start(CHAT, chat_body("summary"), {"x-residency": "cluster"}) for _ in range(AT_ONCE)]
    replies = [future.result(60) for future in futures]
    counts = _by_backend(replies)
    print(f"{AT_ONCE} restricted answers: {counts}")
    assert set(counts) <= {"200 fleet", "429 fleet"} and not bed.bedrock.calls
    assert all(reply.headers["x-plane-reason"] == "engine-busy" for reply in replies if reply.status == 429)


def _time_until_out(bed: Bed, name: str) -> float:
    began = time.monotonic()
    wait_until(lambda: _healthy(bed, name) == 1, "the pod out of rotation", every=0.02)
    return time.monotonic() - began


def test_a_dead_pod_is_out_of_rotation_and_nothing_is_lost(bed: Bed, client: Client) -> None:
    engine = bed.engines["intake"][0]
    body = chat_body("intake", x_test={"answer_delay": 0.02})
    try:
        with Traffic(client, [body]) as traffic:
            wait_until(lambda: len(traffic.replies) > 20, "traffic")
            engine.stop()
            out = _time_until_out(bed, "intake")
            served = len(traffic.replies)
            wait_until(lambda: len(traffic.replies) > served + 20, "traffic without the pod")
        print(f"a dead pod was out after {out:.2f} s; {len(traffic.replies)} requests, {len(traffic.lost)} lost")
        assert not traffic.lost and out < OUT_OF_ROTATION
    finally:
        engine.start()


def test_a_dead_pod_without_traffic_is_out_of_rotation_in_time(bed: Bed) -> None:
    engine = bed.engines["intake"][0]
    engine.stop()
    try:
        out = _time_until_out(bed, "intake")
        print(f"a dead pod without traffic was out after {out:.2f} s")
        assert out < OUT_OF_ROTATION
    finally:
        engine.start()


def test_a_pod_that_hangs_is_out_of_rotation_and_what_waits_in_it_is_answered_elsewhere(
    bed: Bed, client: Client
) -> None:
    """A hang cannot be told from a long answer, so what is not streamed waits until the kubelet ends the pod."""
    engine = bed.engines["intake"][0]
    body = chat_body("intake", x_test={"answer_delay": 0.02})
    try:
        with Traffic(client, [body]) as traffic:
            wait_until(lambda: len(traffic.replies) > 20, "traffic")
            engine.behaviour.update({"fault": "silent"})
            out = _time_until_out(bed, "intake")
            late = client.all([(CHAT, body)] * 4)
            engine.stop()
        waited = max(reply.total for _, reply in traffic.replies if isinstance(reply, Reply))
        print(
            f"a hanging pod was out after {out:.2f} s; {len(traffic.replies)} requests, {len(traffic.lost)} lost, "
            f"the slowest took {waited:.2f} s"
        )
        assert not traffic.lost and out < OUT_OF_ROTATION
        assert _by_backend(late) == {"200 fleet": 4}
    finally:
        engine.start()


def test_a_stream_at_a_pod_that_hangs_moves_on_when_its_budget_is_spent(bed: Bed, client: Client) -> None:
    bed.engines["summary"][0].behaviour.update({"fault": "silent"})
    replies = client.all([(CHAT, chat_body("summary", stream=True))] * 12)
    counts = _by_backend(replies)
    print(f"12 streams, one of two pods hangs: {counts}")
    assert set(counts) <= {"200 fleet", "200 bedrock"} and sum(counts.values()) == 12


def test_pods_are_replaced_under_traffic_and_nothing_is_lost(bed: Bed, client: Client) -> None:
    """As a rollout does it: the new pod is listed once ready, then the old one leaves DNS, then it ends."""
    name, pods = "rolling.inference.svc.cluster.local", bed.engines["rolling"]
    bed.scale("rolling", 2)
    bed.wait_for_engines({"rolling": 2})
    stopped = []
    bodies = [
        chat_body("rolling", x_test={"answer_delay": 0.05}),
        chat_body("rolling", stream=True, x_test={"token_delay": 0.01, "tokens": 10}),
    ]
    try:
        with Traffic(client, bodies) as traffic:
            for old in (0, 1):
                pods[old + 2].reset()
                bed.dns.set(name, [pod.host for pod in pods[old : old + 3]])
                bed.wait_for_engines({"rolling": 3})
                bed.dns.set(name, [pod.host for pod in pods[old + 1 : old + 3]])
                bed.wait_for_engines({"rolling": 2})
                wait_until(lambda pod=pods[old]: pod.surface.queue.running == 0, "the old pod's last request")
                pods[old].stop()
                stopped.append(pods[old])
            served = len(traffic.replies)
            wait_until(lambda: len(traffic.replies) > served + 20, "traffic on the new pods alone")
        print(f"two pods replaced: {len(traffic.replies)} requests, {len(traffic.lost)} lost")
        assert not traffic.lost
        assert all(pod.requests for pod in pods)
    finally:
        for pod in stopped:
            pod.start()
