"""The policy service beside the router: what a shift moves, what it never moves, and what is left when it fails."""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from router_harness import (
    CHAT,
    GEOGRAPHY_TARGET,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    Traffic,
    catalogue,
    chat_body,
    marker,
    model,
    wait_until,
)

from inference_plane.checkout import ROOT
from inference_plane.onehost.bed import Bed

QUEUE = 4
MODELS = {
    "summary": model("summary", "region", REGION_TARGET, maxNumSeqs=2, maxQueuedRequests=2, firstTokenBudget="2s"),
    "letters": model("letters", "geography", GEOGRAPHY_TARGET),
    "intake": model("intake", "cluster"),
}
#: Fractions of what suits a fleet whose requests take seconds and more.
TUNING = {"smoothingSeconds": 0, "holdSeconds": 1, "lowerSeconds": 0.2, "lowerPoints": 50, "settleSeconds": 1}
BED = {
    "values": catalogue(MODELS, **QUICK, policy={"tuning": TUNING, "refreshRate": "200ms"}),
    "policies": 2,
    "metrics_port": 8001,
    "max_num_seqs": 2,
    "max_num_queued_reqs": QUEUE,
}


def runtime(bed: Bed) -> dict[str, str]:
    return bed.router.runtime("fallback.")


class Sayer:
    """A context manager that answers in the service's place, on its address: `answer` is a status and a body."""

    def __init__(self, bed: Bed, answer: Callable[[], tuple[int, bytes]]) -> None:
        outer, self.asked = self, 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked += 1
                status, body = answer()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        (self._address,) = {(policy.host, policy.port) for policy in bed.policies[:1]}
        self._server = http.server.ThreadingHTTPServer(self._address, Handler)

    def __enter__(self) -> Sayer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def layer(**keys: Any) -> bytes:
    kind = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
    resource = {"@type": kind, "name": "policy", "layer": keys}
    return json.dumps({"version_info": marker(), "type_url": kind, "resources": [resource]}).encode()


@pytest.fixture
def silent(bed: Bed) -> Iterator[Bed]:
    """The bed with no policy service, which comes back after it."""
    for policy in bed.policies:
        policy.process.kill()
    yield bed
    for policy in bed.policies:
        bed.processes.stop(policy.process)
        policy.start()
    wait_until(lambda: runtime(bed).get("fallback.summary") in (None, "0"), "nothing is shifted any more")


@pytest.fixture
def shifted(silent: Bed) -> Iterator[Bed]:
    """All that may leave goes to Amazon Bedrock first, because somebody says so."""
    with Sayer(silent, lambda: (200, layer(**{f"fallback.{name}": 100 for name in MODELS}))):
        wait_until(lambda: runtime(silent).get("fallback.summary") == "100", "Envoy has heard")
        yield silent


def test_a_full_fleet_shifts_and_comes_back(bed: Bed, client: Client) -> None:
    policy = bed.policies[0]
    wait_until(lambda: policy.shares().get("summary") == 0, "an idle plane")
    for engine in bed.engines["summary"]:
        engine.behaviour.update({"token_delay": 0.25, "tokens": 8})
    bodies = [chat_body("summary", marker()) for _ in range(24)]
    with Traffic(client, bodies, clients=24) as traffic:
        wait_until(lambda: policy.shares()["summary"] >= 50, "the policy sees more than the fleet takes")
        wait_until(lambda: int(runtime(bed).get("fallback.summary", 0)) >= 50, "Envoy has heard")
        replies = [client.chat("summary") for _ in range(12)]
        first = [reply for reply in replies if reply.backend == "bedrock" and reply.attempts == 1]
        stays = client.chat("summary", headers={"x-residency": "cluster"})
    assert not traffic.lost and {reply.status for reply in replies} == {200}
    assert first, Counter((reply.backend, reply.attempts) for reply in replies)
    assert Audit(bed).of(first[0])["route"] == "summary/chat/shifted"
    assert stays.backend == "fleet" and stays.status in (200, 429)
    wait_until(lambda: runtime(bed).get("fallback.summary") == "0", "all is over")
    assert client.chat("summary").backend == "fleet"


