"""What the elastic plane's driver does to its routers, on a plane whose Deployment a test plays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from load_cases import PLANE

from inference_plane import helm
from inference_plane.loop import catalogue, driver
from inference_plane.loop.driver import LoopDriver
from inference_plane.onehost.issuer import Issuer

WHOLE = {"observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 2}


class Loop:
    """Each look at the pods after an upgrade finds one old router less and one new one more."""

    def __init__(self) -> None:
        self.values = helm.merged(PLANE, {"router": {"auth": Issuer().values()}})
        self.deployments, self.namespace = catalogue.deployments(self.values), "inference"
        self.router, self.client = SimpleNamespace(pods=self._pods), SimpleNamespace(get=self._deployment)
        self.installed: list[dict[str, Any]] = []
        self.routers, self.looks = ["old-1", "old-2"], 0
        self.old_when_whole: list[str] | None = None

    def install(self, values: dict[str, Any]) -> None:
        self.installed.append(values)

    def _pods(self) -> list[dict[str, Any]]:
        found = [{"metadata": {"name": name}} for name in self.routers]
        if self.installed:
            self.looks += 1
            self.routers = [*self.routers[1:], f"new-{self.looks}"]
        return found

    def _deployment(self, *asked: str) -> dict[str, Any]:
        if self.old_when_whole is None:
            self.old_when_whole = [name for name in self.routers if name.startswith("old")]
        return {"metadata": {"generation": 1}, "spec": {"replicas": 2}, "status": WHOLE}


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(driver, "_POLL", 0)
    return Loop()


def pod(values: dict[str, Any]) -> tuple[Any, list[str]]:
    """Of the router's rendered pod: its annotations, which have the bootstrap's checksum, and its images."""
    render = helm.template("inference-plane", values=values, namespace="inference")
    template = render.find("Deployment", "router")["spec"]["template"]
    images = [each["image"] for each in [*template["spec"]["containers"], *template["spec"]["initContainers"]]]
    return template["metadata"]["annotations"], images


@pytest.mark.parametrize(("mark", "changed"), [("router-rollout", [True, False]), ("envoy-rollout", [False, True])])
def test_routers_get_another_pod_and_it_is_over_when_the_old_ones_have_left(
    mark: str, changed: list[bool], loop: Loop
) -> None:
    LoopDriver(loop).act(mark)  # type: ignore[arg-type]
    assert loop.old_when_whole == [] and loop.looks == 3
    assert [was != now for was, now in zip(pod(loop.values), pod(loop.installed[0]), strict=True)] == changed


def test_an_upgrade_keeps_what_those_before_it_have_changed(loop: Loop) -> None:
    acts = LoopDriver(loop)  # type: ignore[arg-type]
    for mark in ("rollout", "router-rollout", "rollout", "envoy-rollout"):
        acts.act(mark)
    first, second, third, last = loop.installed
    assert first["global"]["models"]["records"]["source"] == second["global"]["models"]["records"]["source"]
    assert third["global"]["models"]["records"]["source"] != second["global"]["models"]["records"]["source"]
    assert second["router"]["limits"] == third["router"]["limits"] == last["router"]["limits"]
    assert last["global"]["models"] == third["global"]["models"] and "images" in last["global"]
