"""The policy service on one machine: the process of its pod, on the configuration that Helm rendered.

Only where it listens differs from a pod, and whom it asks for endpoints: a stand-in for the Kubernetes API, which has
no scheduler and no kubelet and lists what it is told.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from inference_plane.checkout import ROOT
from inference_plane.helm import Render

from .kubernetes import KubeStandIn
from .processes import Process, Processes, free_addresses
from .secrets import mount

NAME = "router-policy"


def serves_policy(render: Render) -> bool:
    """Whether a render of the router's chart has the service: some model falls back, and it is not off."""
    return any(each["metadata"]["name"] == NAME for each in render.of_kind("Deployment"))


class Policy:
    """One replica. `kubernetes` is what it asks; `host` is where the Service's name has to point.

    `lists` says which addresses each fleet has; `secret` is what its Secret has, where the render has TLS, and another
    one is put there by `mount`. Raises NotReady where it does not come up.
    """

    def __init__(
        self,
        processes: Processes,
        render: Render,
        folder: Path,
        kubernetes: KubeStandIn,
        pod: str,
        secret: Mapping[str, str] | None = None,
    ) -> None:
        self._processes, self._folder, self.kubernetes, self.pod = processes, folder, kubernetes, pod
        text = render.find("ConfigMap", NAME)["data"]["config.json"]
        self._config = json.loads(text)
        self.port: int = self._config["listen"]["port"]
        (self.host,) = free_addresses(1, self.port)
        self._config["listen"]["address"] = self.host
        self.status_url = f"http://{self.host}:{self._config['listen']['statusPort']}"
        if secret:
            self.mount(secret)
            for file in ("certificate", "key", "ca"):
                name = Path(self._config["tls"][file]).name
                self._config["tls"][file] = str(folder / "secrets" / pod / name)
        routers = self._config["routers"]
        kubernetes.slice(routers["namespace"], routers["service"], ["127.0.0.1"], engine=False)
        self.process = self.start()

    def start(self) -> Process:
        file = self._folder / f"{self.pod}.json"
        file.write_text(json.dumps(self._config))
        self.process = self._processes.start(
            self.pod,
            [sys.executable, "-m", "inference_plane.policy", "--config", file, "--kubernetes", self.kubernetes.url],
            env={"PYTHONPATH": str(ROOT / "src"), "POD_NAME": self.pod, "POD_IP": self.host},
            log_path=self._folder / f"{self.pod}.log",
            ready=f"{self.status_url}/live",
        )
        return self.process

    def mount(self, secret: Mapping[str, str]) -> None:
        """Gives this replica a Secret, as the kubelet puts it there."""
        mount(self._folder / "secrets" / self.pod, secret)

    def lists(self, fleets: Mapping[str, Sequence[str]]) -> None:
        """The EndpointSlices of these fleets, in their models' namespaces."""
        for model in self._config["models"].values():
            for fleet in model["fleets"]:
                if fleet in fleets:
                    self.kubernetes.slice(model["namespace"], fleet, list(fleets[fleet]))

    def shares(self) -> dict[str, float]:
        """The share that goes to the fallback first, by model, in points of 100; empty before there is a decision."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.status_url}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        prefix = 'inference_policy_share{model="'
        return {
            line.removeprefix(prefix).partition('"')[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith(prefix)
        }
