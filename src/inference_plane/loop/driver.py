"""Acts on the marks of a profile in the elastic plane: what people, EC2 and bad luck do to a fleet."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inference_plane import helm
from inference_plane.cluster.client import Object, Refused
from inference_plane.cluster.karpenter import instances_of

from .kubelet import POWER

if TYPE_CHECKING:
    from .plane import Loop

#: Seconds between a Spot interruption warning and the instance's end, as EC2 has it.
SPOT_WARNING = 120.0
#: Seconds until the Node of a dead instance is gone: the controller manager's node-monitor-grace-period (50 s) and the
#: cloud controller's look at EC2.
NODE_GONE = 60.0
_PATIENCE = 600.0
_POLL = 0.5


class LoopDriver:
    """Knows rollouts of engines and routers, drains, reclaimed and lost nodes, and a zone that goes."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._versions = itertools.count(2)
        self._changed: dict[str, Any] = {}
        self._acts: dict[str, Callable[[], None]] = {
            "rollout": self._rollout,
            "router-rollout": self._rollout_routers,
            "envoy-rollout": self._rollout_envoy,
            "node-drain": self._drain,
            "spot-reclaim": self._reclaim,
            "node-loss": lambda: self._lose(self._nodes()[:1]),
            "zone-loss": self._lose_zone,
        }
        self.marks: Sequence[str] = tuple(self._acts)

    def act(self, mark: str) -> None:
        """Returns when it is over, and every fleet and the routers are whole again; else raises TimeoutError."""
        self._acts[mark]()
        self._whole()

    def _rollout(self) -> None:
        """Every model gets its next version."""
        version = next(self._versions)
        models = {name: {"source": f"s3://models/{name}/v{version}/"} for name in self._loop.values["global"]["models"]}
        self._upgrade({"global": {"models": models}})

    def _rollout_routers(self) -> None:
        """A line of Envoy's bootstrap is another one, which a running Envoy does not read."""
        self._replace_routers({"router": {"limits": {"downstreamConnections": 20000 + next(self._versions)}}})

    def _rollout_envoy(self) -> None:
        """Envoy's image has another tag; what runs is the same."""
        self._replace_routers({"global": {"images": {"envoy": {"tag": f"another-{next(self._versions)}"}}}})

    def _replace_routers(self, changed: Mapping[str, Any]) -> None:
        """The Deployment replaces every router; over when those that were there have left."""
        before = self._routers()
        self._upgrade(changed)
        self._until("every router is replaced", lambda: not before & self._routers())

    def _routers(self) -> set[str]:
        return {_name(pod) for pod in self._loop.router.pods()}

    def _upgrade(self, changed: Mapping[str, Any]) -> None:
        """`helm upgrade`, as people do it, on top of what earlier ones have changed."""
        self._changed = helm.merged(self._changed, changed)
        self._loop.install(helm.merged(self._loop.values, self._changed))

    def _drain(self) -> None:
        """`kubectl drain` of a node: cordoned, then every pod evicted, as often as a disruption budget says no."""
        node = self._nodes()[0]
        self._loop.client.patch("v1", "Node", _name(node), {"spec": {"unschedulable": True}})
        self._until("the node is empty", lambda: not self._evict(_name(node)))

    def _evict(self, node: str) -> list[Object]:
        """Asks every engine on a node to leave. Those that are still there."""
        pods = self._engines(node)
        for pod in pods:
            meta = {"name": _name(pod), "namespace": pod["metadata"]["namespace"]}
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/eviction"
            try:
                self._loop.client.call("POST", path, {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta})
            except Refused as error:
                if error.status not in (404, 429):
                    raise
        return pods

    def _reclaim(self) -> None:
        """EC2 tells Karpenter by its queue, and two minutes later takes the instance."""
        node = self._nodes()[0]
        self._loop.warn(node["spec"]["providerID"].rpartition("/")[2])
        deadline = time.monotonic() + SPOT_WARNING
        while self._loop.client.get("v1", "Node", _name(node)):
            if time.monotonic() > deadline:
                return self._lose([node])
            time.sleep(_POLL)

    def _lose_zone(self) -> None:
        zone = "topology.kubernetes.io/zone"
        nodes = self._nodes()
        self._lose([node for node in nodes if node["metadata"]["labels"][zone] == nodes[0]["metadata"]["labels"][zone]])

    def _lose(self, nodes: list[Object]) -> None:
        """Without a word: the engines are dead at once, EC2 knows, the cluster learns it later."""
        for node in nodes:
            self._loop.client.patch("v1", "Node", _name(node), {"metadata": {"annotations": {POWER: "off"}}})
        instances = [node["spec"]["providerID"].rpartition("/")[2] for node in nodes]
        self._loop.account.client("ec2").terminate_instances(InstanceIds=instances)
        time.sleep(NODE_GONE)
        for node in nodes:
            self._loop.client.delete("v1", "Node", _name(node))
        # Until then a Deployment counts them as available. They are gone later still: no kubelet says that they ended.
        self._until("the lost engines are told to end", lambda: all(
            "deletionTimestamp" in pod["metadata"] for node in nodes for pod in self._engines(_name(node))))

    def _nodes(self) -> list[Object]:
        """Those that Karpenter brought and that have engines, the one with most first. Raises LookupError for none."""
        known = instances_of(self._loop.account)
        nodes = [n for n in self._loop.client.list("v1", "Node") if n["spec"].get("providerID") in known]
        count = {_name(node): len(self._engines(_name(node))) for node in nodes}
        if not any(count.values()):
            raise LookupError("no node that Karpenter brought has an engine, so none can be drained or lost")
        return sorted((n for n in nodes if count[_name(n)]), key=lambda n: (-count[_name(n)], _name(n)))

    def _engines(self, node: str) -> list[Object]:
        return self._loop.client.list(
            "v1", "Pod", fieldSelector=f"spec.nodeName={node}", labelSelector="app.kubernetes.io/component=engine")

    def _whole(self) -> None:
        def missing() -> dict[str, Any]:
            found = {}
            for name in (*self._loop.deployments.values(), "router"):
                each = self._loop.client.get("apps/v1", "Deployment", name, self._loop.namespace)
                status, wanted = each["status"], each["spec"]["replicas"]
                current = status.get("observedGeneration") == each["metadata"]["generation"]
                if not current or not wanted == status.get("updatedReplicas", 0) == status.get("availableReplicas", 0):
                    found[name] = status
            return found

        time.sleep(_POLL)  # a Deployment's status follows its pods, a moment later
        self._until("every fleet and the routers are whole", lambda: not missing())

    def _until(self, what: str, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not check():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {_PATIENCE:g} s: {what}")
            time.sleep(_POLL)


def _name(obj: Object) -> str:
    return obj["metadata"]["name"]


def warning(instance: str, region: str) -> str:
    """EC2's event as EventBridge puts it into a queue."""
    return json.dumps({
        "version": "0", "source": "aws.ec2", "detail-type": "EC2 Spot Instance Interruption Warning",
        "account": "123456789012", "region": region, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "resources": [f"arn:aws:ec2:{region}:123456789012:instance/{instance}"],
        "detail": {"instance-id": instance, "instance-action": "terminate"},
    })
