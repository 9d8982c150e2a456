"""The kubelet of router pods, in the process of that of engines (`kubelet`).

Each pod of the Deployment `router` becomes its two containers: Envoy, on what the API server's ConfigMaps hold, and
the process that drains it. A pod that is asked to end is ended as a kubelet ends one with a native sidecar: SIGTERM to
the main container, and to Envoy when that has ended, or at the pod's grace period.

Real: the pod's containers with their arguments, its ConfigMaps, its readiness probe, its end. Stand in: images, which
are there at once, whatever their tag, and are the Envoy and the package of this checkout; the pod's network. Every pod
has an address of its own, but all share one loopback: what a pod's Envoy listens on is put at the pod's address, in the
files that it reads, and nothing else of them is changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference_plane.cluster.client import Client, Object
from inference_plane.onehost.processes import Process, Processes, answers
from inference_plane.onehost.router import (
    DRAIN_ENVIRONMENT,
    MOUNTS,
    containers_of,
    drain_command,
    envoy_command,
    put_files,
)

from .pods import tell

SELECTOR = "app.kubernetes.io/component=router"
#: The folder beside the kubelet's logs in which each router's pod has one of its name, also when it has gone.
FOLDER = "routers"
#: Seconds until a changed ConfigMap is in the pod. A kubelet takes up to a minute and its cache's age.
REFRESH_SECONDS = 5.0
#: What EKS Pod Identity puts into a pod's environment, which this process has been given for them.
CREDENTIALS = "AWS_CONTAINER_"
#: Kubernetes' own, where a probe does not say.
FAILURE_THRESHOLD = 3


@dataclass
class RouterPod:
    """A pod that this kubelet looks after; times are of time.monotonic. `kill_at` is None until it has to go."""

    namespace: str
    folder: Path
    files: Mapping[str, Mapping[str, str]] = field(repr=False)
    address: str
    probe: Mapping[str, Any]
    probe_url: str
    envoy: Process = field(repr=False)
    drain: Process = field(repr=False)
    probe_at: float
    ready: bool = False
    failures: int = 0
    kill_at: float | None = None


class RouterPods:
    """A context manager that looks after router pods; `tick` does what is due. At its end all of them are killed.

    Each pod gets the next of `addresses`, which have to be local.
    """

    def __init__(self, client: Client, processes: Processes, folder: Path, addresses: Iterator[str]) -> None:
        self._client, self._processes, self._folder, self._addresses = client, processes, folder / FOLDER, addresses
        self._pods: dict[str, RouterPod] = {}
        self._refresh_at = 0.0

    def __enter__(self) -> RouterPods:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self._pods.values():  # nobody is to be served any more, and draining would wait for clients
            self._kill(pod)

    def tick(self, now: float) -> None:
        """Raises Refused or OSError where the API server does not answer; the next tick goes on from there."""
        found = {pod["metadata"]["uid"]: pod for pod in self._client.list("v1", "Pod", labelSelector=SELECTOR)}
        for uid in self._pods.keys() - found.keys():  # somebody removed it without asking
            self._kill(self._pods.pop(uid))
        for uid, obj in found.items():
            if uid in self._pods:
                self._step(uid, obj, now)
            elif "deletionTimestamp" in obj["metadata"]:
                self._gone(obj)
            elif obj["spec"].get("nodeName"):
                pod = self._pods[uid] = self._start(obj, now)
                tell(self._client, obj, pod.address, started=True)
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_SECONDS
            for pod in self._pods.values():
                self._refresh(pod)

    def _start(self, obj: Object, now: float) -> RouterPod:
        name, namespace = obj["metadata"]["name"], obj["metadata"]["namespace"]
        folder, containers, address = self._folder / name, containers_of(obj["spec"]), next(self._addresses)
        files = placed(self._config_maps(namespace), address)
        put_files(folder, files)
        credentials = {key: value for key, value in os.environ.items() if key.startswith(CREDENTIALS)}
        probe = containers["envoy"]["readinessProbe"]
        ports = {port["name"]: port["containerPort"] for port in containers["envoy"]["ports"]}
        return RouterPod(
            namespace=namespace,
            folder=folder,
            files=files,
            address=address,
            probe=probe,
            probe_url=f"http://{address}:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}",
            envoy=self._processes.start(
                f"{name} envoy", envoy_command(containers["envoy"]), env={"PATH": os.environ["PATH"], **credentials},
                log_path=folder / "envoy.log", output_path=folder / "audit.jsonl", cwd=folder),
            drain=self._processes.start(
                f"{name} drain", drain_command(containers["drain"]), env=DRAIN_ENVIRONMENT,
                log_path=folder / "drain.log", cwd=folder),
            probe_at=now + probe.get("initialDelaySeconds", 0),
        )

    def _step(self, uid: str, obj: Object, now: float) -> None:
        pod = self._pods[uid]
        if "deletionTimestamp" in obj["metadata"]:
            self._end(uid, obj, now)
        elif now >= pod.probe_at:
            pod.probe_at = now + pod.probe["periodSeconds"]
            well = answers(pod.probe_url, pod.probe.get("timeoutSeconds", 1))
            pod.failures = 0 if well else pod.failures + 1
            ready = well or (pod.ready and pod.failures < pod.probe.get("failureThreshold", FAILURE_THRESHOLD))
            if ready != pod.ready:
                pod.ready = ready
                tell(self._client, obj, pod.address, started=True, ready=ready)

    def _end(self, uid: str, obj: Object, now: float) -> None:
        pod = self._pods[uid]
        if pod.kill_at is None:
            pod.kill_at = now + obj["spec"]["terminationGracePeriodSeconds"]
            pod.drain.popen.terminate()
        elif not pod.drain.running or now >= pod.kill_at:
            self._processes.stop(pod.envoy)  # SIGTERM, and SIGKILL after a grace
            self._kill(pod)
            self._gone(obj)
            del self._pods[uid]

    def _gone(self, obj: Object) -> None:
        """Its containers have ended, and so the pod may go."""
        meta = obj["metadata"]
        self._client.delete("v1", "Pod", meta["name"], meta["namespace"], gracePeriodSeconds=0)

    def _kill(self, pod: RouterPod) -> None:
        for process in (pod.drain, pod.envoy):
            process.kill()
            self._processes.stop(process)

    def _refresh(self, pod: RouterPod) -> None:
        """Routes and clusters as the ConfigMaps have them now; Envoy reads them again by itself."""
        files = placed(self._config_maps(pod.namespace), pod.address)
        if files != pod.files:
            pod.files = files
            put_files(pod.folder, files)

    def _config_maps(self, namespace: str) -> dict[str, Mapping[str, str]]:
        found = {name: self._client.get("v1", "ConfigMap", name, namespace) for name in MOUNTS}
        return {name: config_map["data"] for name, config_map in found.items() if config_map}


def placed(config_maps: Mapping[str, Mapping[str, str]], address: str) -> dict[str, Mapping[str, str]]:
    """The router's ConfigMaps, in which every socket that its Envoy listens on is at `address`."""
    bootstrap = json.loads(config_maps["router-bootstrap"]["bootstrap.json"])
    sockets = [one["address"]["socket_address"] for one in bootstrap["static_resources"]["listeners"]]
    own = [(socket["address"], socket["port_value"]) for socket in sockets]

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        if not isinstance(value, dict):
            return value
        made = {key: moved(each) for key, each in value.items()}
        return made | {"address": address} if (made.get("address"), made.get("port_value")) in own else made

    def text(file: str, content: str) -> str:
        return json.dumps(moved(json.loads(content))) if file.endswith(".json") else content

    return {name: {file: text(file, each) for file, each in data.items()} for name, data in config_maps.items()}
