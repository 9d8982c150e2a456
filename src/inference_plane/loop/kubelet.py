"""The kubelet of engine pods, `python -m inference_plane.loop.kubelet`, and of router pods (`router_pods`).

For each engine pod that is bound to a node it starts an engine that keeps vLLM's time (`onehost.timed`), on an address
of the pod's own, and tells the API server what a kubelet tells: that the image is pulled, that the probe is answered,
that the pod is ready. A pod that is asked to end is drained as its spec says: preStop, then as long as vLLM's
--shutdown-timeout for what it still has. When a pod's node is gone, its engine is killed at once.

Real: the pod as the chart renders it, its flags, its probe and its drain. Stand in: the time that an image takes
(once a node), the time that weights take, and the engine.
"""

from __future__ import annotations

import argparse
import enum
import itertools
import signal
import sys
import threading
import time
import urllib.error
from dataclasses import dataclass, field
from pathlib import Path

from inference_plane.cluster.client import Client, Object, Refused
from inference_plane.load.targets import busy
from inference_plane.onehost.processes import Process, Processes, answers

from .pods import tell
from .router_pods import RouterPods
from .times import Times

POLL_SECONDS = 0.3
#: An annotation of a node: where it is "off", whatever ran there is dead, and nobody says so.
POWER = "inference-plane/power"
SELECTOR = "app.kubernetes.io/component=engine"


class Phase(enum.Enum):
    """How far a pod is."""

    PULLING, STARTING, READY, PRE_STOP, DRAINING = range(5)


@dataclass
class Pod:
    """A pod that this kubelet looks after; `until` is when the phase ends by itself (time.monotonic)."""

    uid: str
    name: str
    namespace: str
    node: str
    model: str
    address: str
    port: int
    metrics_port: int
    flags: dict[str, str]
    pre_stop: float
    phase: Phase = Phase.PULLING
    until: float = 0.0
    process: Process | None = field(default=None, repr=False)


