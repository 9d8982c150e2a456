"""Resident memory of each process of the plane, by the size of the catalogue, at rest and after load."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import rich.box
import rich.table

from . import messages, plane
from .load import drive

#: Every second model falls back, and without one that does there is no policy service.
SIZES = (2, 10, 100)
_BODIES = 100
_CASES = (messages.CASES[0], messages.CASES[1])


@dataclass(frozen=True)
class Memory:
    """One process with one catalogue: resident bytes at rest, after the load, and the highest mark meanwhile."""

    process: str
    models: int
    rest: int
    loaded: int
    peak: int


def measure(
    *, sizes: Sequence[int] = SIZES, seconds: float = 5.0, progress: Callable[[str], None] = lambda line: None
) -> list[Memory]:
    """One row a process and size; each kind of request of `_CASES` is sent for so many seconds.

    Raises LoadError where anything but a 200 comes, NotReady or TimeoutError where a process does not start.
    """
    found = []
    for size in sizes:
        progress(f"the plane with {size} models starts")
        with plane.started(size) as (bed, tokens):
            before = plane.held(bed.processes)
            names = list(bed.values["global"]["models"])
            for case in _CASES:
                progress(f"{size} models, {case.name} over {case.connections} connections")
                count = max(_BODIES, size)
                requests = [
                    messages.request(case, names[n % size], n, tokens[n % len(tokens)]) for n in range(count)]
                drive(
                    int(bed.url.rpartition(":")[2]), requests, connections=case.connections, seconds=seconds,
                    warm_up=0, cpu_seconds=lambda: 0.0)
                for log in (bed.router.audit_path, bed.router.log_path):
                    os.truncate(log, 0)
            after = plane.held(bed.processes)
        found += [Memory(name, size, before[name].resident, now.resident, now.peak) for name, now in after.items()]
    return found


def table(found: Sequence[Memory]) -> rich.table.Table:
    drawn = rich.table.Table(
        box=rich.box.SIMPLE, title="memory", title_justify="left", caption_justify="left",
        caption="Resident MiB at rest / after the load / at the highest, with all that production switches on.")
    sizes = sorted({row.models for row in found})
    drawn.add_column("process")
    for size in sizes:
        drawn.add_column(f"{size} models", justify="right")
    by = {(row.process, row.models): row for row in found}
    for process in sorted({row.process for row in found}):
        cells = [by.get((process, size)) for size in sizes]
        drawn.add_row(process, *(
            " / ".join(f"{figure / (1 << 20):.0f}" for figure in (row.rest, row.loaded, row.peak)) if row else "-"
            for row in cells))
    return drawn
