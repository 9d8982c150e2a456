"""Looks at the models that sleep, twice a second: what they are told, what they have, the nodes that come for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from inference_plane.cluster.client import Client, Object
from inference_plane.cluster.diagnose import condition, ready

from .steps import Claim, Glance, Model
from .watch import told_demand

#: Between two looks, beside the time that a look takes.
SECONDS = 0.5
MODEL = "inference-plane/model"


class Glances:
    """Looks at everything at once. `deployments` are the names of the models' Deployments, `found` tells how many
    engines of a model every router finds healthy."""

    def __init__(
        self, client: Client, policy_url: str, namespace: str, deployments: Mapping[str, str],
        found: Callable[[], Mapping[str, int]],
    ) -> None:  # fmt: skip
        self._client, self._policy, self._namespace = client, policy_url, namespace
        self._deployments, self._found = deployments, found

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
                demand=told_demand(self._policy, name),
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


def _runs(pod: Object) -> bool:
    """Whether the engine's container was started, ready or not."""
    return any("running" in each["state"] for each in pod.get("status", {}).get("containerStatuses", ()))


def _claim(claim: Object, hosts: Mapping[str, set[str]]) -> Claim:
    launched, up = (condition(claim, name) == "True" for name in ("Launched", "Ready"))
    node = claim.get("status", {}).get("nodeName", "")
    return Claim(launched, up, node, frozenset(hosts.get(node, ()) if node else ()))
