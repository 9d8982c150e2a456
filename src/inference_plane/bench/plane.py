"""The whole plane of a catalogue on loopback, as the suite measures it, and what its processes hold."""
from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_plane import tools
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Processes

from .envoys import catalogue, everything_on, family

#: Tokens a minute, so that no request is refused for its team's budget.
BUDGET = 1_000_000_000
_METRICS_PORT = 8001  # of every engine, as the chart has it


@dataclass(frozen=True)
class Held:
    """What one process and its children hold: resident memory and its highest mark so far (bytes), open files."""

    resident: int
    peak: int
    files: int


@contextlib.contextmanager
def started(models: int, **engine: Any) -> Iterator[tuple[Bed, list[str]]]:
    """A router with all that production switches on, its policy service and, where it is built, its budgets.

    Every second model falls back; each has one replayed engine, whose arguments are `engine`. With the bed come tokens
    of its callers. Raises NotReady or TimeoutError where something does not start.
    """
    budget = BUDGET if tools.path("ratelimit").is_file() else None
    values, tokens = everything_on(catalogue(models), Issuer(), budget=budget)
    with (
        tempfile.TemporaryDirectory(prefix="bench-suite-") as folder,
        Bed(Path(folder), values=values, policies=1, metrics_port=_METRICS_PORT, **engine) as bed,
    ):
        yield bed, tokens


def held(processes: Processes) -> dict[str, Held]:
    """By the name of each process that was started. Raises NotReady where one has ended."""
    processes.check()
    found = {}
    for process in processes:
        pids = family(process.pid)
        status = [_status(pid) for pid in pids]
        found[process.name] = Held(
            resident=sum(one["VmRSS"] for one in status), peak=sum(one["VmHWM"] for one in status),
            files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids))
    return found


def _status(pid: int) -> Mapping[str, int]:
    """Bytes by the names of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
            if name in ("VmRSS", "VmHWM")}
