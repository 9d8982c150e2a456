"""What the router costs: bare Envoy, this chart's Envoy and its peers under the same load, in turn."""
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

from inference_plane import helm
from inference_plane.onehost.bedrock import CredentialEndpoint
from inference_plane.onehost.budgets import NAME as RATELIMIT
from inference_plane.onehost.budgets import RateLimit, Store
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Processes, free_addresses, free_port
from inference_plane.onehost.router import local_values

from . import messages
from .costs import WITHOUT
from .envoys import NAMESPACE, Subject, catalogue, everything_on, start_bare, start_router
from .load import Load, LoadError, drive
from .messages import Case
from .peers import Peer

BASELINE = "bare Envoy"
MODELS = (10, 100)
WARM_UP = 0.3  # seconds before each measurement
STRAIGHT = "straight to the engine"
_PAUSE = 0.05  # seconds at most between two streams of a connection, where first-token times are wanted
_BODIES = 100
_BUDGET = 1_000_000_000  # tokens a minute, so that none is refused
_ENGINE_PORT = 8000  # what the chart says of every engine
_BODY_LIMIT = 16 * 1024 * 1024  # the chart's maxBodyMiB

Readings = dict[tuple[str, str], list[Load]]


def measure(
    *, seconds: float, rounds: int, cases: Sequence[Case] = messages.CASES, sizes: Sequence[int] = MODELS,
    without: Sequence[str] = (), peers: Sequence[tuple[Peer, Path]] = (), budgets: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> Readings:
    """Loads per (case, subject), one a round; a round goes through all subjects before the next one begins.

    `sizes` are the catalogues' numbers of models. `without` adds, for the first of them, a router that lacks one thing
    of `costs.WITHOUT` each. `peers` with their folders of programs are measured too, with `budgets` also a router that
    asks the rate-limit service, whose own CPU time and its store's are not counted. Raises LoadError where anything but
    the wanted answer comes, NotReady or TimeoutError where a process does not start, and tools.ToolError where the
    service cannot be built.

    Among the cases, FIRST_TOKEN is also sent straight to the engine, with pauses between the requests.
    """
    with contextlib.ExitStack() as stack:
        engine, subjects = _start(stack, sizes, without, peers, budgets, progress)
        for case in cases:
            progress(f"asking each for one answer: {case.name}")
            for subject in subjects:
                _named(subject, case, lambda subject=subject, case=case: check(subject, case))
        readings: Readings = {}
        for number in range(rounds):
            for case in cases:
                progress(f"round {number + 1} of {rounds}: {case.name}")
                for subject in [*([engine] if case == messages.FIRST_TOKEN else []), *subjects]:
                    readings.setdefault((case.name, subject.name), []).append(
                        _named(subject, case, lambda subject=subject, case=case: _load(subject, case, seconds)))
        return readings


def _start(
    stack: contextlib.ExitStack, sizes: Sequence[int], without: Sequence[str], peers: Sequence[tuple[Peer, Path]],
    budgets: bool, progress: Callable[[str], None],
) -> tuple[Subject, list[Subject]]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-router-")))
    dns = stack.enter_context(DnsServer())
    processes = stack.enter_context(Processes())
    credentials = stack.enter_context(CredentialEndpoint(folder / "token"))
    (address,) = free_addresses(1, _ENGINE_PORT)
    log = folder / "upstream.log"
    upstream = processes.start(
        "upstream", [sys.executable, "-m", "inference_plane.bench.upstream", address, str(_ENGINE_PORT)],
        log_path=log, ready=f"http://{address}:{_ENGINE_PORT}/health")
    for number in range(max(sizes)):
        dns.set(f"model-{number:03}.{NAMESPACE}.svc.cluster.local", [address])

    def router(name: str, values: dict[str, Any], **more: Any) -> Subject:
        local = local_values(dns_port=dns.port, bedrock_port=free_port())
        return start_router(
            processes, folder / re.sub(r"\W+", "-", name), name, values, local, credentials.env, **more)

    def peer(which: Peer, programs: Path, count: int) -> Subject:
        name = which.name + (f", {count} models" if which.sizes else "")
        progress(f"starting {name}")
        models = tuple(catalogue(count)["global"]["models"])
        place = folder / re.sub(r"\W+", "-", name)
        place.mkdir()
        process, port = which.start(processes, programs, place, f"http://{address}:{_ENGINE_PORT}", models)
        return Subject(name, port, models, process, (process.log_path,), rewrites=True)

    def counted() -> Subject:
        values, tokens = everything_on(catalogue(sizes[0]), Issuer(), budget=_BUDGET)
        place = folder / "ratelimit"
        place.mkdir()
        render = helm.template("router", values=values, namespace=NAMESPACE)
        service = RateLimit(processes, render, place, Store(processes, place))
        dns.set(f"{RATELIMIT}.{NAMESPACE}.svc.cluster.local", [service.host])
        return router(f"router, {sizes[0]} models, tokens, budget", values, tokens=tokens)

    secured, tokens = everything_on(catalogue(sizes[0]), Issuer())
    engine = Subject(STRAIGHT, _ENGINE_PORT, ("model-000",), upstream, (log,), host=address)
    return engine, [
        start_bare(processes, folder / "bare", (address, _ENGINE_PORT), _BODY_LIMIT),
        *(router(f"router, {count} models", catalogue(count)) for count in sizes),
        *(router(f"without {name}", catalogue(sizes[0]), change=WITHOUT[name]) for name in without),
        router(f"router, {sizes[0]} models, tokens", secured, tokens=tokens),
        *([counted()] if budgets else []),
        *(peer(which, programs, count)
          for which, programs in peers for count in (sizes if which.sizes else sizes[:1])),
    ]


def check(subject: Subject, case: Case) -> None:
    """Sends one request a model and raises LoadError unless the engine's whole reply comes back.

    A stream takes 0.4 s, so of streams the first model's alone is asked for: the load refuses what is no 200.
    """
    for model in subject.models[:1] if case.stream else subject.models:
        connection = http.client.HTTPConnection("127.0.0.1", subject.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", messages.PATH, messages.body(case, model), {
                "content-type": "application/json", "authorization": f"Bearer {subject.tokens[0]}"})
            response = connection.getresponse()
            body = response.read()
        events = body.count(b"\n\n")
        wanted = messages.STREAM_EVENTS + 2 if case.stream else 0
        whole = events >= messages.STREAM_EVENTS * case.stream if subject.rewrites else events == wanted
        if response.status != 200 or not whole:
            text = body[:400].decode(errors="replace")
            raise LoadError(f"answered {model} with {response.status}, {events} events: {text!r}")


def _load(subject: Subject, case: Case, seconds: float) -> Load:
    # All bodies differ: Lua keeps one copy of equal strings, so a repeated prompt would be cheaper than a new one.
    count = max(_BODIES, len(subject.models))
    models, tokens = subject.models, subject.tokens
    requests = [messages.request(case, models[n % len(models)], n, tokens[n % len(tokens)]) for n in range(count)]
    try:
        return drive(
            subject.port, requests, host=subject.host, connections=case.connections, seconds=seconds, warm_up=WARM_UP,
            cpu_seconds=subject.cpu_seconds, pause=_PAUSE if case == messages.FIRST_TOKEN else 0)
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
