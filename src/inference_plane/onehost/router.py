"""The router on one machine: Envoy on exactly the files that Helm rendered.

The files name production addresses, headless Services and all; only what the overlay of `local_values` says differs
from a pod: where it listens, which DNS server answers the names, and that Amazon Bedrock is a stand-in on loopback.
"""
from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference_plane.checkout import ROOT
from inference_plane.helm import Render

from .processes import Process, Processes, free_port
from .secrets import mount

#: The folder under the container's working directory where each ConfigMap of the chart is mounted.
MOUNTS = {"router-bootstrap": "bootstrap", "router-routes": "xds", "router-clusters": "xds"}


def local_values(*, dns_port: int, bedrock_port: int) -> dict[str, Any]:
    """What the chart `router` is told beyond an environment's values, so that it runs on loopback, on free ports."""
    return {
        "listener": {"address": "127.0.0.1", "port": free_port()},
        "status": {"address": "127.0.0.1", "port": free_port()},
        "noCapacity": {"port": free_port()},
        "dns": {"resolvers": [f"127.0.0.1:{dns_port}"]},
        "bedrock": {"host": "127.0.0.1", "port": bedrock_port, "tls": False},
        "concurrency": 1,
    }


def fallback_models(values: Mapping[str, Any]) -> frozenset[str]:
    """The Bedrock ids that a catalogue names: what the account's role may invoke."""
    models = values["global"]["models"].values()
    return frozenset(entry["fallback"]["model"] for entry in models if entry.get("fallback"))


def xds_files(render: Render) -> dict[str, str]:
    """The texts of routes.json and clusters.json."""
    names = [name for name, mount in MOUNTS.items() if mount == "xds"]
    return {file: text for name in names for file, text in render.find("ConfigMap", name)["data"].items()}


def write_files(render: Render, folder: Path) -> None:
    """Puts the rendered ConfigMaps where a pod would have them mounted under `folder`.

    Files are moved into place, as a ConfigMap's mount does it: Envoy watches moves, not writes.
    """
    put_files(folder, {name: render.find("ConfigMap", name)["data"] for name in MOUNTS})


def put_files(folder: Path, config_maps: Mapping[str, Mapping[str, str]]) -> None:
    """The same of what these ConfigMaps hold, by their names."""
    for name, data in config_maps.items():
        target = folder / MOUNTS[name]
        target.mkdir(parents=True, exist_ok=True)
        for file, text in data.items():
            (target / f".{file}").write_text(text)
            (target / f".{file}").rename(target / file)
    (folder / "run").mkdir(exist_ok=True)


def containers(render: Render) -> dict[str, dict[str, Any]]:
    """The containers of the router's pod by their names, sidecars among them."""
    return containers_of(render.find("Deployment", "router")["spec"]["template"]["spec"])


