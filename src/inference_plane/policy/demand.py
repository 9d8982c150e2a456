"""Demand: how many requests want an engine at once, for autoscalers; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Tuning
from .decide import NEVER, Signals, in_engines, ready_engines


@dataclass(frozen=True)
class Asked:
    """The most that an empty fleet was asked for lately, and when that was."""

    demand: float = 0.0
    at: float = -NEVER


def demand(signals: Signals, tuning: Tuning) -> float | None:
    """Running and waiting in engines, at the fallback now, and what was turned away times what it would have taken.

    Nothing is counted twice: a try that an engine refused and the fallback served is at the fallback, and a request
    that met a full or an empty fleet and had nowhere to go counts as turned away. A client that asks again and again
    counts each time, so that part is an upper bound. None where it is not known, which is not 0.
    """
    inside = in_engines(signals, tuning)
    if inside is None or signals.routers_age > tuning.staleSeconds:
        return None
    elsewhere = signals.elsewhere
    if ready_engines(signals, tuning) == 0:
        # Short answers of the fallback run between two looks; where all go there, nothing else tells of them.
        elsewhere = max(elsewhere, signals.left * (signals.fallback_seconds or tuning.typicalSeconds))
    seconds = signals.engine_seconds or tuning.typicalSeconds
    return inside + elsewhere + signals.turned_away * seconds


def remember(
    wanted: float | None, ready: int | None, before: Asked, tuning: Tuning, now: float
) -> tuple[float | None, Asked]:
    """The demand to tell an autoscaler, and what to hand to the next call.

    An autoscaler looks now and then, and whoever met an empty fleet goes away until it may come back: so the most that
    was asked of it stays the demand for rememberSeconds.
    """
    if ready != 0 or wanted is None:
        return wanted, Asked() if ready else before
    if wanted >= before.demand or now - before.at > tuning.rememberSeconds:
        before = Asked(wanted, now)
    return before.demand, before
