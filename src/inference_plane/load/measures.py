"""From samples to what is reported. Pure.

Names and definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py): ttft from sending to the first token,
tpot (end - first token) / (output tokens - 1) of each request, itl the gaps between events with tokens, e2e from
sending to the end. Percentiles are exact: the smallest sample that at least so many percent of the samples do not pass
(nearest rank), so a figure is always one that was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import plan
from .profiles import Profile
from .samples import ANSWERED, CANCELLED, FAILED, UNSENT, Sample

PERCENTILES = (50, 90, 95, 99)
#: A request that goes out later than this, in seconds, counts as late.
TOLERANCE = 0.1
#: Failures after which nobody knows what became of the request: it got no status, or no end.
LOST = ("connection", "cut stream", "timeout", "error", "no token")


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank. Raises ValueError where there are no values."""
    if not values:
        raise ValueError("no values have no percentile")
    return sorted(values)[max(math.ceil(percent / 100 * len(values)), 1) - 1]


#: The times of answered requests, in seconds, by measure.
SERIES: Mapping[str, Callable[[Sample], Iterable[float]]] = {
    "ttft": lambda sample: () if sample.first is None else (sample.first,),
    "tpot": lambda sample: () if sample.tpot is None else (sample.tpot,),
    "itl": lambda sample: sample.gaps,
    "e2e": lambda sample: () if sample.total is None else (sample.total,),
}


def series(samples: Iterable[Sample], measure: str) -> list[float]:
    """All values of a time, of the answered ones."""
    return [value for sample in samples if sample.outcome == ANSWERED for value in SERIES[measure](sample)]


def good(sample: Sample, slo: Mapping[str, float]) -> bool:
    """Whether an answer kept the SLO; what it has no value for (a first token without a stream), it cannot miss."""
    values = {"ttft": sample.first, "tpot": sample.tpot, "e2e": sample.total}
    return sample.outcome == ANSWERED and all(
        values[measure] is None or values[measure] <= bound for measure, bound in slo.items()
    )


def lost(sample: Sample) -> bool:
    return sample.outcome == FAILED and sample.error.startswith(LOST)


def retriable(sample: Sample) -> bool:
    """Whether it failed before its answer had begun, so that it could have been tried again elsewhere."""
    return sample.outcome == FAILED and not sample.error.startswith("cut stream")


def left(sample: Sample) -> bool:
    """Whether a restricted prompt was answered outside the cluster."""
    return sample.restricted and sample.backend == "bedrock"


def shares(samples: Sequence[Sample], slo: Mapping[str, float]) -> dict[str, float | None]:
    """Shares of 1, and counts; None where there is nothing that they could be of.

    Of those that were to be answered (all but the cancelled): failed, goodput. Of the answered: fallback. Of all:
    late, unsent. Of refusals: withoutRetryAfter. A target whose answers do not say where they come from tells nothing
    of what fell back or left.
    """
    count = Counter(sample.outcome for sample in samples)
    wanted = len(samples) - count[CANCELLED]
    refusals = sum(sample.refusals for sample in samples)
    told = [sample for sample in samples if sample.outcome == ANSWERED and sample.backend]
    silent = count[ANSWERED] and not told

    def share(of: float, among: int) -> float | None:
        return of / among if among else None

    return {
        "failed": share(count[FAILED], wanted),
        "goodput": share(sum(good(sample, slo) for sample in samples), wanted),
        "fallback": share(sum(sample.backend == "bedrock" for sample in told), 0 if silent else count[ANSWERED]),
        "late": share(sum(sample.late > TOLERANCE for sample in samples), len(samples)),
        "unsent": share(count[UNSENT], len(samples)),
        "withoutRetryAfter": share(sum(sample.silent for sample in samples), refusals) if refusals else 0.0,
        "lost": sum(map(lost, samples)),
        "retriable": sum(map(retriable, samples)),
        "left": None if silent else sum(map(left, samples)),
    }


