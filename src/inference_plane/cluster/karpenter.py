"""The real Karpenter, AWS provider, as a process beside an embedded control plane, and kubelets for its instances."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError

from inference_plane import tools
from inference_plane.cluster import definitions
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Client, Object, Refused
from inference_plane.cluster.embedded import Embedded, environment
from inference_plane.cluster.nodes import FAKE
from inference_plane.onehost.processes import Process, free_port

DEFINITIONS = ("nodepools.karpenter.sh", "nodeclaims.karpenter.sh", "ec2nodeclasses.karpenter.k8s.aws")
#: It asks EC2 for every instance type before it is ready.
READY_SECONDS = 180
POLL_SECONDS = 0.3


def start(cluster: Embedded, account: Account, name: str, **settings: str) -> Process:
    """Karpenter for the cluster `name` in `account`, ready; `settings` are further variables of its environment.

    Raises:
        NotReady: it ended, or is not ready in time.
    """
    binary = tools.build("karpenter")
    definitions.install(Client(cluster.kubeconfig), DEFINITIONS)
    metrics, health = free_port(), free_port()
    variables = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "CLUSTER_NAME": name,
        "CLUSTER_ENDPOINT": cluster.server,  # else it would ask EKS for it
        "SYSTEM_NAMESPACE": "kube-system",
        "DISABLE_LEADER_ELECTION": "true",
        "METRICS_PORT": str(metrics),
        "HEALTH_PROBE_PORT": str(health),
        "BATCH_IDLE_DURATION": "500ms",
        "BATCH_MAX_DURATION": "2s",
        **settings,
    }
    return cluster.processes.start(
        "karpenter",
        [binary],
        environment(account.environment | variables),
        cluster.folder / "logs" / "karpenter.log",
        f"http://127.0.0.1:{health}/readyz",
        timeout=READY_SECONDS,
    )


class Kubelets:
    """A context manager: registers a Node, for which KWOK answers, for each instance that Karpenter has launched.

    As a kubelet does: with the instance's provider id and addresses, the claim's taints, and as much room as the claim
    says that its instance type has. Karpenter itself adds the claim's labels. `boot_seconds` pass before; while `starting`
    is false none registers.
    """

    def __init__(self, kubeconfig: Path, account: Account, boot_seconds: float = 0.0) -> None:
        self._client, self._account, self._boot_seconds = Client(kubeconfig), account, boot_seconds
        self._seen: dict[str, float] = {}
        self._stopped = threading.Event()
        self.starting = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.problems: list[str] = []

    def __enter__(self) -> Kubelets:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                if self.starting:
                    self._register()
            except Refused as error:
                self.problems.append(str(error))
            except HTTPError:
                pass  # no API server answers: as a kubelet does, it tries again

    def _register(self) -> None:
        claims = {
            provider: claim
            for claim in self._client.list("karpenter.sh/v1", "NodeClaim")
            if (provider := claim.get("status", {}).get("providerID")) and "deletionTimestamp" not in claim["metadata"]
        }
        known = {node["spec"].get("providerID") for node in self._client.list("v1", "Node")} if claims else set()
        if missing := claims.keys() - known:
            instances = instances_of(self._account)
            for provider in missing & instances.keys():
                if time.monotonic() - self._seen.setdefault(provider, time.monotonic()) < self._boot_seconds:
                    continue
                self._client.create(_node(provider, instances[provider], claims[provider]))


def instances_of(account: Account) -> dict[str, dict[str, Any]]:
    """The running instances that Karpenter launched, by provider id, as EC2 describes them."""
    running = [
        {"Name": "instance-state-name", "Values": ["running"]},
        {"Name": "tag-key", "Values": ["karpenter.sh/nodepool"]},
    ]
    pages = account.client("ec2").get_paginator("describe_instances").paginate(Filters=running)
    found = [i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]]
    return {f"aws:///{i['Placement']['AvailabilityZone']}/{i['InstanceId']}": i for i in found}


def _node(provider: str, instance: dict[str, Any], claim: Object) -> Object:
    name, zone = instance["PrivateDnsName"], instance["Placement"]["AvailabilityZone"]
    spec, status = claim["spec"], claim["status"]
    unregistered = {"key": "karpenter.sh/unregistered", "effect": "NoExecute"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": FAKE,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": instance["InstanceType"],
                "topology.kubernetes.io/region": zone[:-1],
                "topology.kubernetes.io/zone": zone,
            },
        },
        "spec": {
            "providerID": provider,
            "taints": [unregistered, *spec.get("taints", ()), *spec.get("startupTaints", ())],
        },
        "status": {
            "capacity": status["capacity"],
            "allocatable": status["allocatable"],
            "addresses": [{"type": "InternalIP", "address": instance["PrivateIpAddress"]}],
        },
    }
