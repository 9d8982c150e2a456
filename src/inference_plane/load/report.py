"""A run's report: one document, as text, JSON, CSV and a page of HTML."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import html
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.console
import rich.table

from . import measures
from .drive import Outcome
from .measures import percentile
from .profiles import TIMES, Profile
from .returns import Return
from .samples import ANSWERED, CANCELLED, FAILED, UNSENT, Sample
from .thresholds import Verdict

#: Windows of the timeline, at most.
WINDOWS = 60


def document(
    profile: Profile,
    target: str,
    outcome: Outcome,
    verdicts: Sequence[Verdict],
    compared: Mapping[str, Any] | None,
    fleet: Sequence[Mapping[str, Any]] = (),
    back: Sequence[Return] = (),
    steps: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is known of a run. Times are in seconds; `fleet` is what the target's control loops did, `back`
    how long it took to have all requests again, `steps` the way of models from no replica and back."""
    width = max(1.0, measures.length(outcome.samples) / WINDOWS)
    generator = outcome.generator
    lags = generator.lags or [0.0]
    return {
        "profile": {
            "name": profile.name,
            "description": profile.description,
            "seed": profile.seed,
            "seconds": profile.seconds,
            "slo": dict(profile.slo),
            "pacing": profile.pacing,
        },
        "target": target,
        "began": outcome.began,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "load_average": os.getloadavg()[0]},
        "thresholds": [dataclasses.asdict(verdict) for verdict in verdicts],
        "measures": measures.document(outcome.samples, profile),
        "generator": {
            "users": generator.users,
            "most_under_way": generator.busy,
            "late_seconds_max": max((sample.late for sample in outcome.samples), default=0.0),
            "late_requests": sum(sample.late > measures.TOLERANCE for sample in outcome.samples),
            "lag_seconds": {"p50": percentile(lags, 50), "p99": percentile(lags, 99), "max": max(lags)},
            "cpu_seconds": generator.cpu,
            "locust": generator.stats,
        },
        "router": dict(compared) if compared is not None else None,
        "events": [
            dataclasses.asdict(acted) | {"phase": profile.phase(acted.began).name} for acted in outcome.acted
        ],
        "timeline": {
            "seconds": width,
            "windows": [dataclasses.asdict(window) for window in measures.timeline(outcome.samples, profile, width)],
        },
        "fleet": list(fleet),
        "returns": [dataclasses.asdict(each) for each in back],
        "steps": dict(steps) if steps else None,
    }


def text(made: Mapping[str, Any]) -> str:
    """For people: the groups' first lines, and what is wrong."""
    console = rich.console.Console(width=150, highlight=False)
    with console.capture() as captured:
        console.print(_table(made["measures"]))
        for line in _lines(made):
            console.print(line, markup=False, soft_wrap=True)
        if made["steps"]:
            console.print(_steps(made["steps"]))
    return captured.get().rstrip()


def _table(found: Mapping[str, Any]) -> rich.table.Table:
    drawn = rich.table.Table(box=rich.box.SIMPLE)
    drawn.add_column("of")
    for heading in ("requests", "answered", "failed", "left early", "good", "Bedrock"):
        drawn.add_column(heading, justify="right")
    for heading in ("ttft p50", "p95", "p99 ms", "tpot p50", "p95 ms", "e2e p50", "p95 s"):
        drawn.add_column(heading, justify="right")
    rows = [("all", found["all"])]
    for group in ("model", "tenant", "request", "backend", "phase"):
        parts = found[f"by_{group}"]
        rows += [(f"{group} {name}", part) for name, part in parts.items()] if len(parts) > 1 else []
    last = ""
    for name, part in rows:
        if name.split()[0] != last:
            drawn.add_section()
        last = name.split()[0]
        drawn.add_row(
            name,
            str(part["requests"]),
            *(str(part["outcomes"][key]) for key in (ANSWERED, FAILED, CANCELLED)),
            *(_share(part[key]) for key in ("goodput", "fallback")),
            *(_time(part["ttft"], key, 1e3) for key in ("p50", "p95", "p99")),
            *(_time(part["tpot"], key, 1e3) for key in ("p50", "p95")),
            *(_time(part["e2e"], key, 1) for key in ("p50", "p95")),
        )
    return drawn


