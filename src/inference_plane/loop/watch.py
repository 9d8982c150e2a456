"""What the control loops do, second by second: replicas, routers, nodes, queues, demand and shares."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from inference_plane.cluster.client import Client
from inference_plane.cluster.diagnose import ready

from .router_pods import SELECTOR as ROUTERS

SECONDS = 1.0
#: What is read of the policy service and of engines.
_READ = ("inference_policy_share{", "vllm:num_requests_running{", "vllm:num_requests_waiting{")


def document(readings: Sequence[Reading], began: float) -> list[dict[str, Any]]:
    """For a report: times in seconds from `began`."""
    made = [dataclasses.asdict(reading) for reading in readings]
    return [{**each, "at": each["at"] - began} for each in made if each["at"] >= began]


@dataclasses.dataclass(frozen=True)
class Model:
    """One model at one moment. `demand` is what autoscalers are told (None: not known), `share` points of 100."""

    replicas: int = 0
    ready: int = 0
    pending: int = 0
    demand: float | None = None
    running: float = 0.0
    waiting: float = 0.0
    share: float = 0.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """One moment, `at` in epoch seconds. `nodes` counts those that Karpenter brought by capacity type, ready ones;
    `claims` all that it has asked for; `routers` those that are ready and stay."""

    at: float
    models: Mapping[str, Model]
    nodes: Mapping[str, int]
    claims: int
    routers: int


class Watch:
    """Reads everything at once. `deployments` are the names of the models' Deployments."""

    def __init__(self, client: Client, policy_url: str, namespace: str, deployments: Mapping[str, str]) -> None:
        self._client, self._policy, self._namespace, self._deployments = client, policy_url, namespace, deployments

    def read(self) -> Reading:
        """Everything now. Raises Refused or OSError where somebody does not answer."""
        policy = _metrics(f"{self._policy}/metrics")
        pods = self._client.list("v1", "Pod", self._namespace, labelSelector="app.kubernetes.io/component=engine")
        claims = self._client.list("karpenter.sh/v1", "NodeClaim")
        up = [claim for claim in claims if ready(claim)]
        nodes = dict(collections.Counter(c["metadata"]["labels"]["karpenter.sh/capacity-type"] for c in up))
        models = {name: self._model(name, policy, pods) for name in self._deployments}
        routers = self._client.list("v1", "Pod", self._namespace, labelSelector=ROUTERS)
        staying = sum(ready(pod) and "deletionTimestamp" not in pod["metadata"] for pod in routers)
        return Reading(time.time(), models, nodes, len(claims), staying)

    def _model(self, name: str, policy: Mapping[tuple[str, str], float], pods: list[dict[str, Any]]) -> Model:
        spec = self._client.get("apps/v1", "Deployment", self._deployments[name], self._namespace) or {}
        own = [pod for pod in pods if pod["metadata"]["labels"]["inference-plane/model"] == name]
        running = waiting = 0.0
        for pod in own:
            if ready(pod):
                engine = _metrics(f"http://{pod['status']['podIP']}:8001/metrics", missing={})
                running += engine.get(("vllm:num_requests_running", name), 0.0)
                waiting += engine.get(("vllm:num_requests_waiting", name), 0.0)
        return Model(
            replicas=spec.get("spec", {}).get("replicas", 0), ready=spec.get("status", {}).get("readyReplicas", 0),
            pending=sum(not pod["spec"].get("nodeName") for pod in own), demand=told_demand(self._policy, name),
            running=running, waiting=waiting, share=policy.get(("inference_policy_share", name), 0.0))


def told_demand(policy_url: str, model: str) -> float | None:
    """What the policy service tells autoscalers of a model; None where it does not know. Raises OSError."""
    try:
        with _open(f"{policy_url}/demand/{model}") as reply:
            return json.loads(reply.read())["demand"]
    except urllib.error.HTTPError:
        return None


def _metrics(url: str, missing: Any = None) -> Mapping[tuple[str, str], float]:
    """The last value of each name and model. An engine that ends while it is asked gives `missing`, if that is set."""
    try:
        with _open(url) as reply:
            text = reply.read().decode()
    except (OSError, urllib.error.URLError):
        if missing is None:
            raise
        return missing
    # A vLLM has some thousand lines, and what is read here shares a process with AWS' and Amazon Bedrock's stand-ins.
    text = "".join(line for line in text.splitlines(keepends=True) if line.startswith(_READ))
    return {
        (sample.name, sample.labels.get("model") or sample.labels.get("model_name", "")): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
    }


def _open(url: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)
