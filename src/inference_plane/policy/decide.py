"""The decision, pure: what is known of one model and what was decided before, in; the share for its fallback, out.

No input, no output, no clock: times are seconds of any monotonic clock, given by whoever calls.

The share is what the fleet cannot take. Of `wanted` requests at once a fleet of capacity `room` can take
`targetUse * room`, so `1 - targetUse * room / wanted` must go elsewhere; `wanted` counts those that are elsewhere
already, so the share does not chase itself. What no arithmetic foresees (late first tokens, requests that may not
leave and fill the fleet) adds steps while the trouble stays. A share rises at once and falls slowly, after a time
without need; a fleet that has engines keeps a probe share, so that its recovery is seen.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import Model, Tuning

NEVER = math.inf


class Reason(enum.StrEnum):
    """Why a share is what it is, in the order in which one is named first."""

    SIGNALS_LOST = "signals-lost"
    NO_ENGINE = "no-engine"
    ERRORS = "errors"
    KV_CACHE = "kv-cache"
    PENDING = "pending"
    QUEUE = "queue"
    FIRST_TOKEN = "first-token"
    REFUSED = "refused"
    RECOVERING = "recovering"


@dataclass(frozen=True)
class Signals:
    """What is known of one model. Each value is the last one known; the ages (seconds) say what it is worth now."""

    # EndpointSlices, and how old they are; engines as the routers see them, None where no router has its cluster yet.
    ready: int = 0
    cluster_age: float = NEVER
    routers_ready: int | None = None
    # Requests in the engines as they say themselves, and the age of the oldest of their answers.
    running: float = 0.0
    waiting: float = 0.0
    kv_cache: float = 0.0
    engines_age: float = NEVER
    # Milliseconds until 95 % of first tokens were there, over the window; None where there were too few.
    first_token_p95_ms: float | None = None
    # The routers' view: requests now in the fleet and at the fallback, and tries and requests over the window.
    in_fleet: float = 0.0
    elsewhere: float = 0.0
    tries: float = 0.0
    refused: float = 0.0
    errors: float = 0.0
    # Requests a second that ended refused: no engine took them, and they had nowhere else to go.
    turned_away: float = 0.0
    routers_age: float = NEVER
    # Pods without a node, and seconds that the oldest has waited for one.
    pending: int = 0
    pending_seconds: float = 0.0
    # Seconds that a request takes in an engine and at the fallback, as far as known.
    engine_seconds: float | None = None
    fallback_seconds: float | None = None


@dataclass(frozen=True)
class Memory:
    """What one decision leaves to the next. Times are those of `decide`'s `now`."""

    share: int = 0
    # When the signals were last good enough, when the share was last needed as it is, raised, lowered.
    known_at: float = -NEVER
    needed_at: float = -NEVER
    raised_at: float = -NEVER
    lowered_at: float = -NEVER
    wanted: float | None = None
    wanted_at: float = -NEVER
    # Hysteresis: these end later than they begin.
    loaded: bool = False
    late: bool = False
    sick: bool = False
    # How often a fleet failed again while it recovered: each doubles the time without need that lowering waits for.
    relapses: int = 0

    _TIMES = ("known_at", "needed_at", "raised_at", "lowered_at", "wanted_at")

    def to_json(self, now: float) -> dict[str, Any]:
        """Times as ages, because another machine's clock means nothing here; null for "never"."""
        value = dataclasses.asdict(self)
        for key in self._TIMES:
            value[key] = None if value[key] == -NEVER else now - value[key]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], now: float) -> Memory:
        """Unknown keys are left out, so that replicas of two versions understand each other. Raises TypeError."""
        known = {f.name for f in dataclasses.fields(cls)}
        fields = {key: entry for key, entry in value.items() if key in known}
        for key in cls._TIMES:
            if key in fields:
                fields[key] = -NEVER if fields[key] is None else now - fields[key]
        return cls(**fields)


@dataclass(frozen=True)
class Decision:
    """`share` in points of 100. `room` and `wanted` are None where they are not known."""

    share: int
    reasons: tuple[Reason, ...]
    ready: int | None
    room: float | None
    wanted: float | None


def ready_engines(signals: Signals, tuning: Tuning) -> int | None:
    """Engines that take requests: those that Kubernetes and the routers both call ready, or either where one is lost.

    A router knows a new pod some seconds later than Kubernetes does, and one that it cannot reach never.
    """
    cluster = signals.ready if signals.cluster_age <= tuning.staleSeconds else None
    routers = signals.routers_ready if signals.routers_age <= tuning.staleSeconds else None
    known = [count for count in (cluster, routers) if count is not None]
    return min(known) if known else None


def in_engines(signals: Signals, tuning: Tuning) -> float | None:
    """Requests in the fleet: the engines' own word, the routers' where an engine does not answer."""
    if signals.engines_age <= tuning.staleSeconds:
        return signals.running + signals.waiting
    return signals.in_fleet if signals.routers_age <= tuning.staleSeconds else None


def decide(
    model: Model, tuning: Tuning, signals: Signals, memory: Memory, now: float
) -> tuple[Decision, Memory]:
    """The share from `now` on, and what to hand to the next call."""
    ready, inside = ready_engines(signals, tuning), in_engines(signals, tuning)
    routers = signals.routers_age <= tuning.staleSeconds
    if ready == 0:
        # Nothing else needs to be known. Were it not for `routers`, demand would be; the share is not in doubt.
        wanted, room = (_wanted(signals, inside or 0.0, tuning) if routers else None), 0.0
    elif ready is None or inside is None or not routers:
        return _without_signals(tuning, memory, ready, now)
    else:
        wanted = _smooth(_wanted(signals, inside, tuning), memory, tuning, now)
        room = float(ready * model.requestsPerReplica)
    memory = dataclasses.replace(memory, known_at=now, wanted=wanted, wanted_at=now)
    needed, reasons, memory = _needed(model, tuning, signals, memory, ready, room, wanted, now)
    if not model.fallback:
        needed = 0
    share, memory = _move(tuning, memory, needed, bool({Reason.NO_ENGINE, Reason.ERRORS} & set(reasons)), now)
    if share > needed:
        reasons.append(Reason.RECOVERING)
    ordered = tuple(reason for reason in Reason if reason in reasons)
    return Decision(share, ordered, ready, room, wanted), memory


