"""The policy service on one machine: engines and routers that answer recorded text, a stand-in for the API server."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference_plane.onehost.kubernetes import KubeStandIn

from inference_plane.onehost.processes import free_port
from inference_plane.onehost.serving import ServerThread, send_json

DATA = Path(__file__).parent.parent / "data"
SATURATED = (DATA / "vllm-0.32/metrics-saturated.txt").read_text()
IDLE = (DATA / "vllm-0.32/metrics-idle.txt").read_text()
ENVOY = (DATA / "envoy-1.40/metrics.txt").read_text()

NAMESPACE, MODEL = "inference", "summary"
#: How long a test waits for what must come; far more than it takes.
GUARD = 30.0


class Exposition:
    """A context manager: one pod or router whose /metrics is `text`, or what a fault makes of it."""

    def __init__(self, host: str, port: int, text: str) -> None:
        self.host, self.text, self.hang, self.queries = host, text, False, []
        self._server = ServerThread(self._app, host, port)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.queries.append(scope["query_string"].decode())
        if self.hang:
            await asyncio.sleep(3600)
        await send_json(send, 200, self.text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> Exposition:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def engine_text(running: float, waiting: float, text: str = SATURATED) -> str:
    """A capture with other numbers of requests."""
    text = re.sub(r"^(vllm:num_requests_running\{.*\}) .*$", rf"\1 {running}", text, flags=re.MULTILINE)
    return re.sub(r"^(vllm:num_requests_waiting\{.*\}) .*$", rf"\1 {waiting}", text, flags=re.MULTILINE)


def router_text(*, engines: int, bedrock: int = 0, fleet: int = 0, **counts: float) -> str:
    """The capture with other gauges of the model, and with counters such as `final_429` or `retried_503`."""
    text = ENVOY
    gauges = {
        f'envoy_cluster_membership_healthy{{envoy_cluster_name="fleet/{MODEL}"}}': engines + 1,
        f'envoy_cluster_upstream_rq_active{{envoy_cluster_name="bedrock/{MODEL}"}}': bedrock,
        f'envoy_cluster_upstream_rq_active{{envoy_cluster_name="fleet/{MODEL}"}}': fleet,
    }
    for name, count in counts.items():
        kind, code = name.split("_")
        metric = {"final": "envoy_cluster_upstream_rq", "retried": "envoy_cluster_retry_upstream_rq"}[kind]
        gauges[f'{metric}{{envoy_response_code="{code}",envoy_cluster_name="fleet/{MODEL}"}}'] = count
    for series, value in gauges.items():
        text, found = re.subn(rf"^{re.escape(series)} .*$", f"{series} {value}", text, flags=re.MULTILINE)
        assert found == 1, f"the capture has no {series}"
    return text


class World:
    """A context manager: a router and two engines of one model, and the API that knows of them."""

    def __init__(self) -> None:
        self.metrics_port, self.router_port = free_port(), free_port()
        self.kube = KubeStandIn()
        self.engines = [
            Exposition(f"127.20.0.{i}", self.metrics_port, engine_text(2, 0)) for i in (1, 2)
        ]
        self.router = Exposition("127.20.1.1", self.router_port, router_text(engines=2))

    def __enter__(self) -> World:
        for one in (self.kube, self.router, *self.engines):
            one.start()
        self.kube.slice(NAMESPACE, MODEL, [engine.host for engine in self.engines])
        self.kube.slice(NAMESPACE, "router", [self.router.host], engine=False)
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self.kube, self.router, *self.engines):
            one.stop()

    def config(self, port: int = 8090, status: int = 8091, *, model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """Everything happens in a tenth of the usual time."""
        entry = {
            "namespace": NAMESPACE,
            "fleets": [MODEL],
            "deployments": [MODEL],
            "metricsPort": self.metrics_port,
            "fallback": True,
            "requestsPerReplica": 12,
            **(model or {}),
        }
        return {
            "listen": {"address": "127.0.0.1", "port": port, "statusPort": status},
            "namespace": NAMESPACE,
            "lease": {"name": "router-policy", "durationSeconds": 1.5, "renewSeconds": 0.3},
            "tickSeconds": 0.1,
            "routers": {"namespace": NAMESPACE, "service": "router", "port": self.router_port},
            "tuning": {
                "staleSeconds": 1, "lostSeconds": 3, "holdSeconds": 1, "lowerSeconds": 0.1, "smoothingSeconds": 0,
                "windowSeconds": 1, "settleSeconds": 0.2, "readSeconds": 0.5,
                "rememberSeconds": 0.2,
            },
            "models": {MODEL: entry},
            **changes,
        }


def until(test: Callable[[], Any], what: str) -> Any:
    """The first true answer. Raises AssertionError where there is none for a long time."""
    end = time.monotonic() + GUARD
    while time.monotonic() < end:
        if value := test():
            return value
        time.sleep(0.02)
    raise AssertionError(f"never came: {what}")


def get(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and text; (0, "") where nobody listens."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data=None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def share(port: int) -> int | None:
    """The share that a router would be given now."""
    status, text = get(port, "/v3/discovery:runtime", {})
    return json.loads(text)["resources"][0]["layer"][f"fallback.{MODEL}"] if status == 200 else None


def metric(port: int, series: str) -> float | None:
    """One sample of the service's own metrics."""
    for line in get(port, "/metrics")[1].splitlines():
        name, _, value = line.rpartition(" ")
        if name == series:
            return float(value)
    return None
