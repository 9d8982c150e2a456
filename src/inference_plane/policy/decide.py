"""The decision, pure: what is known of one model and what was decided before, in; the share for its fallback, out.

No input, no output, no clock: times are seconds of any monotonic clock, given by whoever calls.

The share is what the fleet cannot take. `wanted` requests would run at once, were the fleet large enough, and `room` is
what does run at once while others wait, so `1 - room / wanted` must go elsewhere. `wanted` counts those that are
elsewhere already, so the share does not chase itself, and of those that wait only what is beyond full, so a queue that
drained does not look like the end of a surge. What no arithmetic foresees (requests that may not leave and fill the fleet) adds steps while
the trouble stays. A share rises at once and falls slowly, after a time without need; a fleet that has engines keeps a
probe share, so that its recovery is seen.
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


#: A fleet that shows one of these again while it recovers is given more time.
_FAILURES = frozenset({Reason.NO_ENGINE, Reason.ERRORS, Reason.FIRST_TOKEN, Reason.REFUSED})


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
    # What runs in an engine in which requests wait, in the mean of such engines; None where none has any.
    saturated: float | None = None
    engines_age: float = NEVER
    # Milliseconds until 95 % of first tokens were there, over the window; None where there were too few.
    first_token_p95_ms: float | None = None
    # The routers' view: requests now in the fleet and at the fallback, and tries and requests over the window.
    in_fleet: float = 0.0
    elsewhere: float = 0.0
    tries: float = 0.0
    refused: float = 0.0
    errors: float = 0.0
    # Requests a second that ended refused: no engine took them, and they had nowhere else to go; and those that the
    # fallback answered.
    turned_away: float = 0.0
    left: float = 0.0
    routers_age: float = NEVER
    # Pods without a node, and seconds that the oldest has waited for one.
    pending: int = 0
    pending_seconds: float = 0.0
    # Seconds that a request takes in an engine, with and without the queue, and at the fallback, as far as known.
    engine_seconds: float | None = None
    serving_seconds: float | None = None
    fallback_seconds: float | None = None


@dataclass(frozen=True)
class Memory:
    """What one decision leaves to the next. Times are those of `decide`'s `now`."""

    share: int = 0
    # When the signals were last good enough, when the share was last needed as it is, raised, lowered, an error seen.
    known_at: float = -NEVER
    needed_at: float = -NEVER
    raised_at: float = -NEVER
    lowered_at: float = -NEVER
    error_at: float = -NEVER
    wanted: float | None = None
    wanted_at: float = -NEVER
    # What one engine runs at once while others wait, as far as it was ever seen.
    room_each: float | None = None
    # Hysteresis: these end later than they begin.
    loaded: bool = False
    late: bool = False
    sick: bool = False
    # How often a fleet failed again while it recovered: each doubles the time without need that lowering waits for.
    relapses: int = 0
    # Most engines that were ready at once since it had no share for forgetSeconds.
    most_ready: int = 0

    _TIMES = ("known_at", "needed_at", "raised_at", "lowered_at", "error_at", "wanted_at")

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


def decide(model: Model, tuning: Tuning, signals: Signals, memory: Memory, now: float) -> tuple[Decision, Memory]:
    """The share from `now` on, and what to hand to the next call."""
    ready, inside = ready_engines(signals, tuning), in_engines(signals, tuning)
    if ready is None or (ready and (inside is None or signals.routers_age > tuning.staleSeconds)):
        return _without_signals(tuning, memory, ready, now)
    memory = _learn(model, tuning, signals, memory, now)
    room = ready * (memory.room_each or model.requestsPerReplica)
    needed, reasons, memory = _needed(model, tuning, signals, memory, ready, inside or 0.0, room, now)
    share, memory = _move(tuning, memory, needed if model.fallback else 0, bool(_FAILURES & reasons), ready, now)
    if share > needed:
        reasons.add(Reason.RECOVERING)
    return Decision(share, tuple(reason for reason in Reason if reason in reasons), ready, room, memory.wanted), memory


def _without_signals(tuning: Tuning, memory: Memory, ready: int | None, now: float) -> tuple[Decision, Memory]:
    """A share is held for a while, then lowered to nothing: the rules of each request are still there."""
    share = memory.share
    if share and now - memory.known_at >= tuning.lostSeconds and now - memory.lowered_at >= tuning.lowerSeconds:
        share = max(0, share - tuning.lowerPoints)
        memory = dataclasses.replace(memory, share=share, lowered_at=now)
    return Decision(share, (Reason.SIGNALS_LOST,), ready, None, None), memory


def _learn(model: Model, tuning: Tuning, signals: Signals, memory: Memory, now: float) -> Memory:
    """What this moment says of demand and room, smoothed."""
    engines = signals.engines_age <= tuning.staleSeconds
    room = memory.room_each
    if engines and signals.saturated is not None:
        room = _smooth(room, min(max(1.0, signals.saturated), model.requestsPerReplica), memory, tuning, now)
    wanted = memory.wanted
    if signals.routers_age <= tuning.staleSeconds:
        # Without the engines' word, whatever is in the fleet and has room runs.
        fits = signals.ready * (room or model.requestsPerReplica)
        running = signals.running if engines else min(signals.in_fleet, fits)
        # The fallback may be quicker or slower than an engine: what is there counts for as long as it would run here.
        seconds = signals.serving_seconds or tuning.typicalSeconds
        ratio = seconds / signals.fallback_seconds if signals.serving_seconds and signals.fallback_seconds else 1.0
        here = running + signals.elsewhere * min(4.0, max(0.25, ratio)) + signals.turned_away * seconds
        wanted = _smooth(wanted, here, memory, tuning, now)
    return dataclasses.replace(memory, known_at=now, wanted=wanted, wanted_at=now, room_each=room)