#: What the two ways of a model are.
WAYS = {"wake": "from no replica to an answer", "back": "from the last answer to no node"}


def _steps(found: Mapping[str, Any]) -> rich.table.Table:
    """Each way, model beside model: when a step was, and how much later than those before it."""
    late, load = found["late"], found["load"]
    title = f"From zero and back, in seconds, late by at most {late:.1f}; "
    title += f"load average {load['least']:.1f} to {load['most']:.1f}"
    drawn = rich.table.Table(box=rich.box.SIMPLE, title=title)
    drawn.add_column("step")
    drawn.add_column("simulated", justify="right")
    for name in found["models"]:
        drawn.add_column(name, justify="right")
        drawn.add_column("later by", justify="right")
    for way, what in WAYS.items():
        rows = list(zip(*(model[way] for model in found["models"].values()), strict=True))
        drawn.add_section()
        for row in rows:
            simulated = row[0]["simulated"]
            cells = [(step["at"], step["took"]) for step in row]
            drawn.add_row(
                row[0]["what"], f"{simulated:g}" if simulated else "",
                *("-" if value is None else f"{value:.1f}" for cell in cells for value in cell),
            )  # fmt: skip
        simulated = sum(row[0]["simulated"] for row in rows)
        drawn.add_row(what, f"{simulated:g}" if simulated else "", *_whole(rows))
    return drawn


