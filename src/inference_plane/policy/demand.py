"""Demand: how many requests want an engine at once, for autoscalers; pure."""

from __future__ import annotations

from .config import Tuning
from .decide import Signals, in_engines


def demand(signals: Signals, tuning: Tuning) -> float | None:
    """Running and waiting in engines, at the fallback now, and what was turned away times what it would have taken.

    Nothing is counted twice: a try that an engine refused and the fallback served is at the fallback, and a request
    that met a full or an empty fleet and had nowhere to go counts as turned away. A client that asks again and again
    counts each time, so that part is an upper bound. None where it is not known, which is not 0.
    """
    inside = in_engines(signals, tuning)
    if inside is None or signals.routers_age > tuning.staleSeconds:
        return None
    seconds = signals.engine_seconds or tuning.typicalSeconds
    return inside + signals.elsewhere + signals.turned_away * seconds
