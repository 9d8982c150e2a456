"""A model at zero replicas: what its clients hear, what tells an autoscaler of them, and the first replica."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from router_harness import QUICK, REGION_TARGET, Audit, Client, catalogue, marker, model, openai_error, wait_until

from inference_plane.onehost.bed import Bed

START = 90  # seconds, stated by the entries
MODELS = {
    "intake": model("intake", "cluster", replicas=0, startSeconds=START, api=["chat", "completions"]),
    "summary": model("summary", "region", REGION_TARGET, 0, startSeconds=START, firstTokenBudget="2s"),
    "awake": model("awake", "cluster"),
}
#: A share ends at once where its reason does, and what was asked is forgotten within seconds.
TUNING = {"holdSeconds": 0.5, "lowerSeconds": 0.2, "lowerPoints": 100, "windowSeconds": 3, "rememberSeconds": 5}
BED = {
    "values": catalogue(MODELS, **QUICK, policy={"tuning": TUNING, "refreshRate": "200ms"}),
    "policies": 2,
    "metrics_port": 8001,
}


def _list(bed: Bed, name: str, replicas: int) -> None:
    """So many engines of a fleet are ready, for DNS and for the Kubernetes API."""
    bed.scale(name, replicas)
    bed.policies[0].lists({name: [engine.host for engine in bed.engines[name][:replicas]]})
    bed.wait_for_engines({name: replicas})


def _demand(bed: Bed, name: str) -> float:
    """What KEDA reads: the largest of the replicas' answers; -1 where none of them knows it."""
    known = [-1.0]
    for policy in bed.policies:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{policy.status_url}/demand/{name}", timeout=5) as reply:
                known.append(json.load(reply)["demand"])
        except OSError:
            continue
    return max(known)


@pytest.fixture
def asleep(bed: Bed) -> Iterator[Bed]:
    """The bed with both models at zero, which nobody has asked for."""
    for name in ("intake", "summary"):
        _list(bed, name, 0)
    for name in ("intake", "summary"):
        wait_until(lambda name=name: _demand(bed, name) == 0, f"nobody has asked for {name}")
    yield bed
    for name in ("intake", "summary"):
        _list(bed, name, 1)


@pytest.mark.parametrize("kind", ["stream", "json", "completions"])
def test_a_model_that_stays_says_how_long_it_takes_to_start(asleep: Bed, client: Client, kind: str) -> None:
    if kind == "completions":
        reply = client.ask("/v1/completions", {"model": "intake", "prompt": "Say hello."})
    else:
        reply = client.chat("intake", stream=kind == "stream")
    assert (reply.status, reply.backend, reply.headers["x-plane-reason"]) == (503, "none", "no-capacity"), str(reply)
    assert reply.headers["retry-after"] == str(START)
    error = openai_error(reply)
    assert error["type"] == "overloaded_error"
    assert error["message"] == "No replica of the model runs. One is started, which takes some 90 seconds."
    assert Audit(asleep).of(reply)["reason"] == "no-capacity"


def test_one_request_wakes_it_and_a_replica_serves_the_next(asleep: Bed, client: Client) -> None:
    assert client.chat("intake").status == 503
    wait_until(lambda: _demand(asleep, "intake") > 0, "the request is demand")
    assert _demand(asleep, "summary") == 0, "of the model that was asked for"
    _list(asleep, "intake", 1)
    reply = client.chat("intake")
    assert (reply.status, reply.backend) == (200, "fleet"), str(reply)
    wait_until(lambda: _demand(asleep, "intake") == 0, "nobody asks any more")


def test_what_was_asked_is_told_for_a_while_and_then_forgotten(asleep: Bed, client: Client) -> None:
    assert client.chat("intake").status == 503
    wait_until(lambda: _demand(asleep, "intake") > 0, "the request is demand")
    wait_until(lambda: _demand(asleep, "intake") == 0, "nobody came back")


def test_bedrock_answers_meanwhile_and_that_is_demand_too(asleep: Bed, client: Client) -> None:
    for stream in (True, False):
        text = marker()
        reply = client.chat("summary", text, stream=stream)
        assert (reply.status, reply.backend) == (200, "bedrock"), str(reply)
        assert any(text in prompt for call in asleep.bedrock.calls for prompt in call.prompts)
    assert not any("x-plane" in name for call in asleep.bedrock.calls for name in call.headers)
    # Asked of Bedrock first, with an answer that is over before anybody looks.
    wait_until(lambda: asleep.router.runtime("fallback.").get("fallback.summary") == "100", "all that may leave does")
    wait_until(lambda: _demand(asleep, "summary") == 0, "forgotten")
    assert client.chat("summary").attempts == 1
    wait_until(lambda: _demand(asleep, "summary") > 0, "the request is demand")
    _list(asleep, "summary", 1)
    wait_until(lambda: client.chat("summary").backend == "fleet", "the fleet has its requests back")


def test_a_restricted_prompt_waits_for_the_fleet(asleep: Bed, client: Client) -> None:
    text = marker()
    reply = client.chat("summary", text, {"x-residency": "cluster"})
    assert (reply.status, reply.backend, reply.headers["retry-after"]) == (503, "none", str(START)), str(reply)
    wait_until(lambda: _demand(asleep, "summary") > 0, "it is demand all the same")
    _list(asleep, "summary", 1)
    assert client.chat("summary", text, {"x-residency": "cluster"}).backend == "fleet"
    assert not any(text in prompt for call in asleep.bedrock.calls for prompt in call.prompts)


def test_a_client_cannot_say_how_long_it_takes(bed: Bed, client: Client) -> None:
    bed.scale("awake", 0)
    bed.wait_for_engines({"awake": 0})
    reply = client.chat("awake", headers={"x-plane-start-seconds": "1"})
    assert (reply.status, reply.headers["retry-after"]) == (503, "15"), str(reply)


def test_without_the_policy_service_it_is_the_same_to_clients(asleep: Bed, client: Client) -> None:
    for policy in asleep.policies:
        policy.process.kill()
    try:
        assert _demand(asleep, "intake") == -1, "unknown, which is not 0"
        assert client.chat("intake").headers["retry-after"] == str(START)
        assert client.chat("summary").backend == "bedrock"
    finally:
        for policy in asleep.policies:
            asleep.processes.stop(policy.process)
            policy.start()
        wait_until(lambda: _demand(asleep, "intake") >= 0, "it is known again")
