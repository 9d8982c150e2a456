"""What the values that steer an elastic fleet do to a surge and to bursts: hours in seconds, by `simulation`.

Each case changes one value. The ScaledObject is the one that the chart renders with it; the decision, the demand and
their tuning are the policy service's own. Simulated is the rest, engines, routers, KEDA and nodes, so that cases differ
by their value alone: every case meets the same requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.box
import rich.table

from inference_plane import helm
from inference_plane.load import returns
from inference_plane.policy.config import Tuning

from .simulation import NAME, Result, World

#: The fleet: sequences at once and in the queue of an engine, seconds of a request, seconds from a replica to its node
#: and from there to an engine that answers, the share of requests that may leave, and their first-token budget.
SLOTS, QUEUE, REQUEST, NODE, LOAD, MOVABLE, BUDGET = 32, 16, 15.0, 60.0, 180.0, 0.7, 3.0
REPLICAS = {"min": 2, "max": 12}
SECONDS = 80 * 60
QUIET, BUSY = 1.5, 12.0  # requests a second


def surge(at: float) -> float:
    """Eight times as many within five minutes, half an hour of it, and ten minutes down."""
    minute = at / 60
    up, down = min(1.0, max(0.0, (minute - 10) / 5)), min(1.0, max(0.0, (minute - 45) / 10))
    return QUIET + (BUSY - QUIET) * (up - down)


def bursts(at: float) -> float:
    """Twice what two engines take, for three quarters of a minute, every ten minutes."""
    return 8.0 if at % 600 >= 555 else 3.0


LOADS: Mapping[str, Callable[[float], float]] = {"surge": surge, "bursts": bursts}


@dataclass(frozen=True)
class Case:
    """One change: to the chart's `autoscaling`, to the entry, to the policy's tuning, to how long a node takes."""

    name: str
    autoscaling: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning = Tuning()
    node: float = NODE


def _pace(direction: str, **changed: int) -> dict[str, Any]:
    return {"autoscaling": {direction: changed}}


CASES: tuple[Case, ...] = (
    Case("the defaults"),
    Case("autoscaling.demandPort: null", {"demandPort": None}),
    *(Case(f"autoscaling.utilization: {value}", {"utilization": value}) for value in (0.6, 0.7, 0.9, 1.0)),
    *(Case(f"autoscaling.pollingSeconds: {value}", {"pollingSeconds": value}) for value in (5, 30)),
    *(Case(f"scaleUp.pods: {value}", **_pace("scaleUp", pods=value)) for value in (1, 4)),
    *(Case(f"scaleUp.stabilizationSeconds: {v}", **_pace("scaleUp", stabilizationSeconds=v)) for v in (0, 60)),
    *(Case(f"scaleDown.stabilizationSeconds: {v}", **_pace("scaleDown", stabilizationSeconds=v)) for v in (60, 900)),
    *(Case(f"replicas.min: {value}", model={"replicas": {"min": value}}) for value in (3, 4)),
    Case("a node is there (headroom)", node=5.0),
    *(Case(f"tuning.holdSeconds: {value}", tuning=Tuning(holdSeconds=value)) for value in (10, 60)),
    Case("tuning.lowerSeconds: 10", tuning=Tuning(lowerSeconds=10)),
)


@dataclass(frozen=True)
class Row:
    """One case under one load. `bedrock` is of the requests that may leave, `refused` of those that may not; the 99th
    percentile of the wait for a place in an engine in seconds; `drained` requests were in replicas that had to leave;
    `back` is the longest way back, from the last engine that came to a share of 0, in seconds."""

    load: str
    case: str
    bedrock: float
    refused: int
    late: int
    wait_p99: float
    replica_hours: float
    most: int
    changes: int
    drained: int
    back: float | None


def scaled_object(case: Case) -> dict[str, Any]:
    """As the chart renders it with the case's values. Raises HelmError where it does not."""
    entry = {
        "source": f"s3://models/{NAME}/v1/", "weightsGiB": 7.6, "kvBytesPerToken": 57344, "accelerator": "l40s",
        "maxModelLen": 4096, "maxNumSeqs": SLOTS, "maxQueuedRequests": QUEUE, "residency": "region",
        "fallback": {"model": "openai.gpt-oss-20b-1:0", "retention": "none"}, "replicas": REPLICAS,
    }
    shared = {
        "aws": {"region": "eu-central-1", "accountId": "123456789012"}, "residency": {"geography": "eu"},
        "tls": {"mode": "none"}, "network": {"policies": False},
    }
    models = {NAME: helm.merged(entry, case.model)}
    values = {"global": {**shared, "models": models}, "autoscaling": case.autoscaling}
    return helm.template("vllm", values=values).find("ScaledObject", NAME)["spec"]


