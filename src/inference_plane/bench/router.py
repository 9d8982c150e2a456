"""What the router costs: bare Envoy and this chart's Envoy under the same load, in turn."""
from __future__ import annotations

import contextlib
import http.client
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference_plane.onehost.bedrock import CredentialEndpoint
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.processes import Processes, free_addresses, free_port
from inference_plane.onehost.router import local_values

from . import messages
from .costs import WITHOUT
from .envoys import NAMESPACE, Subject, catalogue, start_bare, start_router
from .load import Load, LoadError, drive
from .messages import Case

BASELINE = "bare Envoy"
MODELS = (10, 100)
WARM_UP = 0.3  # seconds before each measurement
_BODIES = 100
_ENGINE_PORT = 8000  # what the chart says of every engine
_BODY_LIMIT = 16 * 1024 * 1024  # the chart's maxBodyMiB

Readings = dict[tuple[str, str], list[Load]]


def measure(
    *, seconds: float, rounds: int, cases: Sequence[Case] = messages.CASES, sizes: Sequence[int] = MODELS,
    without: Sequence[str] = (), progress: Callable[[str], None] = lambda line: None,
) -> Readings:
    """Loads per (case, subject), one a round; a round goes through all subjects before the next one begins.

    `sizes` are the catalogues' numbers of models. `without` adds, for the first of them, a router that lacks one thing
    of `costs.WITHOUT` each. Raises LoadError where anything but the wanted answer comes, and NotReady or TimeoutError
    where a process does not start.
    """
    with contextlib.ExitStack() as stack:
        subjects = _start(stack, sizes, without)
        for case in cases:
            for subject in subjects:
                _named(subject, case, lambda subject=subject, case=case: check(subject, case))
        readings: Readings = {(case.name, subject.name): [] for case in cases for subject in subjects}
        for number in range(rounds):
            for case in cases:
                progress(f"round {number + 1} of {rounds}: {case.name}")
                for subject in subjects:
                    readings[case.name, subject.name].append(
                        _named(subject, case, lambda subject=subject, case=case: _load(subject, case, seconds)))
        return readings


def _start(stack: contextlib.ExitStack, sizes: Sequence[int], without: Sequence[str]) -> list[Subject]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-router-")))
    dns = stack.enter_context(DnsServer())
    processes = stack.enter_context(Processes())
    credentials = stack.enter_context(CredentialEndpoint(folder / "token"))
    (address,) = free_addresses(1, _ENGINE_PORT)
    processes.start(
        "upstream", [sys.executable, "-m", "inference_plane.bench.upstream", address, str(_ENGINE_PORT)],
        log_path=folder / "upstream.log", ready=f"http://{address}:{_ENGINE_PORT}/health")
    for number in range(max(sizes)):
        dns.set(f"model-{number:03}.{NAMESPACE}.svc.cluster.local", [address])

    def router(name: str, count: int, change: Any = None) -> Subject:
        local = local_values(dns_port=dns.port, bedrock_port=free_port())
        return start_router(
            processes, folder / re.sub(r"\W+", "-", name), name, catalogue(count), local, credentials.env, change)

    return [
        start_bare(processes, folder / "bare", (address, _ENGINE_PORT), _BODY_LIMIT),
        *(router(f"router, {count} models", count) for count in sizes),
        *(router(f"without {name}", sizes[0], WITHOUT[name]) for name in without),
    ]


def check(subject: Subject, case: Case) -> None:
    """Sends one request a model and raises LoadError unless the engine's whole reply comes back."""
    for model in subject.models:
        connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(
                "POST", messages.PATH, messages.body(case, model), {"content-type": "application/json"})
            response = connection.getresponse()
            body = response.read()
        events = body.count(b"\n\n")
        if response.status != 200 or events != (messages.STREAM_EVENTS + 2 if case.stream else 0):
            text = body[:400].decode(errors="replace")
            raise LoadError(f"answered {model} with {response.status}, {events} events: {text!r}")


def _load(subject: Subject, case: Case, seconds: float) -> Load:
    # All bodies differ: Lua keeps one copy of equal strings, so a repeated prompt would be cheaper than a new one.
    count = max(_BODIES, len(subject.models))
    requests = [messages.request(case, subject.models[n % len(subject.models)], n) for n in range(count)]
    try:
        return drive(
            subject.port, requests, connections=case.connections, seconds=seconds, warm_up=WARM_UP,
            cpu_seconds=subject.cpu_seconds)
    finally:
        for log in subject.logs:
            os.truncate(log, 0)  # gigabytes otherwise; the file's position stays, so it becomes sparse


def _named(subject: Subject, case: Case, act: Callable[[], Any]) -> Any:
    try:
        return act()
    except LoadError as error:
        tail = subject.process.log_tail(3)
        raise LoadError(f"{subject.name}, {case.name}: it {error}\n  end of its log:\n{tail}") from error


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    envoy = subprocess.run(["envoy", "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version: \S*?/([\d.]+)/", envoy)
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "envoy": version[1] if version else envoy.strip(),
        "load_average": os.getloadavg()[0],
    }
