"""The elastic plane's kubelet of router pods: real Envoys and drains, beside an API server that only keeps objects."""

from __future__ import annotations

import copy
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from load_cases import PLANE

from inference_plane import helm
from inference_plane.loop import router_pods
from inference_plane.loop.router_pods import RouterPods, placed
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Processes, free_addresses
from inference_plane.onehost.router import MOUNTS, Witness

HANG = 120.0
PORT = 8080


class Api:
    """Pods of the rendered Deployment by name, and its ConfigMaps."""

    def __init__(self, render: helm.Render) -> None:
        self.maps = {name: copy.deepcopy(render.find("ConfigMap", name)) for name in MOUNTS}
        self.pods: dict[str, dict[str, Any]] = {}
        self._template = render.find("Deployment", "router")["spec"]["template"]

    def add(self, name: str) -> None:
        pod = copy.deepcopy(self._template)
        pod["metadata"] |= {"name": name, "namespace": "inference", "uid": f"uid-{name}"}
        pod["spec"]["nodeName"] = "ordinary-a"
        self.pods[name] = pod

    def list(self, *asked: str, **query: str) -> list[dict[str, Any]]:
        assert asked == ("v1", "Pod") and query == {"labelSelector": "app.kubernetes.io/component=router"}
        return copy.deepcopy(list(self.pods.values()))

    def get(self, version: str, kind: str, name: str, namespace: str) -> dict[str, Any]:
        assert (version, kind, namespace) == ("v1", "ConfigMap", "inference")
        return copy.deepcopy(self.maps[name])

    def patch(self, version: str, kind: str, name: str, change: Mapping[str, Any], namespace: str, *, subresource: str):
        assert (version, kind, namespace, subresource) == ("v1", "Pod", "inference", "status")
        self.pods[name] |= copy.deepcopy(dict(change))

    def delete(self, version: str, kind: str, name: str, namespace: str, **query: int) -> None:
        assert (version, kind, namespace, query) == ("v1", "Pod", "inference", {"gracePeriodSeconds": 0})
        del self.pods[name]

    def ready(self, name: str) -> bool:
        conditions = self.pods[name].get("status", {}).get("conditions", ())
        return {each["type"]: each["status"] for each in conditions}.get("Ready") == "True"

    def url(self, name: str) -> str:
        return f"http://{self.pods[name]['status']['podIP']}:{PORT}"


class Plane:
    """Two pods that are ready. `until` has the kubelet work on until something is so."""

    def __init__(self, api: Api, kubelet: RouterPods, folder: Path, token: str) -> None:
        self.api, self.folder, self._kubelet, self._token = api, folder, kubelet, token
        for name in ("one", "two"):
            api.add(name)
        self.until(lambda: api.ready("one") and api.ready("two"))

    def until(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + HANG
        while not check():
            assert time.monotonic() < deadline
            self._kubelet.tick(time.monotonic())
            time.sleep(0.05)

    def ask(self, name: str) -> tuple[int, str | None]:
        """The answer to a prompt for a model without an engine: its status and reason."""
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        body = json.dumps({"model": "records", "messages": [{"role": "user", "content": "x"}]}).encode()
        request = urllib.request.Request(f"{self.api.url(name)}/v1/chat/completions", body, headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG) as reply:
                return reply.status, reply.headers["x-plane-reason"]
        except urllib.error.HTTPError as error:
            return error.code, error.headers["x-plane-reason"]

    def audit(self, name: str) -> list[int]:
        return [line["status"] for line in Witness(self.folder / router_pods.FOLDER / name).audit()]


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture(scope="module")
def render(issuer: Issuer, dns: DnsServer) -> helm.Render:
    values = helm.merged(PLANE, {
        "alb-ingress": {"enabled": False},
        "router": {
            "auth": issuer.values(),
            "concurrency": 1,
            "dns": {"resolvers": [f"127.0.0.1:{dns.port}"]},
            "drainSeconds": 30,
            "endpointStalenessSeconds": 1,
        },
    })  # fmt: skip
    return helm.template("inference-plane", values=values, namespace="inference")


@pytest.fixture
def plane(render: helm.Render, issuer: Issuer, tmp_path: Path) -> Iterator[Plane]:
    api, addresses = Api(render), iter(free_addresses(2, PORT))
    as_client: Any = api
    with Processes() as processes, RouterPods(as_client, processes, tmp_path, addresses) as kubelet:
        yield Plane(api, kubelet, tmp_path, issuer.token("care"))


def test_every_pod_is_a_router_of_its_own_and_leaves_by_its_own_drain(plane: Plane) -> None:
    assert plane.api.url("one") != plane.api.url("two")
    # Said by the no-capacity listener, which every Envoy has for itself.
    assert [plane.ask(name) for name in ("one", "two", "two")] == [(503, "no-capacity")] * 3
    plane.until(lambda: (plane.audit("one"), plane.audit("two")) == ([503], [503, 503]))
    plane.api.pods["one"]["metadata"]["deletionTimestamp"] = "2026-11-01T00:00:00Z"
    plane.until(lambda: "one" not in plane.api.pods)
    lines = (plane.folder / router_pods.FOLDER / "one" / "drain.log").read_text().splitlines()
    assert json.loads(lines[-1])["outcome"] == "drained"
    assert plane.audit("one") == [503]
    assert plane.ask("two") == (503, "no-capacity") and plane.api.ready("two")


def test_a_changed_config_map_reaches_a_running_envoy(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_pods, "REFRESH_SECONDS", 0.1)
    data = plane.api.maps["router-routes"]["data"]
    data["routes.json"] = data["routes.json"].replace("records", "minutes")
    plane.until(lambda: plane.ask("one")[0] == 404 and plane.ask("two")[0] == 404)  # an unknown model


def test_a_router_that_is_gone_is_not_ready(plane: Plane) -> None:
    (envoy,) = [each for each in plane._kubelet._processes if each.name == "one envoy"]
    envoy.kill()
    plane.until(lambda: not plane.api.ready("one"))
    assert plane.api.ready("two")


def test_only_what_an_envoy_listens_on_is_placed_at_its_pod(render: helm.Render) -> None:
    before = {name: render.find("ConfigMap", name)["data"] for name in MOUNTS}
    after = placed(before, "10.0.0.1")
    changed = []
    for name, files in before.items():
        for file, text in files.items():
            if not file.endswith(".json"):
                assert after[name][file] == text
                continue
            old, new = (json.dumps(json.loads(each), indent=0).splitlines() for each in (text, after[name][file]))
            assert len(old) == len(new)
            changed += [
                (file, was, now, old[at + 1]) for at, (was, now) in enumerate(zip(old, new, strict=True)) if was != now]
    assert {now for _, _, now, _ in changed} == {'"address": "10.0.0.1",'}
    bootstrap = [("0.0.0.0", 8080), ("127.0.0.1", 8082), ("0.0.0.0", 8081)]
    no_capacity = [("127.0.0.1", 8082)] * len(PLANE["global"]["models"])  # an endpoint of each fleet
    assert [(file, was, port) for file, was, _, port in changed] == [
        (file, f'"address": "{address}",', f'"port_value": {port}')
        for file, sockets in (("bootstrap.json", bootstrap), ("clusters.json", no_capacity))
        for address, port in sockets
    ]
