"""The load balancer's stand-in of the elastic plane, a real Envoy, in front of servers that stand for routers."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from load_cases import PLANE

from inference_plane import helm
from inference_plane.loop import balancer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Processes, free_addresses
from inference_plane.onehost.serving import ServerThread, send_end, send_json, send_start

HANG = 60.0
PORT, STATUS_PORT = 8080, 8081


class Target:
    """One address with the router's two ports. `go_on` ends its streams, `healthy` is what its readiness says."""

    def __init__(self, address: str) -> None:
        self.address, self.healthy, self.asked = address, True, 0
        self.go_on, self.streaming = threading.Event(), threading.Event()
        self.servers = [ServerThread(self._serve, address, PORT), ServerThread(self._status, address, STATUS_PORT)]

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        if scope["path"] != "/stream":
            await send_json(send, 200, self.address, {"x-request-id": "of-the-router", "server": "inference-plane"})
            return
        await send_start(send, 200, "text/event-stream")
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        self.streaming.set()
        while not self.go_on.is_set():
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"ended", "more_body": True})
        await send_end(send)

    async def _status(self, scope: Any, receive: Any, send: Any) -> None:
        await send_json(send, 200 if self.healthy else 503, {})


class Slices:
    """The API server's list of EndpointSlices: `ready` are the addresses that are, `leaving` those that terminate."""

    def __init__(self, *ready: str) -> None:
        self.ready, self.leaving = list(ready), list[str]()

    def list(self, *asked: str, **query: str) -> list[dict[str, Any]]:
        assert asked == ("discovery.k8s.io/v1", "EndpointSlice", "inference")
        assert query == {"labelSelector": "kubernetes.io/service-name=router"}
        endpoints = [{"addresses": [address], "conditions": {"ready": True}} for address in self.ready]
        endpoints += [{"addresses": [address], "conditions": {"ready": False}} for address in self.leaving]
        return [{"ports": [{"name": "http", "port": PORT}, {"name": "status", "port": STATUS_PORT}],
                 "endpoints": endpoints}]  # fmt: skip


@pytest.fixture(scope="module")
def ingress() -> Any:
    """As the chart renders it, but that health checks are quick."""
    values = helm.merged(PLANE, {"router": {"auth": Issuer().values()}})
    found = helm.template("inference-plane", values=values, namespace="inference").find("Ingress", "router")
    found["metadata"]["annotations"][balancer.ANNOTATION + "healthcheck-interval-seconds"] = "1"
    found["metadata"]["annotations"][balancer.ANNOTATION + "healthcheck-timeout-seconds"] = "1"
    return found


@pytest.fixture
def targets() -> Iterator[list[Target]]:
    made = [Target(address) for address in free_addresses(2, PORT)]
    servers = [server for target in made for server in target.servers]
    for server in servers:
        server.start()
    yield made
    for target in made:
        target.go_on.set()
    for server in servers:
        server.stop()


@pytest.fixture
def slices(targets: list[Target]) -> Slices:
    return Slices(*(target.address for target in targets))


@pytest.fixture
def url(ingress: Any, slices: Slices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(balancer, "NOTICE_SECONDS", 0.1)
    api: Any = slices
    with Processes() as processes, balancer.Balancer(processes, ingress, api, tmp_path) as made:
        yield made.url


def ask(url: str, path: str = "/") -> str:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + path, timeout=HANG) as reply:
            assert path == "/stream" or reply.headers["x-request-id"] == "of-the-router"
            return reply.read().decode().strip('"')
    except urllib.error.HTTPError as error:
        return str(error.code)


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_requests_go_to_every_target(url: str, targets: list[Target]) -> None:
    until(lambda: {ask(url) for _ in range(10)} == {target.address for target in targets})


def test_a_target_that_leaves_ends_what_it_has_and_gets_nothing_new(
    url: str, targets: list[Target], slices: Slices
) -> None:
    read: list[str] = []
    streams = [threading.Thread(target=lambda: read.append(ask(url, "/stream"))) for _ in range(4)]
    for stream in streams:
        stream.start()
    leaving, staying = targets
    until(lambda: leaving.streaming.is_set() and staying.streaming.is_set())
    slices.ready.remove(leaving.address)
    slices.leaving.append(leaving.address)
    until(lambda: {ask(url) for _ in range(10)} == {staying.address})
    before = leaving.asked
    assert {ask(url) for _ in range(20)} == {staying.address} and leaving.asked == before
    assert read == []
    for target in targets:
        target.go_on.set()
    for stream in streams:
        stream.join(HANG)
    assert read == ["begun ended"] * 4


def test_a_target_that_fails_its_checks_is_not_asked_unless_all_fail(url: str, targets: list[Target]) -> None:
    sick, well = targets
    sick.healthy = False
    until(lambda: {ask(url) for _ in range(10)} == {well.address})
    well.healthy = False
    until(lambda: {ask(url) for _ in range(10)} == {sick.address, well.address})


def test_without_a_target_it_says_so_and_asks_nobody(url: str, targets: list[Target], slices: Slices) -> None:
    slices.ready.clear()
    until(lambda: ask(url) == "503")
