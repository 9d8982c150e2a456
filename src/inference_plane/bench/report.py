"""From readings to a table: medians of rounds, and the ratio to bare Envoy. Pure."""
from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import rich.box
import rich.table

from .load import Load

#: Below this share of a core Envoy was not what limited the requests per second.
SATURATED = 0.9


@dataclass(frozen=True)
class Row:
    """One case through one Envoy.

    `cpu_us` is CPU microseconds per request, `busy` the CPU time per second of the run. `ratio` is this Envoy's cpu_us
    by bare Envoy's: the median of the rounds' own ratios, because neighbours in time saw the same machine.
    """

    case: str
    subject: str
    requests_per_second: float
    cpu_us: float
    cpu_us_min: float
    cpu_us_max: float
    ratio: float
    ratio_min: float
    ratio_max: float
    busy: float


def cpu_us(load: Load) -> float:
    """CPU microseconds per request."""
    return load.cpu_seconds / load.requests * 1e6


def rows(readings: Mapping[tuple[str, str], Sequence[Load]], baseline: str) -> list[Row]:
    """One row for each (case, subject) of `readings`; the lists hold one Load a round, in the order of the rounds."""
    found = []
    for (case, subject), loads in readings.items():
        costs = [cpu_us(load) for load in loads]
        ratios = [cost / cpu_us(base) for cost, base in zip(costs, readings[case, baseline], strict=True)]
        found.append(Row(
            case, subject,
            requests_per_second=statistics.median(load.requests / load.seconds for load in loads),
            cpu_us=statistics.median(costs), cpu_us_min=min(costs), cpu_us_max=max(costs),
            ratio=statistics.median(ratios), ratio_min=min(ratios), ratio_max=max(ratios),
            busy=statistics.median(load.cpu_seconds / load.seconds for load in loads),
        ))
    return found


def table(found: Sequence[Row], caption: str) -> rich.table.Table:
    """For people."""
    drawn = rich.table.Table(box=rich.box.SIMPLE, caption=caption, caption_justify="left")
    for heading in ("request", "through"):
        drawn.add_column(heading)
    for heading in ("requests/s", "CPU µs/request", "min - max", "x bare", "min - max", "cores busy"):
        drawn.add_column(heading, justify="right")
    last = None
    for row in found:
        if last not in (None, row.case):
            drawn.add_section()
        drawn.add_row(
            row.case if row.case != last else "", row.subject, f"{row.requests_per_second:,.0f}",
            f"{row.cpu_us:,.1f}", f"{row.cpu_us_min:,.1f} - {row.cpu_us_max:,.1f}",
            f"{row.ratio:.2f}", f"{row.ratio_min:.2f} - {row.ratio_max:.2f}",
            f"{row.busy:.2f}" + ("" if row.busy >= SATURATED else " *"),
        )
        last = row.case
    return drawn


def document(found: Sequence[Row], machine: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For programs."""
    return {"machine": dict(machine), "settings": dict(settings), "rows": [asdict(row) for row in found]}
