"""Demand: how many requests want an engine at once, for autoscalers; pure."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Tuning
from .decide import NEVER, Signals, in_engines


@dataclass(frozen=True)
class Asked:
    """The most that was asked for lately, and when that was."""

    demand: float = 0.0
    at: float = -NEVER


def demand(signals: Signals, tuning: Tuning) -> float | None:
    """Running and waiting in engines, at the fallback now, and what was turned away times what it would have taken.

    Nothing is counted twice: a try that an engine refused and the fallback served is at the fallback, and a request
    that met a full or an empty fleet and had nowhere to go counts as turned away. A client that asks again and again
    counts each time, so that part is an upper bound. Requests that came and went between two looks count as their rate
    times their time, up to 1. None where it is not known, which is not 0.
    """
    inside = in_engines(signals, tuning)
    if inside is None or signals.routers_age > tuning.staleSeconds:
        return None
    seconds = signals.engine_seconds or tuning.typicalSeconds
    elsewhere_seconds = signals.fallback_seconds or tuning.typicalSeconds
    now = inside + signals.elsewhere + signals.turned_away * seconds
    lately = signals.tries / tuning.windowSeconds * seconds + signals.left * elsewhere_seconds
    return max(now, min(1.0, lately))


def remember(
    wanted: float | None, ready: int | None, before: Asked, tuning: Tuning, now: float
) -> tuple[float | None, Asked]:
    """The demand to tell an autoscaler, and what to hand to the next call.

    An autoscaler looks now and then, and who was there in between may be the one who needs the last replica: so what
    was asked stays the demand for rememberSeconds, of an empty fleet as much as it was, because whoever met that went
    away until it may come back, and of another up to 1.
    """
    if wanted is None:
        return None, before
    most = NEVER if ready == 0 else 1.0
    if min(most, wanted) >= min(most, before.demand) or now - before.at > tuning.rememberSeconds:
        before = Asked(min(most, wanted), now)
    return max(wanted, min(most, before.demand)), before
