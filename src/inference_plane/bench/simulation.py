"""A discrete model of one model's fleet, its routers and its autoscaler, to hold hours of the policy in seconds.

Simulated: arrivals, engines with slots and a bounded queue, the routers' tries (an engine, another one, the fallback)
and their counters, first-token budgets, pods that need a node and then time to load, an autoscaler that follows the
demand, or KEDA with a ScaledObject as the charts render it. Real: the book, the decision and the demand, fed with
readings as the readers would make them. A share acts one tick after it was decided.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inference_plane.policy.book import Book
from inference_plane.policy.config import Config, Model, Routers, Tuning
from inference_plane.policy.decide import Decision, Memory, decide
from inference_plane.policy.demand import Asked, demand, remember
from inference_plane.policy.readings import ClusterReading, EngineReading, WaitingPods

NAME, NAMESPACE = "summary", "inference"
FLEET, BEDROCK = f"fleet/{NAME}", f"bedrock/{NAME}"
#: The routers' outlier detection: this many errors in a row, at most half of the fleet, this long.
EJECTED_AFTER, EJECTED_SECONDS = 5, 30.0
BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, math.inf)


@dataclass
class Request:
    at: float
    seconds: float
    movable: bool
    engine: Pod | None = None
    router: int = 0
    started: float | None = None


@dataclass
class Pod:
    name: str
    made: float
    node_at: float
    ready_at: float
    down: bool = False
    error_ratio: float = 0.0
    errors_in_a_row: int = 0
    ejected_until: float = 0.0
    running: int = 0
    queue: deque[Request] = field(default_factory=deque)
    seconds: float = 0.0
    queue_seconds: float = 0.0
    requests: float = 0.0
    first_tokens: Counter[float] = field(default_factory=Counter)

    def ready(self, now: float) -> bool:
        return now >= self.ready_at and not self.down


@dataclass
class Router:
    active: Counter[str] = field(default_factory=Counter)
    final: Counter[tuple[str, str]] = field(default_factory=Counter)
    retried: Counter[tuple[str, str]] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)


@dataclass
class Result:
    """What came of it. `shares` is one share a tick."""

    shares: list[int] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    demands: list[float | None] = field(default_factory=list)
    movable: int = 0
    bedrock: int = 0
    turned_away: int = 0
    vain_tries: int = 0
    late: int = 0
    queued: list[float] = field(default_factory=list)
    # Replicas of the fleet, one number a tick; requests that ran in a replica that had to leave.
    replicas: list[int] = field(default_factory=list)
    drained: int = 0

    @property
    def steps(self) -> list[int]:
        """The replicas without repetitions."""
        return [b for a, b in zip([None, *self.replicas], self.replicas, strict=False) if a != b]

    def waits(self, share: float) -> float:
        """Seconds within which `share` of the fleet's requests began to run."""
        return sorted(self.queued)[int(share * (len(self.queued) - 1))]

    @property
    def fraction(self) -> float:
        """Of the requests that may leave, those that did."""
        return self.bedrock / self.movable

    @property
    def changes(self) -> int:
        return sum(a != b for a, b in zip(self.shares, self.shares[1:], strict=False))

    @property
    def switches(self) -> int:
        """How often the share left 0."""
        return sum(a == 0 and b > 0 for a, b in zip([0, *self.shares], self.shares, strict=False))

    def first(self, test: Callable[[int], bool], start: int = 0) -> int | None:
        """The first tick from `start` on whose share passes."""
        return next((t for t in range(start, len(self.shares)) if test(self.shares[t])), None)


