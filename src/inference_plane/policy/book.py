"""Readings in, signals out; pure. It remembers counters, so that rates survive restarts, and any number of routers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .config import Config, Model, Tuning
from .decide import NEVER, Signals
from .readings import ClusterReading, EngineReading, Fleet, RouterReading, WaitingPods, increase, quantile

#: Seconds over which the time that a request takes is averaged: it changes with the prompts, not with the minute.
_DURATION_MEMORY = 300.0

_Reading = TypeVar("_Reading")


@dataclass
class _Source(Generic[_Reading]):
    """A pod or a router: its last answer and when that was; `since` is when it was first known."""

    since: float
    at: float = -NEVER
    last: _Reading | None = None


@dataclass
class _Mean:
    """A mean whose past fades."""

    total: float = 0.0
    count: float = 0.0

    def add(self, total: float, count: float) -> None:
        self.total += total
        self.count += count

    def fade(self, seconds: float) -> None:
        keep = math.exp(-max(0.0, seconds) / _DURATION_MEMORY)
        self.total, self.count = self.total * keep, self.count * keep

    def value(self) -> float | None:
        """None where less than one observation is left of it."""
        return self.total / self.count if self.count >= 1 and self.total > 0 else None


@dataclass(frozen=True)
class _Entry:
    """What counters rose by between two readings of one source."""

    at: float
    tries: float = 0.0
    refused: float = 0.0
    errors: float = 0.0
    turned_away: float = 0.0
    left: float = 0.0
    first_tokens: Mapping[float, float] = field(default_factory=dict)


@dataclass
class _Page:
    """What is remembered of one model."""

    engines: dict[str, _Source[EngineReading]] = field(default_factory=dict)
    window: deque[_Entry] = field(default_factory=deque)
    engine_seconds: _Mean = field(default_factory=_Mean)
    serving_seconds: _Mean = field(default_factory=_Mean)
    fallback_seconds: _Mean = field(default_factory=_Mean)
    # Whether routers had an engine at the last look: 5xx of an empty fleet are no engine's errors.
    had_engines: bool = True


class Book:
    """All models of a configuration. Times are seconds of one monotonic clock."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._pages = {name: _Page() for name in config.models}
        self._routers: dict[str, _Source[RouterReading]] | None = None
        self._routers_at = -NEVER
        # By namespace: when it was read, and what was there. One that cannot be read harms its own models alone.
        self._ready: dict[str, tuple[float, Mapping[Fleet, Collection[str]]]] = {}
        self._pods: dict[str, tuple[float, Mapping[Fleet, WaitingPods]]] = {}
        self._faded_at = -NEVER

    def configure(self, config: Config) -> None:
        """Keeps what is known of models that stay."""
        self.config = config
        self._pages = {name: self._pages.get(name, _Page()) for name in config.models}
        namespaces = {model.namespace for model in config.models.values()}
        self._ready = {key: read for key, read in self._ready.items() if key in namespaces}
        self._pods = {key: read for key, read in self._pods.items() if key in namespaces}

    # What is to be read next.

    def engines(self) -> list[tuple[str, str, int]]:
        """(model, address, metrics port) of each engine that is ready."""
        return [
            (name, address, self.config.models[name].metricsPort)
            for name, page in self._pages.items()
            for address in page.engines
        ]

    def routers(self) -> list[str]:
        return list(self._routers or ())

    # What was read.

    def put_routers(self, addresses: Collection[str], now: float) -> None:
        """The addresses of routers that are ready."""
        self._routers, self._routers_at = _kept(self._routers or {}, addresses, now), now

    def put_endpoints(self, namespace: str, ready: Mapping[Fleet, Collection[str]], now: float) -> None:
        """The addresses of the engines of a namespace that are ready."""
        self._ready[namespace] = now, ready
        for name, page in self._pages.items():
            model = self.config.models[name]
            if model.namespace == namespace:
                page.engines = _kept(page.engines, self._addresses(model), now)

    def put_pods(self, namespace: str, pods: Mapping[Fleet, WaitingPods], now: float) -> None:
        self._pods[namespace] = now, pods

    def put_engine(self, model: str, address: str, reading: EngineReading, now: float) -> None:
        page = self._pages.get(model)
        source = page.engines.get(address) if page else None
        if page is None or source is None:
            return  # It left while it was asked.
        if (before := source.last) is not None:
            requests = increase(reading.requests, before.requests)
            seconds = increase(reading.seconds, before.seconds)
            page.engine_seconds.add(seconds, requests)
            queued = increase(reading.queue_seconds, before.queue_seconds)
            page.serving_seconds.add(max(0.0, seconds - queued), requests)
            tokens = {
                bound: increase(count, before.first_tokens.get(bound, 0.0))
                for bound, count in reading.first_tokens.items()
            }
            if any(tokens.values()):
                page.window.append(_Entry(now, first_tokens=tokens))
        source.at, source.last = now, reading

    def put_router(self, address: str, reading: RouterReading, now: float) -> None:
        source = (self._routers or {}).get(address)
        if source is None:
            return
        before, passed = source.last, now - source.at
        source.at, source.last = now, reading
        if before is None:
            return  # Its counters tell of a past that nobody watched.
        for name, page in self._pages.items():
            fleets = [f"fleet/{fleet}" for fleet in self.config.models[name].fleets]
            rises = [_rise(reading[f], before.get(f, ClusterReading())) for f in fleets if f in reading]
            has_engines = self._routers_ready(name, now) != 0
            entry = _Entry(
                now,
                tries=sum(sum(final.values()) + sum(retried.values()) for final, retried in rises),
                refused=sum(final.get("429", 0.0) + retried.get("429", 0.0) for final, retried in rises),
                errors=sum(_errors(final) + _errors(retried) for final, retried in rises)
                if has_engines and page.had_engines
                else 0.0,
                turned_away=sum(final.get("429", 0.0) + final.get("503", 0.0) for final, _ in rises),
            )
            page.had_engines = has_engines
            if entry.tries:
                page.window.append(entry)
            if (fallback := reading.get(f"bedrock/{name}")) is not None:
                old = before.get(f"bedrock/{name}", ClusterReading())
                left = increase(fallback.completed, old.completed)
                page.fallback_seconds.add(fallback.active * passed, left)
                if left:
                    page.window.append(_Entry(now, left=left))

    # What it means.

    def signals(self, name: str, now: float) -> Signals:
        model, page, tuning = self.config.models[name], self._pages[name], self.config.tuning
        while page.window and page.window[0].at <= now - tuning.windowSeconds:
            page.window.popleft()
        engines = [source.last for source in page.engines.values() if source.last]
        pods_at, waiting = self._pods.get(model.namespace, (-NEVER, {}))
        fresh = now - pods_at <= tuning.staleSeconds
        pods = [waiting[fleet] for name in model.fleets if fresh and (fleet := (model.namespace, name)) in waiting]
        answers, scale = self._answers(now)
        fallback = f"bedrock/{name}"
        fleets = [f"fleet/{fleet}" for fleet in model.fleets]
        return Signals(
            ready=len(self._addresses(model)),
            cluster_age=now - self._ready.get(model.namespace, (-NEVER, {}))[0],
            routers_ready=self._routers_ready(name, now),
            running=sum(engine.running for engine in engines),
            waiting=sum(engine.waiting for engine in engines),
            saturated=_mean([engine.running for engine in engines if engine.waiting]),
            kv_cache=sum(engine.kv_cache for engine in engines) / len(engines) if engines else 0.0,
            engines_age=self._engines_age(page, now),
            first_token_p95_ms=_first_token_p95(page, tuning) if model.firstTokenBudgetMs else None,
            in_fleet=scale * sum(answer[f].active for answer in answers for f in fleets if f in answer),
            elsewhere=scale * sum(answer[fallback].active for answer in answers if fallback in answer),
            tries=sum(entry.tries for entry in page.window),
            refused=sum(entry.refused for entry in page.window),
            errors=sum(entry.errors for entry in page.window),
            turned_away=sum(entry.turned_away for entry in page.window) / tuning.windowSeconds,
            left=sum(entry.left for entry in page.window) / tuning.windowSeconds,
            routers_age=self._routers_age(now),
            pending=sum(pod.count for pod in pods),
            pending_seconds=max((pod.oldest_seconds for pod in pods), default=0.0),
            engine_seconds=page.engine_seconds.value(),
            serving_seconds=page.serving_seconds.value(),
            fallback_seconds=page.fallback_seconds.value(),
        )

    def fade(self, now: float) -> None:
        """Once a tick: lets old durations count less."""
        for page in self._pages.values():
            for mean in (page.engine_seconds, page.serving_seconds, page.fallback_seconds):
                mean.fade(now - self._faded_at)
        self._faded_at = now

    def ages(self, now: float) -> dict[str, float]:
        """Seconds since each source answered, in full where it is several; inf where it never did."""
        namespaces = {model.namespace for model in self.config.models.values()}
        engines = [self._engines_age(page, now) for page in self._pages.values()]
        ready, pods = (
            [now - read.get(namespace, (-NEVER, {}))[0] for namespace in namespaces]
            for read in (self._ready, self._pods)
        )
        return {
            "endpoints": max([now - self._routers_at, *ready]),
            "pods": max(pods, default=0.0),
            "routers": self._routers_age(now),
            "engines": max(engines, default=0.0),
        }

    def durations(self, name: str) -> dict[str, list[float]]:
        """What a successor cannot measure anew at once."""
        page = self._pages[name]
        means = {"engine": page.engine_seconds, "serving": page.serving_seconds, "fallback": page.fallback_seconds}
        return {key: [mean.total, mean.count] for key, mean in means.items()}

    def restore_durations(self, name: str, value: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError where it is not what `durations` gave."""
        page = self._pages[name]
        engine, serving, fallback = (
            _Mean(*(float(number) for number in value[key])) for key in ("engine", "serving", "fallback")
        )
        page.engine_seconds, page.serving_seconds, page.fallback_seconds = engine, serving, fallback

    def _addresses(self, model: Model) -> list[str]:
        ready = self._ready.get(model.namespace, (-NEVER, {}))[1]
        return [address for fleet in model.fleets for address in ready.get((model.namespace, fleet), ())]

    def _engines_age(self, page: _Page, now: float) -> float:
        """Of the engine that has been silent longest; one that is new has had no time to answer."""
        return max((now - max(source.since, source.at) for source in page.engines.values()), default=0.0)

    def _routers_age(self, now: float) -> float:
        """Of the router that answered last: the others are taken to be like it. Without any router nothing flows."""
        if self._routers is None:
            return NEVER
        return min((now - source.at for source in self._routers.values()), default=now - self._routers_at)

    def _answers(self, now: float) -> tuple[list[RouterReading], float]:
        """What routers said last that have not gone stale, and how many routers each of them stands for."""
        sources = list((self._routers or {}).values())
        stale = self.config.tuning.staleSeconds
        answers = [source.last for source in sources if source.last is not None and now - source.at <= stale]
        return answers, len(sources) / len(answers) if answers else 0.0

    def _routers_ready(self, name: str, now: float) -> int | None:
        """Engines of the model as the routers' health checks see them; each fleet also has its no-capacity endpoint."""
        counts = [
            sum(max(0, int(answer[f].healthy) - 1) for f in fleets)
            for answer in self._answers(now)[0]
            if (fleets := [f for f in (f"fleet/{fleet}" for fleet in self.config.models[name].fleets) if f in answer])
        ]
        return max(counts, default=None)


def _kept(
    sources: Mapping[str, _Source[_Reading]], addresses: Collection[str], now: float
) -> dict[str, _Source[_Reading]]:
    return {address: sources.get(address) or _Source(now) for address in addresses}


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rise(now: ClusterReading, before: ClusterReading) -> tuple[dict[str, float], dict[str, float]]:
    """By code, of final answers and of tries that were followed by another. A router that restarted began at 0."""
    return (
        {code: increase(count, before.final.get(code, 0.0)) for code, count in now.final.items()},
        {code: increase(count, before.retried.get(code, 0.0)) for code, count in now.retried.items()},
    )


def _errors(codes: Mapping[str, float]) -> float:
    return sum(count for code, count in codes.items() if code.startswith("5"))


def _first_token_p95(page: _Page, tuning: Tuning) -> float | None:
    buckets: dict[float, float] = {}
    for entry in page.window:
        for bound, count in entry.first_tokens.items():
            buckets[bound] = buckets.get(bound, 0.0) + count
    if max(buckets.values(), default=0.0) < tuning.minFirstTokens:
        return None
    return 1000 * quantile(0.95, buckets)