def containers_of(pod: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The same of a pod's spec."""
    return {container["name"]: container for container in [*pod["containers"], *pod.get("initContainers", [])]}


def envoy_command(container: Mapping[str, Any]) -> list[str]:
    """What the sidecar runs, as a command of this machine."""
    return [shutil.which("envoy") or "envoy", *container["args"]]


def drain_command(container: Mapping[str, Any]) -> list[str]:
    """What the main container runs; it needs `DRAIN_ENVIRONMENT`."""
    return [sys.executable, *container["command"][1:], *container["args"]]


#: Where the image has the package installed.
DRAIN_ENVIRONMENT = {"PYTHONPATH": str(ROOT / "src")}


class Witness:
    """What a router tells, whoever started it: its audit lines, also when it has ended, and its admin interface.

    `folder` is its working directory.
    """

    def __init__(self, folder: Path, log_path: Path | None = None) -> None:
        self.folder = folder
        # Apart, as the container runtime keeps them: what is written to both at once would mix within lines.
        self.audit_path, self.log_path = folder / "audit.jsonl", log_path or folder / "envoy.log"

    def audit(self, kind: str = "end") -> list[dict[str, Any]]:
        """The audit lines of a type so far; Envoy writes those of type `end` some time after a request's end."""
        path = self.audit_path if kind == "end" else self.log_path
        lines = path.read_text(errors="replace").splitlines()
        return [line for line in (json.loads(line) for line in lines if line.startswith("{")) if line["type"] == kind]

    def logged(self) -> str:
        """All that this Envoy has written so far."""
        return "".join(path.read_text(errors="replace") for path in (self.log_path, self.audit_path))

    def admin(self, path: str) -> str:
        """What Envoy's admin interface answers to a GET. Raises OSError where it is not there."""
        connection = http.client.HTTPConnection("admin")
        connection.sock = socket.socket(socket.AF_UNIX)
        # A Unix socket's path may have 107 bytes; the working directory is often deeper.
        directory = os.open(self.folder / "run", os.O_RDONLY)
        try:
            connection.sock.connect(f"/proc/self/fd/{directory}/admin.sock")
        finally:
            os.close(directory)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def runtime(self, prefix: str) -> dict[str, str]:
        """The values of Envoy's runtime keys that begin so, which the policy service sets."""
        entries = json.loads(self.admin("/runtime?format=json"))["entries"]
        return {key: entry["final_value"] for key, entry in entries.items() if key.startswith(prefix)}

    def stats(self, names: Iterable[str]) -> dict[str, int]:
        """Counters and gauges by their full names; one that Envoy does not have is 0."""
        wanted = set(names)
        found = dict(line.rsplit(": ", 1) for line in self.admin("/stats").splitlines() if ": " in line)
        return {name: int(found.get(name, "0")) for name in wanted}

    def engines_seen(self, models: Iterable[str]) -> dict[str, int]:
        """How many engines of each fleet Envoy finds healthy, -1 of one that it does not know yet.

        Raises OSError where its admin interface is not there.
        """
        gauges = {name: f"cluster.fleet/{name}.membership_healthy" for name in models}
        found = self.stats(gauges.values())
        # Each fleet also has Envoy's own no-capacity endpoint.
        return {name: found[gauge] - 1 for name, gauge in gauges.items()}


class Router(Witness):
    """Envoy as the chart's Deployment starts it.

    `folder` becomes its working directory. `environment` is added to a bare environment: the container-credential
    variables that EKS Pod Identity injects. `log_path` is where its stderr goes, by default a file in `folder`.
    `volumes` are the Secrets that are mounted beside the ConfigMaps, by the folder; a changed one is put there by
    `secrets.mount`.
    """

    def __init__(
        self,
        processes: Processes,
        render: Render,
        folder: Path,
        environment: Mapping[str, str],
        log_path: Path | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__(folder, log_path)
        self._processes = processes
        write_files(render, folder)
        for name, data in (volumes or {}).items():
            mount(folder / name, data)
        bootstrap = json.loads((folder / "bootstrap" / "bootstrap.json").read_text())
        listeners = {listener["name"]: listener for listener in bootstrap["static_resources"]["listeners"]}
        found = {name: one["address"].get("socket_address") for name, one in listeners.items()}
        sockets = {name: address for name, address in found.items() if address}
        ports = {name: at["port_value"] for name, at in sockets.items()}
        scheme = "https" if "transport_socket" in listeners["plane"]["filter_chains"][0] else "http"
        self.url = f"{scheme}://127.0.0.1:{ports['plane']}"
        self.status_url = f"http://127.0.0.1:{ports['status']}"
        self._containers = containers(render)
        self.process: Process = processes.start(
            "envoy",
            envoy_command(self._containers["envoy"]),
            env={"PATH": os.environ["PATH"], **environment},
            log_path=self.log_path,
            output_path=self.audit_path,
            cwd=folder,
            ready=f"{self.status_url}/ready",
        )

    def start_drain(self, *more: str) -> Process:
        """The main container of the pod, with `more` arguments; it drains Envoy at SIGTERM."""
        log = self.folder / "drain.log"
        return self._processes.start(
            "drain",
            [*drain_command(self._containers["drain"]), *more],
            env=DRAIN_ENVIRONMENT,
            log_path=log,
            cwd=self.folder,
            ready=lambda: "waits for SIGTERM" in log.read_text(),
        )

    def reload(self, render: Render) -> None:
        """Puts a changed render in place, as the kubelet does; Envoy reads routes and clusters again by itself."""
        write_files(render, self.folder)

    def wait_for_engines(self, wanted: Mapping[str, int], timeout: float = 20.0) -> None:
        """Returns once Envoy finds so many engines of each fleet healthy.

        Raises TimeoutError after `timeout` seconds, the message having what Envoy sees, and NotReady where a process
        ended meanwhile.
        """
        deadline = time.monotonic() + timeout
        while (seen := self.engines_seen(wanted)) != wanted:
            self._processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"Envoy finds engines healthy after {timeout:g} s: {seen}, wanted {dict(wanted)}")
            time.sleep(0.05)
