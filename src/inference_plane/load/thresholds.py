"""Whether a run kept what its profile demands. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import measures, router
from .profiles import TIMES, Profile, Threshold
from .returns import WITHIN_SECONDS, Return
from .samples import Sample


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one threshold. `value` is in the measure's unit; None where nothing was measured, which fails."""

    threshold: str
    value: float | None
    kept: bool

    def __str__(self) -> str:
        found = "nothing was measured" if self.value is None else f"{self.value:.4g}"
        return f"{self.threshold}: {found}"


def judge(profile: Profile, samples: Sequence[Sample]) -> list[Verdict]:
    """One verdict for each threshold, in the profile's order."""
    return [_judge(each, [*_chosen(each, samples)], profile) for each in profile.thresholds]


def nothing_left(prompts: int) -> Verdict:
    """Of restricted prompts that were found outside by their content."""
    return Verdict("restricted prompts at Amazon Bedrock's stand-in at most 0", prompts, prompts == 0)


def as_the_router(compared: Mapping[str, Any]) -> Verdict:
    """Of requests that client and router tell otherwise of; a connection that broke before an answer has no id."""
    known = {what: count for what, count in compared["differences"].items() if what != router.NO_ID}
    return Verdict("requests of which the router's lines say something else at most 0", sum(known.values()), not known)


def returned(found: Sequence[Return]) -> Verdict | None:
    """Of the times in which a share fell back and engines came: the longest way back. None where there was none.

    One that the run cut off counts from the bound on: before, it might have been kept.
    """
    seconds = [
        each.at_least
        for each in found
        if each.at_least is not None and (each.ended is not None or each.at_least > WITHIN_SECONDS)
    ]
    if not seconds:
        return None
    what = f"seconds from the last engine to all at the fleet at most {WITHIN_SECONDS:g}"
    return Verdict(what, max(seconds), max(seconds) <= WITHIN_SECONDS)


def every_step(steps: Mapping[str, Any]) -> Verdict:
    """Of the way from no replica and back, of each model that sleeps: what nobody has seen."""
    ways = [way for model in steps["models"].values() for way in (model["wake"], model["back"])]
    missing = [step for way in ways for step in way if step["at"] is None]
    return Verdict("steps from zero and back that did not come at most 0", len(missing) if ways else None,
                   bool(ways) and not missing)


def named(threshold: Threshold) -> str:
    """As a line names it, such as `ttft p95 at most 2 s where model is a or b`."""
    unit = " s" if threshold.measure in TIMES else ""
    percentile = f" p{threshold.percentile:g}" if threshold.percentile is not None else ""
    bound = f"at most {threshold.at_most:g}" if threshold.at_most is not None else f"at least {threshold.at_least:g}"
    where = " and ".join(f"{key} is {' or '.join(names)}" for key, names in threshold.where.items())
    return f"{threshold.measure}{percentile} {bound}{unit}{f' where {where}' if where else ''}"


def _chosen(threshold: Threshold, samples: Iterable[Sample]) -> Iterable[Sample]:
    for sample in samples:
        if all(measures.GROUPS[key](sample) in names for key, names in threshold.where.items()):
            yield sample


def _judge(threshold: Threshold, samples: Sequence[Sample], profile: Profile) -> Verdict:
    value: float | None
    if threshold.measure in TIMES:
        values = measures.series(samples, threshold.measure)
        value = measures.percentile(values, threshold.percentile or 0) if values else None
    else:
        value = measures.shares(samples, profile.slo)[threshold.measure] if samples else None
    kept = value is not None and (
        value <= threshold.at_most if threshold.at_most is not None else value >= (threshold.at_least or 0)
    )
    return Verdict(named(threshold), value, kept)
