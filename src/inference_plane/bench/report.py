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


@dataclass(frozen=True)
class FirstToken:
    """Milliseconds to the first event of a stream through one router, and what it adds to going straight.

    `added_p50_ms` is the median over the rounds of one round's own difference of medians; 99th percentiles are of the
    samples of all rounds together.
    """

    subject: str
    samples: int
    p50_ms: float
    p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    ratio_p50: float


def first_tokens(readings: Mapping[str, Sequence[Load]], baseline: str) -> list[FirstToken]:
    """One row for each subject of `readings` (one Load a round); empty where there are none."""
    def p99(loads: Sequence[Load]) -> float:
        return statistics.quantiles([one for load in loads for one in load.first_events], n=100)[-1]

    found = []
    for subject, loads in readings.items():
        own, straight = ([statistics.median(load.first_events) for load in of] for of in (loads, readings[baseline]))
        found.append(FirstToken(
            subject, samples=sum(len(load.first_events) for load in loads),
            p50_ms=statistics.median(own) * 1e3, p99_ms=p99(loads) * 1e3,
            added_p50_ms=statistics.median(a - b for a, b in zip(own, straight, strict=True)) * 1e3,
            added_p99_ms=(p99(loads) - p99(readings[baseline])) * 1e3,
            ratio_p50=statistics.median(a / b for a, b in zip(own, straight, strict=True)),
        ))
    return found


def first_token_table(found: Sequence[FirstToken], load: str) -> rich.table.Table:
    """For people."""
    drawn = rich.table.Table(box=rich.box.SIMPLE, title=f"first event of a stream, {load}", title_justify="left")
    drawn.add_column("through")
    for heading in ("p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "x straight (p50)", "samples"):
        drawn.add_column(heading, justify="right")
    for row in found:
        drawn.add_row(
            row.subject, f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.added_p50_ms:.2f}",
            f"{row.added_p99_ms:.2f}", f"{row.ratio_p50:.2f}", str(row.samples))
    return drawn


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


def document(
    found: Sequence[Row], machine: Mapping[str, Any], settings: Mapping[str, Any], first: Sequence[FirstToken] = (),
) -> dict[str, Any]:
    """For programs."""
    return {
        "machine": dict(machine), "settings": dict(settings), "rows": [asdict(row) for row in found],
        "first_tokens": [asdict(row) for row in first],
    }