def _whole(rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Of each model nothing and how long all steps took, where all of them came."""
    models = zip(*rows, strict=True)
    took = [[step["took"] for step in steps] for steps in models]
    return [cell for each in took for cell in ("", "-" if None in each else f"{sum(each):.1f}")]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _time(times: Mapping[str, float] | None, key: str, scale: float) -> str:
    return "-" if times is None else f"{times[key] * scale:.{0 if scale > 1 else 2}f}"


def _lines(made: Mapping[str, Any]) -> list[str]:
    whole, generator, compared = made["measures"]["all"], made["generator"], made["router"]
    lines = [
        f"{whole['requests_per_second']:.2f} requests/s answered, {whole['good_requests_per_second']:.2f} of them "
        "good; "
        f"{whole['prompt_tokens_per_second']:.0f} tokens/s in, {whole['completion_tokens_per_second']:.0f} out",
    ]
    if whole["errors"]:
        lines.append("failed: " + ", ".join(f"{count} x {error}" for error, count in whole["errors"].items()))
    if whole["refusals"]:
        lines.append(
            f"refused {whole['refusals']} times with 429 or 503, {_share(whole['withoutRetryAfter'])} of them without "
            f"Retry-After; {whole['retried']} requests came again after it, {whole['retried_and_answered']} were "
            "answered"
        )
    lag = generator["lag_seconds"]
    lines.append(
        f"generator: {generator['most_under_way']} of {generator['users']} users under way at most; its loop was "
        "late by "
        f"{lag['p50'] * 1e3:.1f} ms (p50), {lag['p99'] * 1e3:.1f} ms (p99): no time is more exact"
    )
    if generator["late_requests"] or whole["outcomes"][UNSENT]:
        lines.append(
            f"OPEN LOOP NOT KEPT: {generator['late_requests']} requests went out more than {measures.TOLERANCE:g} s "
            "late, by up "
            f"to {generator['late_seconds_max']:.1f} s, and {whole['outcomes'][UNSENT]} not at all. Waiting is "
            "hidden in them. "
            "Set --users higher, or send less from this machine"
        )
    if compared is None:
        lines.append("router: not compared, its audit lines are not known here")
    else:
        differences = ", ".join(f"{count} {what}" for what, count in compared["differences"].items()) or "none"
        more = ", ".join(
            f"{added['median']:.1f} ms ({what})" for what, added in compared["client_minus_router_ms"].items() if added
        )
        lines.append(
            f"router: {compared['compared']} requests compared with its audit lines, differences: {differences}"
            + (f"; clients saw later than the router, at the median: {more}" if more else "")
        )
    lines += [_event(each, made["measures"]["by_phase"]) for each in made["events"]]
    lines += [str(Return(**each)) for each in made["returns"]]
    for verdict in made["thresholds"]:
        value = "nothing was measured" if verdict["value"] is None else f"{verdict['value']:.4g}"
        lines.append(f"{'kept    ' if verdict['kept'] else 'NOT KEPT'} {verdict['threshold']}: {value}")
    return lines


def _event(event: Mapping[str, Any], phases: Mapping[str, Any]) -> str:
    """What an event took, and what became of the requests of its phase."""
    line = f"{event['mark']} at {event['began']:.0f} s: over after {event['ended'] - event['began']:.0f} s"
    if event["began"] - event["at"] > 1:
        line += f", begun {event['began'] - event['at']:.0f} s late, as those before it took so long"
    if (part := phases.get(event["phase"])) is None:
        return f"{line}; in its phase {event['phase']} was no request"
    cut = sum(count for error, count in part["errors"].items() if error.startswith("cut stream"))
    return (
        f"{line}; of {part['requests']} requests in its phase {event['phase']} {part['outcomes'][FAILED]} failed, "
        f"{part['lost']} of them lost, {cut} cut streams; {_share(part['fallback'])} from Bedrock"
    )


def write_json(path: Path, made: Mapping[str, Any], samples: Sequence[Sample], profile: Profile) -> None:
    path.write_text(json.dumps(made, indent=2) + "\n")


def write_csv(path: Path, made: Mapping[str, Any], samples: Sequence[Sample], profile: Profile) -> None:
    """A row a request; gaps and waits as their count and greatest."""
    names = [field.name for field in dataclasses.fields(Sample) if field.name not in ("gaps", "waits")]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "late", "tpot", "gaps", "gap_max", "waits", "waited", "good"])
        for sample in samples:
            own = [getattr(sample, name) for name in names]
            gaps, waits = sample.gaps, sample.waits
            writer.writerow(
                [*own, sample.late, sample.tpot, len(gaps), max(gaps, default=None), len(waits), sum(waits)]
                + [measures.good(sample, profile.slo)]
            )


def write_png(path: Path, made: Mapping[str, Any], samples: Sequence[Sample], profile: Profile) -> None:
    """The timeline alone."""
    from . import plots  # a second and 60 MB: only who draws pays it

    plots.timeline(made).savefig(path, format="png", dpi=110)


def write_html(path: Path, made: Mapping[str, Any], samples: Sequence[Sample], profile: Profile) -> None:
    """One page that needs nothing else: no scripts, no network."""
    from . import plots

    values = {measure: measures.series(samples, measure) for measure in TIMES}
    pictures = plots.svg(plots.timeline(made)) + plots.svg(plots.distribution(made, values))
    path.write_text(page(made, pictures))


def page(made: Mapping[str, Any], pictures: str) -> str:
    """The page around the pictures."""
    name, began = html.escape(made["profile"]["name"]), datetime.datetime.fromtimestamp(made["began"], datetime.UTC)
    verdicts = "".join(
        f"<tr class={'kept' if verdict['kept'] else 'broken'}><td>{'kept' if verdict['kept'] else 'NOT KEPT'}"
        f"<td>{html.escape(verdict['threshold'])}"
        f"<td>{'nothing was measured' if verdict['value'] is None else format(verdict['value'], '.4g')}"
        for verdict in made["thresholds"]
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>load: {name}</title>
<style>
body {{font: 14px/1.4 sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem}}
table {{border-collapse: collapse; margin: 1rem 0}} td, th {{padding: .15rem .6rem; border-bottom: 1px solid #ddd}}
td + td, th + th {{text-align: right}} .broken {{background: #fdd}} pre {{overflow: auto}}
svg {{max-width: 100%; height: auto}}
</style>
<h1>{name}</h1>
<p>{html.escape(made["profile"]["description"])} Target {html.escape(made["target"])}, {began:%Y-%m-%d %H:%M} UTC,
seed {made["profile"]["seed"]}, {made["machine"]["cpus"]} CPUs, load {made["machine"]["load_average"]:.1f}.</p>
<h2>Thresholds</h2><table><tr><th><th>threshold<th>measured{verdicts}</table>
<h2>Over time</h2>{pictures}
<h2>Measures</h2><pre>{html.escape(text(made))}</pre>
</html>
"""