def test_what_must_stay_stays_however_much_is_shifted(shifted: Bed, client: Client) -> None:
    stays = [
        client.chat("intake", text := marker()),
        client.chat("summary", kept := marker(), {"x-residency": "cluster"}),
        client.chat("summary", listed := marker(), [("x-residency", "anywhere"), ("x-residency", "cluster")]),
        client.chat("letters", narrow := marker(), {"x-residency": "region"}),
        client.ask("/v1/completions", {"model": "summary", "prompt": (whole := marker())}),
    ]
    assert [(reply.status, reply.backend) for reply in stays] == [(200, "fleet")] * 5
    for prompt in (text, kept, listed, narrow, whole):
        assert not shifted.bedrock.seen(prompt)
    leaves = [client.chat("summary", gone := marker()), client.chat("letters"), client.chat("summary", stream=True)]
    assert [(reply.status, reply.backend, reply.attempts) for reply in leaves] == [(200, "bedrock", 1)] * 3
    assert shifted.bedrock.seen(gone)


@pytest.mark.parametrize("fault", ["throttled", "unavailable", "error"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_amazon_bedrock_does_not_take_the_fleet_answers(
    shifted: Bed, client: Client, fault: str, stream: bool
) -> None:
    shifted.bedrock.behaviour.update({"fault": fault})
    # Later than the first-token budget, which is no reason to give up where nobody else is left.
    shifted.engines["summary"][0].behaviour.update({"first_token_delay": 2.5})
    reply = client.chat("summary", stream=stream)
    assert (reply.status, reply.backend, reply.attempts) == (200, "fleet", 2), str(reply)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_the_last_word_stays_when_nobody_answers(bed: Bed, client: Client, death: signal.Signals) -> None:
    before = runtime(bed)
    for policy in bed.policies:
        policy.process.popen.send_signal(death)
    with Traffic(client, [chat_body("summary"), chat_body("intake")], clients=2) as traffic:
        wait_until(lambda: len(traffic.replies) > 100, "requests go on")
    assert not traffic.lost and runtime(bed) == before
    for policy in bed.policies:
        policy.process.kill()
        bed.processes.stop(policy.process)
        policy.start()


def test_the_other_replica_takes_over(bed: Bed) -> None:
    one, other = bed.policies
    wait_until(lambda: one.shares() == other.shares() != {}, "both serve the same")
    leader = lambda: bed.policies[0].kubernetes.lease("inference", "router-policy")["spec"]["holderIdentity"]  # noqa: E731
    led = next(policy for policy in bed.policies if leader().startswith(f"{policy.pod}_"))
    left = next(policy for policy in bed.policies if policy is not led)
    bed.processes.stop(led.process)  # SIGTERM gives the Lease back
    wait_until(lambda: leader().startswith(f"{left.pod}_"), "the other one leads")
    assert set(left.shares()) == {"summary", "letters", "intake"}
    led.start()


GARBAGE: dict[str, tuple[int, bytes]] = {
    "no JSON": (200, b"{"),
    "nothing": (200, b""),
    "another type": (200, json.dumps({"version_info": "1", "resources": [{"@type": "type.googleapis.com/x"}]}).encode()),
    "an error": (500, b"oops"),
    "a share of words": (200, layer(**{"fallback.intake": "all", "fallback.summary": "all"})),
    "a share above all": (200, layer(**{"fallback.intake": 10**12, "fallback.summary": 10**12})),
    "a share below nothing": (200, layer(**{"fallback.intake": -5, "fallback.summary": -5})),
    "other keys": (
        200,
        layer(
            **{
                "fallback.intake": 100,
                "fallback.summary/chat/restricted": 100,
                "upstream.healthy_panic_threshold": 100,
                "circuit_breakers.fleet/intake.default.max_retries": 0,
                "envoy.reloadable_features.no_extension_lookup_by_name": False,
                "none": 1,
            }
        ),
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_whatever_the_service_says_nothing_leaves_that_must_stay(silent: Bed, client: Client, kind: str) -> None:
    with Sayer(silent, lambda: GARBAGE[kind]) as sayer:
        asked = sayer.asked
        wait_until(lambda: sayer.asked >= asked + 3, "Envoy asks on")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            prompts = [marker() for _ in range(8)]
            kept = list(pool.map(lambda text: client.chat("summary", text, {"x-residency": "cluster"}), prompts[:4]))
            kept += list(pool.map(lambda text: client.chat("intake", text), prompts[4:]))
        assert [(reply.status, reply.backend) for reply in kept] == [(200, "fleet")] * 8
        assert not [text for text in prompts if silent.bedrock.seen(text)]
        assert client.chat("summary").status == 200
        assert silent.router.process.running


#: Keys of Envoy's runtime at values that refuse, forget or count nothing; each is a share's neighbour in the answer.
HOSTILE = {
    "circuit_breakers.fleet/summary.default.max_requests": 0,
    "circuit_breakers.fleet/summary.default.max_connections": 0,
    "circuit_breakers.fleet/summary.default.max_pending_requests": 0,
    "circuit_breakers.fleet/summary.default.max_retries": 0,
    "circuit_breakers.bedrock/summary.default.max_requests": 0,
    "circuit_breakers.bedrock/summary.default.max_retries": 0,
    "upstream.maintenance_mode.fleet/summary": 100,
    "upstream.maintenance_mode.bedrock/summary": 100,
    "upstream.use_retry": 0,
    "upstream.healthy_panic_threshold": 100,
    "ratelimit.http_filter_enabled": 0,
    "ratelimit.http_filter_enforcing": 0,
    "outlier_detection.consecutive_5xx": 1,
    "outlier_detection.enforcing_success_rate": 100,
}


def test_a_hostile_answer_moves_shares_and_no_other_key_that_matters(silent: Bed, client: Client) -> None:
    fixed = {key: silent.router.runtime(key)[key] for key in HOSTILE}
    with Sayer(silent, lambda: (200, layer(**HOSTILE, **{"fallback.summary": 5}))):
        wait_until(lambda: runtime(silent).get("fallback.summary") == "5", "Envoy has heard")
        assert {key: silent.router.runtime(key)[key] for key in HOSTILE} == fixed
        said = json.loads(silent.router.admin("/runtime?format=json"))
        index = said["layers"].index("policy")
        values = {key: said["entries"][key]["layer_values"] for key in HOSTILE}
        assert all(value[index] == str(HOSTILE[key]) for key, value in values.items()), "it was told all of it"
        # Of the fleet, which would refuse, and of Amazon Bedrock after it has.
        assert client.chat("summary", headers={"x-residency": "cluster"}).status == 200
        for engine in silent.engines["summary"]:
            engine.behaviour.update({"fault": "overloaded"})
        reply = client.chat("summary")
        assert (reply.status, reply.backend) == (200, "bedrock") and reply.attempts > 1


def test_the_same_answer_without_the_fixed_layer_makes_a_router_refuse(silent: Bed, client: Client) -> None:
    """So that the test above is about that layer."""
    (silent.router.folder / "xds" / "runtime.json").rename(silent.router.folder / "runtime.json")
    empty = json.loads((silent.router.folder / "runtime.json").read_text())
    empty["resources"][0]["layer"] = {}
    new = silent.router.folder / "xds" / ".runtime.json"
    new.write_text(json.dumps(empty))
    new.rename(silent.router.folder / "xds" / "runtime.json")
    try:
        with Sayer(silent, lambda: (200, layer(**HOSTILE))):
            key = "upstream.maintenance_mode.fleet/summary"
            wait_until(lambda: silent.router.runtime(key).get(key) == "100", "Envoy has heard")
            assert client.chat("summary", headers={"x-residency": "cluster"}).status == 503
    finally:
        (silent.router.folder / "runtime.json").rename(silent.router.folder / "xds" / "runtime.json")
        key = "upstream.use_retry"
        wait_until(lambda: silent.router.runtime(key).get(key) == "100", "the layer is back")


def test_what_no_layer_can_fix_is_what_the_guide_says(silent: Bed) -> None:
    """A key that nobody fixed is the answer's: docs/policy.md names these."""
    free = {"outlier_detection.max_ejection_percent": 100, "envoy.reloadable_features.no_extension_lookup_by_name": False}
    with Sayer(silent, lambda: (200, layer(**free))):
        key = "outlier_detection.max_ejection_percent"
        wait_until(lambda: silent.router.runtime(key).get(key) == "100", "Envoy has heard")
        assert "outlier_detection.max_ejection_percent" in (ROOT / "docs" / "policy.md").read_text()


def test_limits_of_a_changed_catalogue_are_fixed_without_a_restart(bed: Bed) -> None:
    key = "circuit_breakers.fleet/summary.default.max_requests"
    pid = bed.router.process.pid
    changed = bed.rendered({**bed.values, "limits": {"requests": 7}})
    try:
        bed.router.reload(changed)
        wait_until(lambda: bed.router.runtime(key).get(key) == "7", "the new limit")
        assert bed.router.process.pid == pid and bed.router.process.running
    finally:
        bed.router.reload(bed.render)
        wait_until(lambda: bed.router.runtime(key).get(key) == "4096", "the old one")


def test_the_start_waits_for_nobody(bed: Bed, tmp_path: Any) -> None:
    """A router that finds no policy service serves all the same."""
    for policy in bed.policies:
        policy.process.kill()
    with bed.another_router(tmp_path / "other") as router:
        router.wait_for_engines({name: 1 for name in MODELS})
        other = Client(router.url)
        assert other.ask(CHAT, chat_body("summary")).backend == "fleet"
        other.close()
    for policy in bed.policies:
        bed.processes.stop(policy.process)
        policy.start()