class Keda:
    """What KEDA 2.20.2 and the HPA that it makes do of a ScaledObject with a formula, whose fallback is the formula's.

    By pkg/scaling of KEDA: a trigger that failed more often in a row than failureThreshold is nil in the formula; one
    that failed less often is an error, and then nothing is scaled. Above 0 the target is active. The last replicas go
    together once it has not been for cooldownPeriod.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.period = spec["pollingInterval"]
        self._min, self._max = spec["minReplicaCount"], spec["maxReplicaCount"]
        # A model that keeps a replica has no cooldown, and without a demand no value that may be missing.
        self._cooldown = spec.get("cooldownPeriod", 0)
        self._tolerated = spec.get("fallback", {}).get("failureThreshold", 0)
        modifiers = spec["advanced"]["scalingModifiers"]
        # A trigger's name, `??` and a number, in Python.
        formula = re.sub(r"(\w+) \?\? (\d+)", r"(\2 if \1 is None else \1)", modifiers["formula"])
        self._formula = re.sub(r"^(\w+) == nil \? (.+) : (.+)$", r"\2 if \1 is None else \3", formula)
        self._target = float(modifiers["target"])
        self._behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self._failures: Counter[str] = Counter()
        self._active_at: float | None = None
        self._wanted: deque[tuple[float, int]] = deque()
        self._moved_at = {"scaleUp": -math.inf, "scaleDown": -math.inf}

    def look(self, now: float, values: Mapping[str, float | None], replicas: int) -> int:
        """The replicas from now on; None of a value is a trigger that failed."""
        for name, value in values.items():
            self._failures[name] = self._failures[name] + 1 if value is None else 0
        if any(0 < self._failures[name] <= self._tolerated for name in values):
            return replicas
        value = float(eval(self._formula, {"max": max}, dict(values)))  # noqa: S307: the chart's own formula
        if value > 0:
            self._active_at = now
            return self._horizontal(now, value, replicas) if replicas else 1
        if replicas and self._min == 0 and (self._active_at is None or now - self._active_at > self._cooldown):
            return 0
        return self._horizontal(now, value, replicas) if replicas else 0

    def _horizontal(self, now: float, value: float, replicas: int) -> int:
        desired = min(self._max, max(1, self._min, math.ceil(value / self._target)))
        self._wanted.append((now, desired))
        while self._wanted[0][0] < now - 3600:
            self._wanted.popleft()
        direction = "scaleUp" if desired > replicas else "scaleDown"
        pace = self._behavior[direction]
        lately = [n for at, n in self._wanted if at >= now - pace["stabilizationWindowSeconds"]]
        desired = min(lately) if direction == "scaleUp" else max(lately)
        (policy,) = pace["policies"]
        if now - self._moved_at[direction] < policy["periodSeconds"]:
            return replicas
        step = max(-policy["value"], min(policy["value"], desired - replicas))
        if (step > 0) == (direction == "scaleUp") and step:
            self._moved_at[direction] = now
            return replicas + step
        return replicas


class World:
    """`rate(t)` is requests a second. `policy=False` keeps the share at 0: the rules of each request alone.

    `slots` run at once in an engine, `admits` are in it with those that wait; `kv_places` requests fill its KV cache.
    `keda` is the spec of a ScaledObject that scales it.
    """

    def __init__(
        self,
        rate: Callable[[float], float],
        *,
        policy: bool = True,
        seed: int = 1,
        replicas: int = 4,
        max_replicas: int | None = None,
        min_replicas: int | None = None,
        slots: int = 32,
        admits: int = 48,
        seconds: float = 15.0,
        bedrock_seconds: float | None = None,
        movable: float = 1.0,
        budget: float | None = None,
        kv_places: int = 1000,
        routers: int = 2,
        node_seconds: float = 120.0,
        load_seconds: float = 120.0,
        shortage: tuple[float, float] = (0.0, 0.0),
        tuning: Tuning | None = None,
        keda: Mapping[str, Any] | None = None,
    ) -> None:
        self.rate, self.policy, self.slots, self.admits = rate, policy, slots, admits
        self.seconds, self.bedrock_seconds = seconds, bedrock_seconds or seconds
        self.movable, self.budget, self.kv_places = movable, budget, kv_places
        self.node_seconds, self.load_seconds, self.shortage = node_seconds, load_seconds, shortage
        self.min_replicas = replicas if min_replicas is None else min_replicas
        self.max_replicas = max_replicas or replicas
        model = Model(
            namespace=NAMESPACE,
            fleets=(NAME,),
            fallback=True,
            requestsPerReplica=admits,
            minReplicas=self.min_replicas,
            maxReplicas=self.max_replicas,
            firstTokenBudgetMs=None if budget is None else 1000 * budget,
        )
        self.config = Config(NAMESPACE, Routers(NAMESPACE), {NAME: model}, tuning=tuning or Tuning())
        self.book, self.memory = Book(self.config), Memory()
        self.arrivals, self.luck = random.Random(seed), random.Random(seed + 1)
        self.now, self._count, self._pods = 0.0, 0, 0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.pods = [self._pod(-1e9) for _ in range(replicas)]
        self.routers = {f"10.1.0.{i}": Router() for i in range(routers)}
        self.result = Result()
        self.share, self.desired_since, self._looks_at = 0, 0.0, 0.0
        self.keda = Keda(keda) if keda else None
        self.asked = Asked()
        # What a test switches: sources that give no answer now; `policy` and `queues` are what KEDA asks.
        self.lost: set[str] = set()
        self.script: dict[int, Callable[[World], None]] = {}

    # The world.

    def _pod(self, made: float) -> Pod:
        self._pods += 1
        start, end = self.shortage
        node = made + self.node_seconds
        if start <= made < end or start <= node < end:
            node = end + self.node_seconds
        return Pod(f"10.2.0.{self._pods}", made, node, node + self.load_seconds)

    def _later(self, at: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self.events, (at, self._count, what))

    def _until(self, at: float) -> None:
        while self.events and self.events[0][0] <= at:
            self.now, _, what = heapq.heappop(self.events)
            what()
        self.now = at

    def _arrive(self, request: Request) -> None:
        router = self.luck.choice(list(self.routers.values()))
        self.result.movable += request.movable
        if request.movable and self.luck.randrange(100) < self.share:
            return self._to_bedrock(router, request)
        self._try(router, request, tried=None, attempt=1)

    def _try(self, router: Router, request: Request, tried: Pod | None, attempt: int) -> None:
        ready = [pod for pod in self.pods if pod.ready(self.now) and self.now >= pod.ejected_until]
        others = [pod for pod in ready if pod is not tried] or ready
        if not others:
            return self._refused(router, request, None, "503", attempt)
        pod = min(others, key=lambda p: (p.running + len(p.queue), self.luck.random()))
        if self.luck.random() < pod.error_ratio:
            pod.errors_in_a_row += 1
            out = sum(self.now < other.ejected_until for other in self.pods) + 1
            if pod.errors_in_a_row >= EJECTED_AFTER and 2 * out <= len(self.pods):
                pod.errors_in_a_row, pod.ejected_until = 0, self.now + EJECTED_SECONDS
            return self._refused(router, request, pod, "500", attempt)
        pod.errors_in_a_row = 0
        if pod.running + len(pod.queue) >= self.admits:
            return self._refused(router, request, pod, "429", attempt)
        request.engine = pod
        router.active[FLEET] += 1
        if pod.running < self.slots:
            self._run(router, request, pod)
        else:
            pod.queue.append(request)
            if self.budget is not None and request.movable:
                self._later(self.now + self.budget, lambda: self._late(router, request, pod, attempt))

    def _refused(self, router: Router, request: Request, pod: Pod | None, code: str, attempt: int) -> None:
        self.result.vain_tries += 1
        if attempt == 1:
            router.retried[FLEET, code] += 1
            self._try(router, request, pod, 2)
        elif request.movable:
            router.retried[FLEET, code] += 1
            self._to_bedrock(router, request)
        else:
            router.final[FLEET, code] += 1
            router.completed[FLEET] += 1
            self.result.turned_away += 1

    def _late(self, router: Router, request: Request, pod: Pod, attempt: int) -> None:
        """The budget is over and no token came: the engine says 429, and so does the next one, at once."""
        if request.started is None and request in pod.queue:
            pod.queue.remove(request)
            router.active[FLEET] -= 1
            router.retried[FLEET, "429"] += 2
            self.result.vain_tries += 2
            self.result.late += 1
            self._to_bedrock(router, request)

    def _run(self, router: Router, request: Request, pod: Pod) -> None:
        pod.running += 1
        request.started = self.now
        self.result.queued.append(self.now - request.at)
        waited = self.now - request.at + 0.3
        pod.first_tokens[next(bound for bound in BOUNDS if waited <= bound)] += 1
        self._later(self.now + request.seconds, lambda: self._done(router, request, pod))

    def _done(self, router: Router, request: Request, pod: Pod) -> None:
        pod.running -= 1
        pod.seconds += self.now - request.at
        pod.queue_seconds += (request.started or self.now) - request.at
        pod.requests += 1
        router.active[FLEET] -= 1
        router.final[FLEET, "200"] += 1
        router.completed[FLEET] += 1
        while pod.queue and pod.running < self.slots:
            self._run(router, pod.queue.popleft(), pod)

    def _to_bedrock(self, router: Router, request: Request) -> None:
        self.result.bedrock += 1
        router.active[BEDROCK] += 1

        def done() -> None:
            router.active[BEDROCK] -= 1
            router.final[BEDROCK, "200"] += 1
            router.completed[BEDROCK] += 1

        self._later(self.now + request.seconds * self.bedrock_seconds / self.seconds, done)

    def _scale(self, wanted: float | None) -> None:
        """Up at once to what the demand asks for, down after five minutes of asking for less."""
        if wanted is None or self.min_replicas == self.max_replicas:
            return
        desired = min(self.max_replicas, max(self.min_replicas, math.ceil(wanted / (0.8 * self.admits))))
        if desired >= len(self.pods):
            self.desired_since = self.now
        for _ in range(desired - len(self.pods)):
            self.pods.append(self._pod(self.now))
        if desired < len(self.pods) and self.now - self.desired_since > 300:
            idle = [pod for pod in self.pods if not pod.running and not pod.queue]
            for pod in idle[: len(self.pods) - desired]:
                self.pods.remove(pod)

    def _look(self, wanted: float | None) -> None:
        """KEDA's turn. A replica that has to leave finishes what it has."""
        assert self.keda is not None
        ready = [pod for pod in self.pods if pod.ready(self.now)] if "queues" not in self.lost else []
        values = {
            "demand": None if "policy" in self.lost else wanted,
            "running": float(sum(pod.running for pod in ready)) if ready else None,
            "waiting": float(sum(len(pod.queue) for pod in ready)) if ready else None,
        }
        desired = self.keda.look(self.now, values, len(self.pods))
        self.pods += [self._pod(self.now) for _ in range(desired - len(self.pods))]
        # Kubernetes ends those first that are not ready, and knows nothing of requests.
        leaving = sorted(self.pods, key=lambda pod: (pod.ready(self.now), -pod.made))[: len(self.pods) - desired]
        self.result.drained += sum(pod.running + len(pod.queue) for pod in leaving)
        self.pods = [pod for pod in self.pods if pod not in leaving]

    def kill(self, pod: Pod) -> None:
        """Its requests are lost; a new one has to start."""
        self.pods.remove(pod)
        for router in self.routers.values():
            router.active[FLEET] = max(0, router.active[FLEET] - (pod.running + len(pod.queue)) // len(self.routers))
        pod.down = True

    # The policy's side.

    def _read(self) -> None:
        now, book = self.now, self.book
        if "cluster" not in self.lost:
            ready = [pod.name for pod in self.pods if pod.ready(now)]
            book.put_endpoints(NAMESPACE, {(NAMESPACE, NAME): ready}, now)
            book.put_routers(list(self.routers), now)
            waiting = [pod for pod in self.pods if now < pod.node_at]
            oldest = max((now - pod.made for pod in waiting), default=0.0)
            book.put_pods(NAMESPACE, {(NAMESPACE, NAME): WaitingPods(len(waiting), oldest)}, now)
        if "engines" not in self.lost:
            for pod in self.pods:
                if pod.ready(now) and pod.name not in self.lost:
                    book.put_engine(NAME, pod.name, _engine_reading(pod, self.kv_places), now)
        if "routers" not in self.lost:
            healthy = 1 + sum(pod.ready(now) and now >= pod.ejected_until for pod in self.pods)
            for address, router in self.routers.items():
                if address not in self.lost:
                    book.put_router(address, _router_reading(router, healthy), now)

    def run(self, seconds: int) -> Result:
        for tick in range(seconds):
            if step := self.script.get(tick):
                step(self)
            begin = float(tick)
            rate = self.rate(begin)
            times = sorted(begin + self.arrivals.random() for _ in range(_poisson(self.arrivals, rate)))
            for at in times:
                # Both random numbers are drawn whatever happens, so that runs with and without policy see the same.
                length = self.seconds * self.arrivals.lognormvariate(-0.18, 0.6)
                movable = self.arrivals.random() < self.movable
                self._until(at)
                self._arrive(Request(at, length, movable))
            self._until(begin + 1)
            self._read()
            self.book.fade(self.now)
            signals = self.book.signals(NAME, self.now)
            model = self.config.models[NAME]
            decision, self.memory = decide(model, self.config.tuning, signals, self.memory, self.now)
            wanted = demand(signals, self.config.tuning)
            wanted, self.asked = remember(wanted, decision.ready, self.asked, self.config.tuning, self.now)
            if self.keda is not None:
                # It looks a moment later each time: what it does takes time as well.
                if self.now >= self._looks_at:
                    self._look(wanted)
                    self._looks_at = self.now + self.keda.period + self.luck.random()
            elif tick % 15 == 0:
                self._scale(wanted)
            self.result.replicas.append(len(self.pods))
            self.share = decision.share if self.policy else 0
            self.result.shares.append(decision.share)
            self.result.decisions.append(decision)
            self.result.demands.append(wanted)
        return self.result


def _engine_reading(pod: Pod, kv_places: int) -> EngineReading:
    sums, total = {}, 0.0
    for bound in BOUNDS:
        total += pod.first_tokens[bound]
        sums[bound] = total
    cache = pod.running / kv_places
    return EngineReading(pod.running, len(pod.queue), cache, pod.seconds, pod.queue_seconds, pod.requests, sums)


def _router_reading(router: Router, healthy: int) -> dict[str, ClusterReading]:
    return {
        name: ClusterReading(
            healthy=healthy if name == FLEET else 1,
            active=router.active[name],
            completed=router.completed[name],
            final={code: count for (cluster, code), count in router.final.items() if cluster == name},
            retried={code: count for (cluster, code), count in router.retried.items() if cluster == name},
        )
        for name in (FLEET, BEDROCK)
    }


def _poisson(random_: random.Random, mean: float) -> int:
    """Knuth's; means here are small."""
    limit, count, product = math.exp(-mean), 0, random_.random()
    while product > limit:
        count += 1
        product *= random_.random()
    return count