def _without_signals(tuning: Tuning, memory: Memory, ready: int | None, now: float) -> tuple[Decision, Memory]:
    """A share is held for a while, then lowered to nothing: the rules of each request are still there."""
    share = memory.share
    if share and now - memory.known_at >= tuning.lostSeconds and now - memory.lowered_at >= tuning.lowerSeconds:
        share = max(0, share - tuning.lowerPoints)
        memory = dataclasses.replace(memory, share=share, lowered_at=now)
    return Decision(share, (Reason.SIGNALS_LOST,), ready, None, None), memory


def _wanted(signals: Signals, inside: float, tuning: Tuning) -> float:
    """Requests that would be in the fleet at once, were it large enough.

    The fallback may be quicker or slower than an engine; what is there now is counted as the time it would take here.
    """
    seconds = signals.engine_seconds or tuning.typicalSeconds
    ratio = seconds / signals.fallback_seconds if signals.engine_seconds and signals.fallback_seconds else 1.0
    return inside + signals.elsewhere * min(4.0, max(0.25, ratio)) + signals.turned_away * seconds


def _smooth(wanted: float, memory: Memory, tuning: Tuning, now: float) -> float:
    if memory.wanted is None or not tuning.smoothingSeconds:
        return wanted
    weight = math.exp(-max(0.0, now - memory.wanted_at) / tuning.smoothingSeconds)
    return memory.wanted * weight + wanted * (1 - weight)


def _needed(
    model: Model,
    tuning: Tuning,
    signals: Signals,
    memory: Memory,
    ready: int,
    room: float,
    wanted: float | None,
    now: float,
) -> tuple[int, list[Reason], Memory]:
    """The share that is needed now, whatever it was before, and why."""
    starved = bool(signals.pending) and signals.pending_seconds >= tuning.pendingSeconds
    if ready == 0:
        memory = dataclasses.replace(memory, loaded=False, late=False, sick=False)
        return 100, [Reason.NO_ENGINE] + [Reason.PENDING] * starved, memory
    assert wanted is not None
    reasons: list[Reason] = []
    needed = 0.0

    # What does not fit. A KV cache that is full says that no more fits than runs.
    kv_bound = signals.kv_cache >= tuning.kvCacheUse and signals.waiting > 0 and signals.engines_age <= tuning.staleSeconds
    if kv_bound:
        room = min(room, max(float(ready), signals.running))
    full = tuning.pendingUse if starved else tuning.fullUse
    loaded = wanted >= (full * tuning.easyUse if memory.loaded else full) * room
    if loaded:
        target = tuning.targetUse * full / tuning.fullUse
        needed = max(tuning.stepPoints, 100 * (1 - target * room / wanted))
        reasons += [Reason.KV_CACHE if kv_bound else Reason.QUEUE] + [Reason.PENDING] * starved

    # What is sent there in vain.
    ratio = signals.errors / signals.tries if signals.tries else 0.0
    if memory.sick:
        # The probe share brings few tries; none at all prove nothing, so the hold time alone decides then.
        sick = signals.errors > 0 and ratio >= tuning.errorRatio / 2
    else:
        sick = signals.errors >= tuning.minErrors and ratio >= tuning.errorRatio
    if sick:
        needed = max(needed, 100 * min(1.0, 2 * ratio))
        reasons.append(Reason.ERRORS)

    # What no capacity explains: a step more as long as it stays.
    budget, p95 = model.firstTokenBudgetMs, signals.first_token_p95_ms
    fresh = signals.engines_age <= tuning.staleSeconds
    late = bool(budget and p95 and fresh and p95 > budget * (tuning.easyUse if memory.late else 1.0))
    refused = signals.tries > 0 and signals.refused / signals.tries >= tuning.refusedRatio
    if late or refused:
        settled = now - memory.raised_at >= tuning.settleSeconds
        needed = max(needed, memory.share + tuning.stepPoints * settled)
        reasons += [Reason.FIRST_TOKEN] * late + [Reason.REFUSED] * refused

    points = min(100 - tuning.probePoints, math.ceil(needed / tuning.stepPoints) * tuning.stepPoints)
    return points, reasons, dataclasses.replace(memory, loaded=loaded, late=late, sick=sick)


def _move(tuning: Tuning, memory: Memory, needed: int, failed: bool, now: float) -> tuple[int, Memory]:
    """From the share that is to the one that is needed: up at once, down slowly."""
    share = memory.share
    if needed > share:
        relapses = memory.relapses + (failed and memory.lowered_at > memory.raised_at and share > 0)
        if not share and now - memory.lowered_at > tuning.holdSeconds * tuning.forgetHolds:
            relapses = 0
        changed = dataclasses.replace(memory, share=needed, raised_at=now, needed_at=now, relapses=relapses)
        return needed, changed
    if needed == share:
        return share, dataclasses.replace(memory, needed_at=now)
    hold = tuning.holdSeconds * 2 ** min(memory.relapses, tuning.maxDoublings)
    if now - memory.needed_at >= hold and now - memory.lowered_at >= tuning.lowerSeconds:
        share = max(needed, share - tuning.lowerPoints)
        memory = dataclasses.replace(memory, share=share, lowered_at=now)
    return share, memory