def summary(samples: Sequence[Sample], slo: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """All measures of some samples. `seconds` is how long the run took, for what is per second."""
    count = Counter(sample.outcome for sample in samples)
    taken = [sample for sample in samples if sample.outcome in (ANSWERED, CANCELLED)]
    tokens_in, tokens_out = (
        sum(getattr(sample, name) or 0 for sample in taken) for name in ("prompt_tokens", "completion_tokens")
    )
    return {
        "requests": len(samples),
        "outcomes": {outcome: count[outcome] for outcome in (ANSWERED, FAILED, CANCELLED, UNSENT)},
        **shares(samples, slo),
        "errors": dict(Counter(sample.error for sample in samples if sample.outcome == FAILED).most_common()),
        "backends": dict(Counter(sample.backend or "unknown" for sample in samples if sample.outcome == ANSWERED)),
        "refusals": sum(sample.refusals for sample in samples),
        "retried": sum(bool(sample.waits) for sample in samples),
        "retried_and_answered": sum(bool(sample.waits) and sample.outcome == ANSWERED for sample in samples),
        "retry_after_waited_seconds": sum(sum(sample.waits) for sample in samples),
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "cached_tokens": sum(sample.cached_tokens or 0 for sample in taken),
        "requests_per_second": count[ANSWERED] / seconds if seconds else 0.0,
        "good_requests_per_second": sum(good(sample, slo) for sample in samples) / seconds if seconds else 0.0,
        "prompt_tokens_per_second": tokens_in / seconds if seconds else 0.0,
        "completion_tokens_per_second": tokens_out / seconds if seconds else 0.0,
        **{measure: _times(series(samples, measure)) for measure in SERIES},
    }


def _times(values: Sequence[float]) -> dict[str, float | int] | None:
    """Count, mean and percentiles, in seconds; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return {"count": len(ordered), "mean": math.fsum(ordered) / len(ordered), **ranks, "max": ordered[-1]}


#: What samples are taken apart by, beside all of them together.
GROUPS: Mapping[str, Callable[[Sample], str]] = {
    "model": lambda sample: sample.model,
    "tenant": lambda sample: sample.tenant or "-",
    "request": lambda sample: sample.request,
    "backend": lambda sample: sample.backend or "-",
    "phase": lambda sample: sample.phase,
    "residency": lambda sample: sample.residency or "own",
}


def length(samples: Iterable[Sample]) -> float:
    """Seconds from the beginning to the last answer's end."""
    return max((s.sent + s.total for s in samples if s.sent is not None and s.total is not None), default=0.0)


def document(samples: Sequence[Sample], profile: Profile) -> dict[str, Any]:
    """All measures, of everything and by each group."""
    seconds = length(samples)
    made: dict[str, Any] = {"all": summary(samples, profile.slo, seconds)}
    for name, key in GROUPS.items():
        parts = defaultdict(list)
        for sample in samples:
            parts[key(sample)].append(sample)
        took = {phase.name: phase.seconds for phase in profile.curve} if name == "phase" else {}
        made[f"by_{name}"] = {
            part: summary(parts[part], profile.slo, took.get(part, seconds)) for part in sorted(parts)
        }
    return made


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of the run, from `start` on. Rates are a second; times in seconds, of what was sent in it."""

    start: float
    offered: float
    sent: float
    answered: float
    failed: float
    lost: float
    refused: float
    tokens: float
    under_way: int
    fallback: float | None
    ttft: Mapping[str, float] | None


def timeline(samples: Sequence[Sample], profile: Profile, width: float) -> list[Window]:
    """The run in windows of `width` seconds; ends count in the window where they are."""
    made = []
    sent = [sample for sample in samples if sample.sent is not None]
    ended = [(sample.sent + (sample.total or 0), sample) for sample in sent]
    for number in range(max(math.ceil(length(samples) / width), 1)):
        start, end = number * width, (number + 1) * width
        here = [sample for sample in sent if start <= sample.sent < end]
        done = [sample for at, sample in ended if start <= at < end]
        answered = [sample for sample in here if sample.outcome == ANSWERED]
        firsts = series(here, "ttft")
        made.append(
            Window(
                start=start,
                offered=(plan.expected(profile.curve, end) - plan.expected(profile.curve, start)) / width,
                sent=len(here) / width,
                answered=sum(sample.outcome == ANSWERED for sample in done) / width,
                failed=sum(sample.outcome == FAILED for sample in done) / width,
                lost=sum(map(lost, done)) / width,
                refused=sum(sample.refusals for sample in done) / width,
                tokens=sum(sample.completion_tokens or 0 for sample in done) / width,
                under_way=sum(sample.sent < end <= at for at, sample in ended),
                fallback=sum(s.backend == "bedrock" for s in answered) / len(answered) if answered else None,
                ttft={f"p{p}": percentile(firsts, p) for p in (50, 95, 99)} if firsts else None,
            )
        )
    return made