def _smooth(before: float | None, value: float, memory: Memory, tuning: Tuning, now: float) -> float:
    if before is None or not tuning.smoothingSeconds:
        return value
    weight = math.exp(-max(0.0, now - memory.wanted_at) / tuning.smoothingSeconds)
    return before * weight + value * (1 - weight)


def _needed(
    model: Model, tuning: Tuning, signals: Signals, memory: Memory, ready: int, inside: float, room: float, now: float
) -> tuple[int, set[Reason], Memory]:
    """The share that is needed now, and why."""
    starved = bool(signals.pending) and signals.pending_seconds >= tuning.pendingSeconds
    if ready == 0:
        memory = dataclasses.replace(memory, loaded=False, late=False, sick=False)
        return 100, {Reason.NO_ENGINE} | ({Reason.PENDING} if starved else set()), memory
    reasons: set[Reason] = set()
    needed = 0.0

    # How many may be in the fleet, running and waiting, before it counts as full. Where the KV cache is full, fewer run
    # than an engine admits, so that its queue would be long before it is.
    allowed = (tuning.pendingUse if starved else tuning.fullUse) * ready * model.requestsPerReplica
    engines = signals.engines_age <= tuning.staleSeconds
    kv_bound = engines and signals.kv_cache >= tuning.kvCacheUse and signals.waiting > 0
    if kv_bound:
        allowed = min(allowed, (1 + tuning.kvCacheQueue) * signals.running)
    full = inside >= allowed
    budget, p95 = model.firstTokenBudgetMs, signals.first_token_p95_ms
    late = bool(engines and budget and p95 and p95 > budget * tuning.lateUse * (tuning.easyUse if memory.late else 1))
    refused = signals.tries > 0 and signals.refused / signals.tries >= tuning.refusedRatio

    # What does not fit.
    wanted = (memory.wanted or 0.0) + max(0.0, inside - allowed)
    loaded = full or late or refused or (memory.loaded and wanted >= tuning.easyUse * room)
    if loaded:
        needed = max(tuning.stepPoints, 100 * (1 - tuning.targetUse * room / wanted) if wanted else 0.0)
        if not (full or late or refused):
            needed = min(needed, memory.share)  # Nothing is in need of more while the fleet still takes what comes.
        reasons.add(Reason.KV_CACHE if kv_bound else Reason.QUEUE)
    if starved and loaded:
        reasons.add(Reason.PENDING)
    # What the arithmetic did not foresee: a step more, for as long as it stays.
    if late or refused:
        settled = now - memory.raised_at >= tuning.settleSeconds
        needed = max(needed, memory.share + tuning.stepPoints * settled)
        reasons |= {reason for reason, is_so in ((Reason.FIRST_TOKEN, late), (Reason.REFUSED, refused)) if is_so}

    # What is sent there in vain: a request has two tries in the fleet, so of it fails what fails twice.
    ratio = signals.errors / signals.tries if signals.tries else 0.0
    if signals.errors:
        memory = dataclasses.replace(memory, error_at=now)
    if not memory.sick:
        sick = signals.errors >= tuning.minErrors and ratio >= tuning.errorRatio
    elif signals.tries >= tuning.minProbes:
        sick = ratio >= tuning.errorRatio / 2
    else:
        # The probe share has brought too little to tell; if it brings nothing at all, recovery is tried some time.
        sick = now - memory.error_at < tuning.lostSeconds
    if sick:
        needed = max(needed, memory.share if signals.tries < tuning.minProbes else 100 * ratio**2)
        reasons.add(Reason.ERRORS)

    points = min(100 - tuning.probePoints, round(needed / tuning.stepPoints) * tuning.stepPoints)
    return points, reasons, dataclasses.replace(memory, loaded=loaded, late=late, sick=sick)


def _move(tuning: Tuning, memory: Memory, needed: int, failed: bool, ready: int, now: float) -> tuple[int, Memory]:
    """From the share that is to the one that is needed: up at once, down slowly."""
    share = memory.share
    calm = not share and now - memory.lowered_at > tuning.forgetSeconds
    if calm or ready > memory.most_ready:
        # What failed while it recovered was a smaller fleet. One whose engines come and go is never larger than it was.
        memory = dataclasses.replace(memory, relapses=0, most_ready=ready)
    relapses = memory.relapses
    if needed > share:
        if failed and not calm and memory.lowered_at > memory.raised_at:
            relapses = min(tuning.maxDoublings, relapses + 1)
        memory = dataclasses.replace(memory, share=needed, raised_at=now, needed_at=now, relapses=relapses)
        return needed, memory
    if needed == share:
        return share, dataclasses.replace(memory, needed_at=now)
    if now - memory.needed_at >= tuning.holdSeconds * 2**relapses and now - memory.lowered_at >= tuning.lowerSeconds:
        share = max(needed, share - tuning.lowerPoints)
        memory = dataclasses.replace(memory, share=share, lowered_at=now)
    return share, memory
