"""The policy service beside a real router: Envoy on the rendered files, replayed engines, the Bedrock stand-in."""

from __future__ import annotations

import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from policy_bed import MODEL, NAMESPACE, World, get, metric, share, until
from inference_plane.onehost.kubernetes import KubeStandIn

from inference_plane.checkout import ROOT
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.processes import Processes, free_port
from inference_plane.onehost.replay import ReplayEngine

METRICS_PORT = 8001
VALUES = {
    "auth": {"mode": "none"},
    "health": {"interval": "200ms", "timeout": "500ms", "unhealthyThreshold": 2, "ejectionTime": "300ms"},
    "dns": {"refreshRate": "200ms"},
    "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "residency": {"geography": "eu"},
        "network": {"policies": False},
        "models": {
            MODEL: {
                "source": f"s3://models/{MODEL}/v7/",
                "weightsGiB": 15.3,
                "accelerator": "l40s",
                "maxModelLen": 16384,
                "residency": "region",
                "replicas": {"min": 1},
                "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"},
            }
        },
    },
}


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """One engine, in which two requests run and one waits."""
    engine = {"max_num_seqs": 2, "max_num_queued_reqs": 3, "metrics_port": METRICS_PORT}
    (tmp_path / "bed").mkdir()
    with Bed(tmp_path / "bed", values=VALUES, namespace=NAMESPACE, **engine) as bed:
        yield bed


@pytest.fixture
def ports(bed: Bed, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Where the service answers routers, and where everybody else; it reads that router and that engine."""
    port, status = free_port(), free_port()
    config = World().config(port, status, model={"metricsPort": METRICS_PORT, "requestsPerReplica": 3})
    config["routers"]["port"] = urllib.parse.urlsplit(bed.router.status_url).port
    (tmp_path / "policy.json").write_text(json.dumps(config))
    with KubeStandIn() as kube, Processes() as processes:
        kube.slice(NAMESPACE, MODEL, [engine.host for engine in bed.engines[MODEL]])
        kube.slice(NAMESPACE, "router", ["127.0.0.1"], engine=False)
        processes.start(
            "policy",
            [sys.executable, "-m", "inference_plane.policy", "--config", tmp_path / "policy.json"]
            + ["--kubernetes", kube.url],
            env={"PYTHONPATH": str(ROOT / "src")},
            log_path=tmp_path / "policy.log",
            ready=f"http://127.0.0.1:{status}/ready",
        )
        yield port, status


def ask(bed: Bed) -> str:
    """Who served one chat completion."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}
    request = urllib.request.Request(
        f"{bed.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.headers["x-inference-backend"]


def demand(status: int) -> float:
    return json.loads(get(status, f"/demand/{MODEL}")[1])["demand"]


def test_a_full_fleet_and_a_lost_one_are_seen_as_they_are(bed: Bed, ports: tuple[int, int]) -> None:
    port, status = ports
    (engine,) = bed.engines[MODEL]
    assert isinstance(engine, ReplayEngine)
    until(lambda: demand(status) == 0 and share(port) == 0, "an idle plane")
    engine.behaviour.update({"first_token_delay": 5.0})
    bed.bedrock.behaviour.update({"first_token_delay": 5.0})
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, bed) for _ in range(8)]
        # Three in the engine, of which two run, and five that it refused at Bedrock.
        until(lambda: demand(status) == 8, "every request is counted once")
        until(lambda: share(port) == 70, "five of the seven that would run do not fit")
        assert metric(status, f'inference_policy_room_requests{{model="{MODEL}"}}') == 2
        assert metric(status, f'inference_policy_wanted_requests{{model="{MODEL}"}}') == 7
        assert sorted(answer.result() for answer in answers).count("bedrock") == 5
    engine.reset()
    bed.bedrock.behaviour.update({"first_token_delay": 0.0})
    until(lambda: share(port) == 0 and demand(status) == 0, "all is over")

    # Kubernetes still calls it ready; the router's health checks do not.
    engine.stop()
    until(lambda: share(port) == 100, "the router reaches no engine")
    assert metric(status, f'inference_policy_reason{{model="{MODEL}",reason="no-engine"}}') == 1
    assert ask(bed) == "bedrock"
    engine.start()
    until(lambda: share(port) == 0, "it is back")