class Kubelet:
    """Looks after engine pods; `tick` does what is due."""

    def __init__(self, client: Client, processes: Processes, folder: Path, middleware: Path, times: Times) -> None:
        self._client, self._processes, self._folder = client, processes, folder
        self._middleware, self._times = middleware, times
        self._pods: dict[str, Pod] = {}
        self._pulled: dict[tuple[str, str], float] = {}  # when an image is on a node
        self._given = 0

    def tick(self, now: float) -> None:
        """Raises Refused or OSError where the API server does not answer; the next tick goes on from there."""
        found = {pod["metadata"]["uid"]: pod for pod in self._client.list("v1", "Pod", labelSelector=SELECTOR)}
        every = self._client.list("v1", "Node")
        nodes = {node["metadata"]["name"] for node in every}
        off = [node for node in every if node["metadata"].get("annotations", {}).get(POWER) == "off"]
        dark = {node["metadata"]["name"] for node in off}
        for uid in [uid for uid, pod in self._pods.items() if uid not in found or pod.node not in nodes]:
            self._lost(self._pods.pop(uid), there=uid in found)
        for pod in self._pods.values():
            if pod.node in dark and pod.process:
                pod.process.kill()
        for uid, obj in found.items():
            if obj["spec"].get("nodeName") in dark:
                continue  # there is nobody who could do or say anything
            if uid not in self._pods and obj["spec"].get("nodeName") in nodes:
                self._pods[uid] = self._bound(obj, now)
            if uid in self._pods:
                self._step(self._pods[uid], obj, now)

    def _bound(self, obj: Object, now: float) -> Pod:
        (container,) = obj["spec"]["containers"]
        flags = dict(word.split("=", 1) for word in container["args"] if word.startswith("--") and "=" in word)
        self._given += 1
        pod = Pod(
            uid=obj["metadata"]["uid"],
            name=obj["metadata"]["name"],
            namespace=obj["metadata"]["namespace"],
            node=obj["spec"]["nodeName"],
            model=obj["metadata"]["labels"]["inference-plane/model"],
            address=f"10.244.{240 + self._given // 250}.{2 + self._given % 250}",
            port=int(flags["--port"]),
            metrics_port=_metrics_port(obj),
            flags=flags,
            pre_stop=float(container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)),
        )
        image = (pod.node, container["image"])
        pod.until = self._pulled.setdefault(image, now + self._times.image)
        tell(self._client, obj, pod.address)
        return pod

    def _step(self, pod: Pod, obj: Object, now: float) -> None:
        ending = "deletionTimestamp" in obj["metadata"]
        if ending and pod.phase in (Phase.PULLING, Phase.STARTING):
            self._end(pod)
        elif ending and pod.phase is Phase.READY:
            pod.phase, pod.until = Phase.PRE_STOP, now + pod.pre_stop
        elif pod.phase is Phase.PULLING and now >= pod.until:
            self._start(pod)
            tell(self._client, obj, pod.address, started=True)
            pod.phase = Phase.STARTING
        elif pod.phase is Phase.STARTING and answers(f"http://{pod.address}:{pod.port}/health"):
            tell(self._client, obj, pod.address, started=True, ready=True)
            pod.phase = Phase.READY
        elif pod.phase is Phase.PRE_STOP and now >= pod.until:
            pod.phase, pod.until = Phase.DRAINING, now + float(pod.flags.get("--shutdown-timeout", 0))
        elif pod.phase is Phase.DRAINING and (now >= pod.until or not busy(pod.address, pod.metrics_port)):
            self._end(pod)

    def _start(self, pod: Pod) -> None:
        known = ("--port", "--max-model-len", "--max-num-seqs", "--max-num-queued-reqs")
        options = {name: pod.flags[name] for name in known} | {
            "--served-model-name": pod.model,
            "--host": pod.address,
            "--metrics-port": pod.metrics_port,
            "--middleware": self._middleware,
            "--load-seconds": self._times.weights,
        }
        words = [str(word) for pair in options.items() for word in pair]
        pod.process = self._processes.start(
            pod.name, [sys.executable, "-m", "inference_plane.onehost.timed", *words],
            log_path=self._folder / f"{pod.name}.log")

    def _end(self, pod: Pod) -> None:
        """The pod's containers are gone, and so it may go."""
        if pod.process:
            self._processes.stop(pod.process)
        self._client.delete("v1", "Pod", pod.name, pod.namespace, gracePeriodSeconds=0)
        self._pods.pop(pod.uid)

    def _lost(self, pod: Pod, there: bool) -> None:
        """Its node is gone, or somebody removed it: what ran is dead. Nobody else removes a lost node's pod."""
        if pod.process:
            pod.process.kill()
            self._processes.stop(pod.process)
        if there:
            self._client.delete("v1", "Pod", pod.name, pod.namespace, gracePeriodSeconds=0)


def _metrics_port(obj: Object) -> int:
    """The port named `metrics`, of whichever container has it."""
    every = [*obj["spec"]["containers"], *obj["spec"].get("initContainers", ())]
    ports = [port for container in every for port in container.get("ports", ())]
    return next(port["containerPort"] for port in ports if port.get("name") == "metrics")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_plane.loop.kubelet", description=__doc__.split("\n")[0])
    for name in ("--kubeconfig", "--folder", "--middleware"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("image", "weights"):
        parser.add_argument(f"--{name}-seconds", dest=name, type=float, required=True)
    options = parser.parse_args(argv)
    times = Times(image=options.image, weights=options.weights)
    ended = threading.Event()
    client = Client(options.kubeconfig)
    addresses = (f"10.244.{220 + number // 250}.{2 + number % 250}" for number in itertools.count())
    with Processes() as processes, RouterPods(client, processes, options.folder, addresses) as routers:
        kubelet = Kubelet(client, processes, options.folder, options.middleware, times)
        print("kubelet: ready", flush=True)
        while not ended.wait(POLL_SECONDS):
            try:
                for each in (kubelet, routers):
                    each.tick(time.monotonic())
            except (Refused, OSError, urllib.error.URLError) as error:
                print(f"kubelet: {error}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
