"""Looks at the models that sleep, twice a second: what they are told, what they have, the nodes that come for them."""

from __future__ import annotations

import collections
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from inference_plane.cluster.client import Client, Object, Refused
from inference_plane.cluster.diagnose import condition, ready

from .steps import Claim, Glance, Model

#: Between two looks, beside the time that a look takes.
SECONDS = 0.5
MODEL = "inference-plane/model"


class Glances:
    """A context manager that looks in a thread; `seen` grows, and so do `problems`.

    `deployments` are the names of the models' Deployments, `found` tells how many engines of a model the router finds
    healthy.
    """

    def __init__(
        self, client: Client, policy_url: str, namespace: str, deployments: Mapping[str, str],
        found: Callable[[], Mapping[str, int]],
    ) -> None:  # fmt: skip
        self.seen: list[Glance] = []
        self.problems: collections.Counter[str] = collections.Counter()
        self._client, self._policy, self._namespace = client, policy_url, namespace
        self._deployments, self._found = deployments, found
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Glances:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SECONDS):
            try:
                self.seen.append(self.look())
            except (Refused, OSError, urllib.error.URLError) as error:
                self.problems[str(error)] += 1

    def look(self) -> Glance:
        """Everything now. Raises Refused or OSError where somebody does not answer."""
        pods = self._client.list("v1", "Pod", self._namespace, labelSelector="app.kubernetes.io/component=engine")
        scales = {o["metadata"]["name"]: o for o in self._client.list("apps/v1", "Deployment", self._namespace)}
        claims = self._client.list("karpenter.sh/v1", "NodeClaim")
        found = self._found()
        models = {}
        for name, deployment in self._deployments.items():
            own = [pod for pod in pods if pod["metadata"]["labels"][MODEL] == name]
            models[name] = Model(
                demand=self._demand(name),
                replicas=scales.get(deployment, {}).get("spec", {}).get("replicas", 0),
                pods=len(own),
                bound=sum(bool(pod["spec"].get("nodeName")) for pod in own),
                started=sum(map(_runs, own)),
                ready=sum(map(ready, own)),
                found=found[name],
                nodes=frozenset(node for pod in own if (node := pod["spec"].get("nodeName"))),
            )
        hosts: dict[str, set[str]] = {}
        for pod in pods:
            hosts.setdefault(pod["spec"].get("nodeName", ""), set()).add(pod["metadata"]["labels"][MODEL])
        known = {claim["metadata"]["name"]: _claim(claim, hosts) for claim in claims}
        return Glance(time.time(), models, known, os.getloadavg()[0])

    def _demand(self, name: str) -> float | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self._policy}/demand/{name}", timeout=5) as reply:
                return json.loads(reply.read())["demand"]
        except urllib.error.HTTPError:  # it is not known
            return None


def _runs(pod: Object) -> bool:
    """Whether the engine's container was started, ready or not."""
    return any("running" in each["state"] for each in pod.get("status", {}).get("containerStatuses", ()))


def _claim(claim: Object, hosts: Mapping[str, set[str]]) -> Claim:
    launched, up = (condition(claim, name) == "True" for name in ("Launched", "Ready"))
    node = claim.get("status", {}).get("nodeName", "")
    return Claim(launched, up, node, frozenset(hosts.get(node, ()) if node else ()))
