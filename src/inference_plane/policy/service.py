"""The running service: each tick it reads everything at once, decides and publishes, or copies what the leader decided.

One leader reads; the other replica copies its state, serves the same and goes on from there when it takes over. Without
anything to read or copy each of them decides from nothing, which holds a share for a while and then lowers it to 0.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from .book import Book
from .config import Config, ConfigError, Model, load
from .decide import Decision, Memory, Reason, Signals, decide
from .demand import Asked, demand, remember
from .events import Budget, event
from .fetch import ReadError, read
from .kubernetes import Kubernetes
from .lease import Elector
from .log import Log
from .metrics import exposition
from .readings import ROUTER_FILTER, GarbageError, parse_engine, parse_router
from .tls import CertificateError, Certificates

#: Of a tick's length, how long its reads are waited for; one that takes longer counts for a later tick.
_READS_SHARE = 0.5
#: Seconds without a tick after which the process is better restarted.
_STUCK_SECONDS = 60.0
#: Seconds that giving the Lease back may take at the end.
_RELEASE_SECONDS = 2.0


@dataclass(frozen=True)
class View:
    """What is known and decided of one model. `demand_at` is when `demand` was known."""

    decision: Decision
    memory: Memory
    signals: Signals
    demand: float | None = None
    demand_at: float = -math.inf
    asked: Asked = Asked()


#: What was decided of a model that is new.
_NOTHING = Decision(0, (), None, None, None)


class Service:
    """Answers the server and runs until it is cancelled. `clock` is monotonic; `certificates` is None without TLS."""

    def __init__(
        self,
        path: Path,
        config: Config,
        kubernetes: Kubernetes,
        identity: str,
        log: Log,
        certificates: Certificates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self.config, self._kubernetes, self._log, self._clock = path, config, kubernetes, log, clock
        self.certificates = certificates
        # The leader speaks TLS and this replica does not, or the other way round: a rollout that switches it.
        self._apart = False
        self.elector = Elector(kubernetes, config.namespace, config.lease, identity)
        self.book = Book(config)
        self.views: dict[str, View] = {}
        # When the views were decided, here or by the leader whose copy they are.
        self.decided_at = -math.inf
        self.failing: dict[str, tuple[str, float]] = {}
        self.errors: Counter[tuple[str, str]] = Counter()
        self.events: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()
        self.config_errors = 0
        self.tick_seconds = 0.0
        self._budget = Budget()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ticked_at = self._started_at = clock()
        self.led_since = -math.inf
        self._leading = False
        self._stepped_at = -math.inf
        self._file: bytes | None = None
        self._session: aiohttp.ClientSession | None = None

    # What the server asks.

    def shares(self) -> Mapping[str, int] | None:
        if not self.views:
            return None
        return {
            name: self.views[name].decision.share if name in self.views else 0
            for name, model in self.config.models.items()
            if model.fallback
        }

    def demand(self, model: str) -> float | None:
        """The last one known, for as long as a share is held without signals."""
        view = self.views.get(model)
        if view is None or self._clock() - view.demand_at > self.config.tuning.lostSeconds:
            return None
        return view.demand

    def models(self) -> Mapping[str, Model]:
        return self.config.models

    def state(self) -> Mapping[str, Any] | None:
        if not self.views:
            return None
        now = self._clock()
        return {
            "holder": self.elector.identity if self.elector.leading else self.elector.holder,
            "age": now - self.decided_at,
            "models": {name: self._exported(name, view, now) for name, view in self.views.items()},
        }

    def not_ready(self) -> str | None:
        """Ready without a state only where the rollout has to go on before there can be one."""
        return None if self.views or self._apart else "no state yet: neither decided nor copied from the leader"

    def not_live(self) -> str | None:
        silent = self._clock() - self._ticked_at
        return f"no tick for {silent:.0f} s" if silent > max(_STUCK_SECONDS, 3 * self.config.tickSeconds) else None

    def metrics(self) -> bytes:
        return exposition(self, self._clock())

    # The loop.

    async def run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self._session:
            try:
                while True:
                    began = self._clock()
                    await self.tick()
                    self.tick_seconds = self._clock() - began
                    await asyncio.sleep(max(0.0, self.config.tickSeconds - self.tick_seconds))
            finally:
                await self._end()

    async def _end(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self.elector.release()
        except (TimeoutError, ReadError) as error:
            self._log("lease-not-released", "warning", error=str(error))

    async def tick(self) -> None:
        """Never raises for what others do; never waits longer than a part of a tick for them."""
        self._reload()
        self._renew()
        now = self._ticked_at = self._clock()
        # A candidate looks twice as often as a leader renews, so that a Lease that was given back is soon taken.
        pause = self.config.lease.renewSeconds / (1 if self.elector.leading else 2)
        if now - self._stepped_at >= pause and self._start("lease", self._step):
            self._stepped_at = now
        if not self.elector.leading and not math.isfinite(self.led_since) and not self.views:
            await self._wait()  # At the start: whether it leads is soon known.
        self._note_lead()
        if self.elector.leading:
            await self._lead()
        else:
            await self._follow()

    def _note_lead(self) -> None:
        leading = self.elector.leading
        if leading and not self._leading:
            self.led_since = self._clock()
            self._log("leading", identity=self.elector.identity)
        elif self._leading and not leading:
            self._log("following", "warning", holder=self.elector.holder)
        self._leading = leading

    async def _lead(self) -> None:
        for namespace in sorted({model.namespace for model in self.config.models.values()}):
            self._start(f"endpoints of {namespace}", self._reader_of_endpoints(namespace))
            self._start(f"pods of {namespace}", self._reader_of_pods(namespace))
        routers = self.config.routers
        self._start(f"endpoints of {routers.namespace}/{routers.service}", self._read_routers)
        for model, address, port in self.book.engines():
            self._start(f"engine {address}:{port} of {model}", self._reader_of_engine(model, address, port))
        for address in self.book.routers():
            self._start(f"router {address}:{self.config.routers.port}", self._reader_of_router(address))
        await self._wait()
        now = self._clock()
        self.book.fade(now)
        ages = self.book.ages(now)
        unread = not all(math.isfinite(age) for age in ages.values())
        if unread and now - self.led_since < self.config.tuning.staleSeconds:
            return  # Before anything was read, routers keep what they have, and a copy stands.
        self._decide({name: self.book.signals(name, now) for name in self.config.models}, now)
        self.decided_at = now

    async def _follow(self) -> None:
        url = self.elector.leader_url
        apart = url is not None and url.startswith("https:") != (self.certificates is not None)
        if apart and not self._apart:
            self._log("leader-apart", "warning", leader=url, why="one of the two has TLS, so nothing is copied")
        self._apart = apart
        if url is not None and not apart:
            self._start("leader", lambda: self._copy(url))
            await self._wait()
        now = self._clock()
        if self.views and now - self.decided_at > self.config.tuning.staleSeconds:
            self._decide({name: Signals() for name in self.config.models}, now)

    def _decide(self, signals: Mapping[str, Signals], now: float) -> None:
        views = {}
        for name, model in self.config.models.items():
            before = self.views.get(name) or View(_NOTHING, Memory(known_at=now), Signals())
            decision, memory = decide(model, self.config.tuning, signals[name], before.memory, now)
            wanted = demand(signals[name], self.config.tuning)
            wanted, asked = remember(wanted, decision.ready, before.asked, self.config.tuning, now)
            known_at = now
            if wanted is None:
                wanted, known_at = before.demand, before.demand_at
            views[name] = View(decision, memory, signals[name], wanted, known_at, asked)
            if (before.decision.share, before.decision.reasons) != (decision.share, decision.reasons):
                self._tell(name, model, before.decision, views[name])
        self.views = views

    def _tell(self, name: str, model: Model, before: Decision, view: View) -> None:
        decision = view.decision
        self._log(
            "decision",
            model=name,
            share=decision.share,
            before=before.share,
            reasons=decision.reasons,
            ready=decision.ready,
            room=decision.room,
            wanted=None if decision.wanted is None else round(decision.wanted, 1),
            pending=view.signals.pending,
        )
        self.changes[name] += decision.share != before.share
        if self.elector.leading and (before.share == 0) != (decision.share == 0):
            if not self._budget.allows(name, before.share == 0, self._clock()):
                self.events["withheld"] += 1
                return
            body = event(name, model, before.share, decision, self.elector.identity)
            self._start(f"event of {name}", lambda: self._write_event(model.namespace, body))

    # Reads and writes; each is one task that no tick waits for longer than a part of itself.

    def _start(self, source: str, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """One of a source at a time. What it raises becomes a log line and a count."""
        if source in self._running:
            return False

        async def run() -> None:
            try:
                await work()
            except (ReadError, GarbageError) as error:
                self._failed(source, getattr(error, "kind", "garbage"), str(error))
            except Exception as error:  # noqa: BLE001: what another process answers must not end the loop
                self._failed(source, "garbage", repr(error))
            else:
                self._succeeded(source)
            finally:
                self._running.pop(source, None)

        self._running[source] = asyncio.create_task(run(), name=source)
        return True

    async def _wait(self) -> None:
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=_READS_SHARE * self.config.tickSeconds)

    def _failed(self, source: str, kind: str, message: str) -> None:
        self.errors[source.split(" ")[0], kind] += 1
        if source not in self.failing:
            self._log("source-failed", "warning", source=source, kind=kind, error=message)
            self.failing[source] = message, self._clock()

    def _succeeded(self, source: str) -> None:
        if failed := self.failing.pop(source, None):
            self._log("source-back", source=source, after_seconds=round(self._clock() - failed[1], 1))

    async def _step(self) -> None:
        await self.elector.step(self._clock())

    async def _read_routers(self) -> None:
        routers = self.config.routers
        found = await self._kubernetes.ready(routers.namespace, routers.service)
        self.book.put_routers(found.get((routers.namespace, routers.service), ()), self._clock())
        self._forget()

    def _reader_of_endpoints(self, namespace: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def work() -> None:
            self.book.put_endpoints(namespace, await self._kubernetes.ready(namespace), self._clock())
            self._forget()

        return work

    def _reader_of_pods(self, namespace: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def work() -> None:
            self.book.put_pods(namespace, await self._kubernetes.waiting_pods(namespace), self._clock())

        return work

    def _reader_of_engine(self, model: str, address: str, port: int) -> Callable[[], Coroutine[Any, Any, None]]:
        async def work() -> None:
            body = await self._get(f"http://{address}:{port}/metrics")
            self.book.put_engine(model, address, parse_engine(body), self._clock())

        return work

    def _reader_of_router(self, address: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def work() -> None:
            url = f"http://{address}:{self.config.routers.port}/metrics"
            body = await self._get(url, params={"filter": ROUTER_FILTER})
            self.book.put_router(address, parse_router(body), self._clock())

        return work

    async def _copy(self, url: str) -> None:
        tls = {}
        if self.certificates is not None:
            tls = {"ssl": self.certificates.client, "server_hostname": self.certificates.name}
        state = json.loads(await self._get(f"{url}/v1/state", **tls))
        now = self._clock()
        views = {}
        for name, value in state["models"].items():
            if name not in self.config.models:
                continue
            views[name] = _imported(value, now)
            self.book.restore_durations(name, value["durations"])
        if state["age"] <= now - self.decided_at:  # Never back to something older.
            self.views, self.decided_at = views, now - state["age"]

    async def _write_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        await self._kubernetes.create_event(namespace, body)
        self.events["written"] += 1

    async def _get(self, url: str, **options: Any) -> bytes:
        assert self._session is not None
        tuning = self.config.tuning
        answer = await read(self._session, url, seconds=tuning.readSeconds, size=tuning.readBytes, **options)
        return answer.body

    def _forget(self) -> None:
        """A pod that left is no source that fails."""
        port = self.config.routers.port
        there = {f"engine {address}:{p} of {model}" for model, address, p in self.book.engines()}
        there |= {f"router {address}:{port}" for address in self.book.routers()}
        for source in [s for s in self.failing if s.startswith(("engine ", "router ")) and s not in there]:
            del self.failing[source]

    # The configuration, the certificate and the state.

    def _reload(self) -> None:
        """A ConfigMap's mount swaps the file; a bad one leaves the last good one in force."""
        try:
            content = self._path.read_bytes()
        except OSError as error:
            content = str(error).encode()
        if self._file is None or content == self._file:
            self._file = content
            return
        self._file = content
        try:
            config = load(self._path)
        except ConfigError as error:
            self.config_errors += 1
            self._log("configuration-refused", "error", path=str(self._path), error=str(error))
            return
        if keys := config.needs_restart(self.config):
            self._log("restart-needed", "warning", keys=keys, why="these keys are read at the start alone")
        self.config = config
        self.book.configure(config)
        self._log("configuration-read", models=len(config.models))

    def _renew(self) -> None:
        """Takes a renewed certificate; a bad one leaves the last good one in force, and is told once."""
        if self.certificates is None:
            return
        try:
            renewed = self.certificates.refresh()
        except CertificateError as error:
            self._failed("certificate", "garbage", str(error))
            return
        self._succeeded("certificate")
        if renewed:
            self._log("certificate-read", ends=self.certificates.ends)

    def _exported(self, name: str, view: View, now: float) -> dict[str, Any]:
        return {
            "decision": dataclasses.asdict(view.decision),
            "memory": view.memory.to_json(now),
            "signals": {
                key: value if not isinstance(value, float) or math.isfinite(value) else None
                for key, value in dataclasses.asdict(view.signals).items()
            },
            "demand": view.demand,
            "demand_age": now - view.demand_at if math.isfinite(view.demand_at) else None,
            "asked": {"demand": view.asked.demand, "age": now - view.asked.at} if view.asked.demand else None,
            "durations": self.book.durations(name),
        }


def _imported(value: Mapping[str, Any], now: float) -> View:
    """Raises KeyError, TypeError or ValueError where it is not what `_exported` makes."""
    decision = value["decision"]
    known = {f.name for f in dataclasses.fields(Signals)}
    ages = {key: math.inf for key, entry in value["signals"].items() if entry is None and key.endswith("_age")}
    signals = {**value["signals"], **ages}
    age = value["demand_age"]
    return View(
        decision=Decision(
            share=int(decision["share"]),
            reasons=tuple(Reason(reason) for reason in decision["reasons"]),
            ready=decision["ready"],
            room=decision["room"],
            wanted=decision["wanted"],
        ),
        memory=Memory.from_json(value["memory"], now),
        signals=Signals(**{key: entry for key, entry in signals.items() if key in known}),
        demand=value["demand"],
        demand_at=-math.inf if age is None else now - age,
        # A replica of an older version tells none.
        asked=Asked(asked["demand"], now - asked["age"]) if (asked := value.get("asked")) else Asked(),
    )
