"""A run's timeline and times as pictures. Takes the report's document alone, so that an old one can be drawn again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Text stays text, and the same document gives the same file.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "load", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
COLORS = {"p50": "tab:green", "p95": "tab:orange", "p99": "tab:red"}

#: What became of requests, by second; lost ones are failed ones too, and a request may be refused several times.
SENT = (
    ("sent", "tab:blue", "-"),
    ("answered", "tab:green", "-"),
    ("refused", "tab:orange", "-"),
    ("failed", "tab:red", "-"),
    ("lost", "black", ":"),
)


def timeline(made: Mapping[str, Any]) -> Figure:
    """Demand and what became of it, first tokens, share to Bedrock and tokens, one above the other by time."""
    windows, width = made["timeline"]["windows"], made["timeline"]["seconds"]
    at = [window["start"] + width / 2 for window in windows]
    with matplotlib.rc_context(STYLE):
        fleet = made.get("fleet") or []
        figure = Figure(figsize=(10, 10 + 6 * bool(fleet)), layout="constrained")
        heights = (3, 3, 2, 2, *((2, 2, 2) if fleet else ()))
        demand, first, share, tokens, *loops = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        demand.step(at, [w["offered"] for w in windows], where="mid", color="black", linestyle="--", label="curve")
        for key, color, line in SENT:
            demand.plot(at, [w[key] for w in windows], color=color, linestyle=line, label=key)
        demand.set(ylabel="requests/s", title=f"{made['profile']['name']}: {made['profile']['description']}")
        for key, color in COLORS.items():
            shown = [(x, w["ttft"][key]) for x, w in zip(at, windows, strict=True) if w["ttft"]]
            first.plot([x for x, _ in shown], [y for _, y in shown], color=color, marker=".", label=key)
        if bound := made["profile"]["slo"].get("ttft"):
            first.axhline(bound, color="grey", linestyle=":", label="SLO")
        first.set(ylabel="first token, s", yscale="log")
        shown = [(x, w["fallback"] * 100) for x, w in zip(at, windows, strict=True) if w["fallback"] is not None]
        share.fill_between([x for x, _ in shown], [y for _, y in shown], step="mid", color="tab:purple", alpha=0.5)
        share.set(ylabel="answered by\nBedrock, %", ylim=(0, 100))
        tokens.plot(at, [w["tokens"] for w in windows], color="tab:brown")
        tokens.set(xlabel="seconds", ylabel="output tokens/s", ylim=(0, None))
        way = tokens.twinx()
        way.plot(at, [w["under_way"] for w in windows], color="tab:blue")
        way.set(ylabel="requests under way", ylim=(0, None))
        way.grid(False)
        way.yaxis.label.set_color("tab:blue")
        tokens.yaxis.label.set_color("tab:brown")
        if fleet:
            _fleet(*loops, fleet)
            _shares(share, fleet)
        for axes in (demand, first, share, tokens, *loops):
            _events(axes, made["events"], named=axes is demand)
        for axes in (demand, first):
            axes.legend(loc="upper right", fontsize=8)
    return figure


def _fleet(queue: Axes, replicas: Axes, nodes: Axes, fleet: Sequence[Mapping[str, Any]]) -> None:
    """What the control loops did: queues and demand, replicas wanted and ready, nodes by capacity type."""
    at = [reading["at"] for reading in fleet]
    for number, name in enumerate(fleet[0]["models"]):
        of = [reading["models"][name] for reading in fleet]
        color = f"C{number}"
        queue.plot(at, [one["waiting"] for one in of], color=color, label=f"{name}: waiting")
        if any(one["demand"] is not None for one in of):
            queue.plot(at, [one["demand"] for one in of], color=color, linestyle=":", label=f"{name}: demand")
        for key, label, line in (("replicas", "wanted", ":"), ("ready", "ready", "-")):
            values = [one[key] for one in of]
            replicas.step(at, values, where="post", color=color, linestyle=line, label=f"{name}: {label}")
    routers = [reading.get("routers", 0) for reading in fleet]
    replicas.step(at, routers, where="post", color="grey", label="routers: ready")
    kinds = sorted({kind for reading in fleet for kind in reading["nodes"]})
    counts = [[reading["nodes"].get(kind, 0) for reading in fleet] for kind in kinds]
    nodes.stackplot(at, counts, labels=kinds, step="post", alpha=0.5)
    asked = [reading["claims"] for reading in fleet]
    nodes.step(at, asked, where="post", color="black", linestyle=":", label="asked for")
    for axes, label in ((queue, "requests"), (replicas, "replicas"), (nodes, "nodes")):
        axes.set(ylabel=label, ylim=(0, None))
        axes.legend(loc="upper right", fontsize=8)
    nodes.set(xlabel="seconds")


def _shares(axes: Axes, fleet: Sequence[Mapping[str, Any]]) -> None:
    """What the policy service told the routers, of those models that ever fell back."""
    for number, name in enumerate(fleet[0]["models"]):
        shares = [reading["models"][name]["share"] for reading in fleet]
        if any(shares):
            at = [reading["at"] for reading in fleet]
            axes.step(at, shares, where="post", color=f"C{number}", linewidth=0.8, label=f"{name}: decided share")
            axes.legend(loc="upper right", fontsize=8)


def distribution(made: Mapping[str, Any], values: Mapping[str, Sequence[float]]) -> Figure:
    """What share of requests had a time of at most so much, for each measure; every sample is a step."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3), layout="constrained")
        for axes, (name, found) in zip(figure.subplots(1, len(values)), values.items(), strict=True):
            axes.ecdf(found) if len(found) else axes.text(0.5, 0.5, "nothing measured", ha="center")
            if bound := made["profile"]["slo"].get(name):
                axes.axvline(bound, color="grey", linestyle=":")
            axes.set(title=name, xlabel="s")
    return figure


def _events(axes: Axes, events: Sequence[Mapping[str, Any]], *, named: bool) -> None:
    for event in events:
        axes.axvspan(event["began"], event["ended"], color="tab:red", alpha=0.12)
        axes.axvline(event["began"], color="tab:red", linewidth=0.8)
        if named:
            axes.annotate(event["mark"], (event["began"], 1), xycoords=("data", "axes fraction"), fontsize=8, va="top")


def svg(figure: Figure) -> str:
    """The picture as an element of a page."""
    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]
