"""The Envoys that are compared: the least that can forward a request, and the router as its chart renders it."""
from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_plane import helm
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Process, Processes, free_port
from inference_plane.onehost.router import Router

from .costs import Change, changed

_TYPES = "type.googleapis.com/envoy.extensions."
NAMESPACE = "inference"


@dataclass(frozen=True)
class Subject:
    """A running router: Envoy with one worker thread, or a peer with one worker.

    `models` are the names to ask for, `logs` grow with each request. `tokens` are callers' where it asks for one.
    `rewrites`: it writes replies anew, so that they need not be the engine's to the byte.
    """

    name: str
    port: int
    models: tuple[str, ...]
    process: Process
    logs: tuple[Path, ...]
    tokens: tuple[str, ...] = ("0" * 40,)
    rewrites: bool = False
    host: str = "127.0.0.1"

    def cpu_seconds(self) -> float:
        """CPU time so far of all threads of the process and of those that it started."""
        return sum(cpu_seconds(pid) for pid in family(self.process.pid))


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(one for child in itertools.chain(*children) for one in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in seconds, by the scheduler's own clock where the kernel has it."""
    try:
        threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
        nanoseconds = [int(file.read_text().split()[0]) for file in threads]
    except FileNotFoundError:  # a thread ended meanwhile
        nanoseconds = []
    if any(nanoseconds):
        return sum(nanoseconds) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def catalogue(count: int) -> dict[str, Any]:
    """Values for the chart `router` with `count` models; every second one has a fallback and a first-token budget."""
    models: dict[str, Any] = {}
    for number in range(count):
        models[f"model-{number:03}"] = {
            "source": f"s3://models/model-{number:03}/v1/", "weightsGiB": 15.3,
            "accelerator": "l40s", "maxModelLen": 16384,
        }
        if number % 2:
            models[f"model-{number:03}"] |= {
                "residency": "region", "firstTokenBudget": "2s",
                "fallback": {"model": "openai.gpt-oss-120b-1:0", "retention": "none"},
            }
    return {"auth": {"mode": "none"}, "global": {
        "aws": {"region": "eu-central-1"},
        "tls": {"mode": "none"},
        "residency": {"geography": "eu"},
        "network": {name: ["10.0.0.0/20"] for name in ("albSubnetCidrs", "s3Cidrs", "bedrockCidrs", "apiServerCidrs")},
        "models": models,
    }}


def everything_on(
    values: Mapping[str, Any], issuer: Issuer, callers: int = 20, budget: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The values with all that a production router does per request switched on, and the tokens of so many callers.

    `budget` is their team's, in tokens a minute: with one, each request asks the rate-limit service.
    """
    auth = issuer.values(cachedTokens=1000)
    team = {"costCenter": "1"} | ({"tokensPerMinute": budget} if budget else {})
    secured = {**values, "auth": auth, "global": values["global"] | {"teams": {"care": team}}}
    return secured, [issuer.token(["care"], sub=f"person-{number}", seconds=86_400) for number in range(callers)]


def start_bare(processes: Processes, folder: Path, upstream: tuple[str, int], body_limit: int) -> Subject:
    """Envoy with a listener, a route and a cluster; bodies of `body_limit` bytes may be buffered, as in the router."""
    port, admin = free_port(), free_port()
    host, upstream_port = upstream
    config = {
        "admin": {"address": _address("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [{
                "name": "bare", "address": _address("127.0.0.1", port), "per_connection_buffer_limit_bytes": body_limit,
                "filter_chains": [{"filters": [_typed(
                    "envoy.filters.network.http_connection_manager",
                    "filters.network.http_connection_manager.v3.HttpConnectionManager",
                    stat_prefix="bare",
                    http_filters=[_typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
                    route_config={"virtual_hosts": [{
                        "name": "bare", "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engine", "timeout": "0s"}}],
                    }]},
                )]}],
            }],
            "clusters": [{
                "name": "engine", "type": "STATIC", "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "engine", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": _address(host, upstream_port)}}]}]},
            }],
        },
    }
    folder.mkdir(parents=True)
    (folder / "envoy.json").write_text(json.dumps(config))
    log = folder / "envoy.log"
    process = processes.start(
        "bare-envoy",
        [_envoy(), "-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"],
        log_path=log, cwd=folder, ready=f"http://127.0.0.1:{admin}/ready")
    return Subject("bare Envoy", port, ("model-000",), process, (log,))


def start_router(
    processes: Processes, folder: Path, name: str, values: Mapping[str, Any], local: Mapping[str, Any],
    environment: Mapping[str, str], change: Change | None = None, tokens: Sequence[str] = ("0" * 40,),
) -> Subject:
    """The router with a catalogue and the overlay `local` that puts it on loopback.

    `change` is made to its files. Raises TimeoutError where its fleets stay unhealthy.
    """
    render = helm.template("router", values={**values, **local}, namespace=NAMESPACE)
    if change is not None:
        render = changed(render, change)
    router = Router(processes, render, folder, environment)
    models = tuple(values["global"]["models"])
    # Each fleet has the engine and the chart's own endpoint for an empty fleet.
    wanted = {f"cluster.fleet/{model}.membership_healthy": 2 for model in models}
    deadline = time.monotonic() + 30
    while (seen := router.stats(wanted)) != wanted:
        if time.monotonic() > deadline:
            bad = sorted(gauge for gauge in wanted if seen[gauge] != wanted[gauge])
            raise TimeoutError(f"{name}: no healthy engine after 30 s: {', '.join(bad[:5])} of {len(wanted)} fleets")
        time.sleep(0.1)
    logs = (router.audit_path, router.log_path)
    return Subject(name, int(router.url.rsplit(":", 1)[1]), models, router.process, logs, tuple(tokens))


def _envoy() -> str:
    return shutil.which("envoy") or "envoy"


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(name: str, kind: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPES + kind, **config}}