def run(case: Case, load: str, seconds: int = SECONDS) -> Result:
    """Everything that came of a case under one of `LOADS`."""
    spec = scaled_object(case)
    world = World(
        LOADS[load], replicas=spec["minReplicaCount"], max_replicas=spec["maxReplicaCount"], slots=SLOTS,
        admits=SLOTS + QUEUE, seconds=REQUEST, movable=MOVABLE, budget=BUDGET, node_seconds=case.node,
        load_seconds=LOAD, tuning=case.tuning, keda=spec)
    return world.run(seconds)


def row(load: str, case: str, result: Result) -> Row:
    return Row(
        load=load, case=case, bedrock=result.fraction, refused=result.turned_away, late=result.late,
        wait_p99=result.waits(0.99), replica_hours=sum(result.replicas) / 3600, most=max(result.replicas),
        changes=len(result.steps) - 1, drained=result.drained, back=_way_back(result))


def _way_back(result: Result) -> float | None:
    """The longest, in seconds. A tick is one."""
    ready = [decision.ready or 0 for decision in result.decisions]
    ways = returns.of_model(NAME, zip(map(float, range(len(ready))), result.shares, ready, strict=True))
    return max((way.seconds for way in ways if way.seconds is not None), default=None)


def measure(
    cases: Sequence[Case] = CASES, loads: Sequence[str] = tuple(LOADS),
    progress: Callable[[str], None] = lambda line: None,
) -> tuple[list[Row], dict[str, Result]]:
    """A row a load and case, and the surge of the first two cases tick by tick, which are drawn.

    Raises HelmError where a case does not render.
    """
    rows, drawn = [], {}
    for load in loads:
        for case in cases:
            progress(f"{load}: {case.name}")
            result = run(case, load)
            rows.append(row(load, case.name, result))
            if load == "surge" and case in cases[:2]:
                drawn[case.name] = result
    return rows, drawn


def table(rows: Sequence[Row]) -> rich.table.Table:
    drawn = rich.table.Table(box=rich.box.SIMPLE)
    for number, heading in enumerate((
        "load", "case", "to Bedrock", "refused", "late", "wait p99, s", "replica hours", "most", "changes", "drained",
        "way back, s",
    )):  # fmt: skip
        drawn.add_column(heading, justify="left" if number < 2 else "right")
    last = ""
    for one in rows:
        if last and one.load != last:
            drawn.add_section()
        drawn.add_row(
            one.load if one.load != last else "", one.case, f"{one.bedrock:.1%}", str(one.refused), str(one.late),
            f"{one.wait_p99:.1f}", f"{one.replica_hours:.1f}", str(one.most), str(one.changes), str(one.drained),
            "-" if one.back is None else f"{one.back:.0f}")
        last = one.load
    return drawn


def picture(rows: Sequence[Row], drawn: Mapping[str, Result], path: Path) -> None:
    """The surge of some cases over time, and what each case costs beside what it sends away."""
    import matplotlib  # a second and 60 MB: only who draws pays it

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 9), layout="constrained")
        asked, replicas, share, costs = figure.subplots(4, 1, height_ratios=(1, 1, 1, 3))
        for number, (name, result) in enumerate(drawn.items()):
            at, color = [tick / 60 for tick in range(len(result.shares))], f"C{number}"
            demands = [math.nan if value is None else value for value in result.demands]
            asked.plot(at, demands, color=color, linewidth=0.8, label=name)
            replicas.step(at, result.replicas, where="post", color=color, linestyle=":")
            replicas.step(at, [one.ready or 0 for one in result.decisions], where="post", color=color)
            share.step(at, result.shares, where="post", color=color)
        asked.set(ylabel="demand")
        asked.legend(loc="upper right", fontsize=8)
        replicas.set(ylabel="replicas: wanted\n(dotted), ready")
        share.set(ylabel="share to\nBedrock, %", xlabel="minutes")
        for number, one in enumerate(one for one in rows if one.load == "surge"):
            at, color = (one.replica_hours, one.bedrock * 100), "C0" if number else "C3"
            costs.plot(*at, marker="o", linestyle="", color=color, label=f"{number}  {one.case}")
            costs.annotate(str(number), at, xytext=(4, 4), textcoords="offset points", fontsize=8, color=color)
        costs.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, handlelength=0, markerscale=0)
        costs.set(xlabel="replica hours", ylabel="answered by Bedrock, % of what may leave", ylim=(0, None))
        figure.savefig(path, dpi=110)
