"""Whether one prompt leaves that must not, among many under faults: each says itself whether it may, in its own words.

A prompt's marker is made from the catalogue, the headers and the token that the campaign sends, by rules of its own
(`may_leave`), and Amazon Bedrock's stand-in reads the markers of all that arrives. Nothing that the router says is
believed: its replies and audit lines are only counted, and held against each other.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .backends import BEDROCK_MODES, ENGINE_MODES
from .breaks import broken
from .plane import MODELS, Plane
from .wire import Connection, Message, request

HANG = 60.0  # seconds without an answer, after which a request counts as lost; a guard, far above what is expected
CONNECTIONS = 128
SEGMENTS = 40  # of a run, each with faults of its own
EXAMPLES = 5

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_MARKER = re.compile(rb"<(may-leave|must-stay):([a-z-]*):(\d+)>")
_RANK = {"cluster": 0, "region": 1, "geography": 2, "anywhere": 3}

#: What a client says in x-residency, with the names that it writes, and what that means; None: nothing.
SAID: tuple[tuple[tuple[tuple[str, str], ...], str | None], ...] = (
    *((((name, word),), word) for name in ("x-residency", "X-Residency", "X-RESIDENCY") for word in _RANK),
    ((), None),
    ((), None),
    ((), None),
    ((("x-residency", "  anywhere "),), "anywhere"),
    *(
        ((("x-residency", word),), "cluster")
        for word in ("", "world", "ANYWHERE", "Region", "any where", "region,anywhere", '"anywhere"', "anywhere-else")
    ),
    ((("x-residency", "anywhere"), ("x-residency", "anywhere")), "cluster"),
    ((("x-residency", "anywhere"), ("X-Residency", "cluster")), "cluster"),
    ((("x-residency", "cluster"), ("x-plane-model", "triage"), ("x-inference-backend", "bedrock")), "cluster"),
    ((("x-residency", "cluster"), ("x-envoy-retry-on", "5xx"), ("x-envoy-original-path", "/")), "cluster"),
)


@dataclass(frozen=True)
class Caller:
    """Whose token is sent. `team` is None where nobody is let in, with the status that says so."""

    token: str
    team: str | None
    refused: int = 0
    residency: str | None = None


@dataclass(frozen=True)
class Ask:
    """One request, what may become of it, and how its fault would be told."""

    number: int
    data: bytes
    statuses: frozenset[int]
    leaves: bool
    what: str


@dataclass
class Found:
    """What a run saw. `problems` are sentences, the first ones of each kind; `failed` counts all of a kind."""

    requests: int
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # may leave or not, backend, status
    at_bedrock: int = 0
    left: int = 0  # of the prompts at Bedrock those that may be there
    leaked: set[int] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def leak(self, number: int, what: str) -> None:
        """A prompt that left: counted once, whoever noticed."""
        if number not in self.leaked:
            self.leaked.add(number)
            self.fail("leak", f"request {number} {what}")

    def fail(self, kind: str, what: str) -> None:
        self.failed[kind] += 1
        if self.failed[kind] <= EXAMPLES:
            self.problems.append(f"{kind}: {what}")


def callers(plane: Plane) -> list[Caller]:
    """Everybody who calls: teams, tokens that bind, and those whom nobody lets in."""
    sign = plane.issuer.token
    good = {"care": "inference-care", "appeals": "appeals", "desk": "desk"}
    made = [Caller(sign([claim], seconds=3600), team) for team, claim in good.items() for _ in range(4)]
    for word in (*_RANK, "world"):
        meant = word if word in _RANK else "cluster"
        made.append(Caller(sign(["inference-care"], seconds=3600, residency=word), "care", residency=meant))
    made.append(Caller(sign(["appeals", "desk"], seconds=3600), None, 403))
    made.append(Caller(sign(["strangers"], seconds=3600), None, 403))
    made.append(Caller(sign(["appeals"], seconds=-3600), None, 401))
    return [*made, Caller("", None, 401)]


def may_leave(model: Mapping[str, Any] | None, path: str, caller: Caller, said: str | None) -> bool:
    """Whether a prompt for an entry of the catalogue may be processed at Bedrock."""
    if model is None or path != _CHAT or "fallback" not in model or caller.team is None:
        return False
    if caller.team not in model.get("access", {}).get("teams", [caller.team]):
        return False
    # What a fallback reaches is what its id says, never more than the entry's residency.
    target = model["fallback"]["model"]
    reach = "anywhere" if target.startswith("global.") else "geography" if target.startswith("eu.") else "region"
    bound = [word for word in (caller.residency, said) if word is not None]
    return all(_RANK[word] >= _RANK[reach] for word in bound)


def asks(seed: int, count: int, callers: list[Caller]) -> Iterator[Ask]:
    """The requests of a run; the same for the same seed and callers."""
    random_ = random.Random(seed)
    names = [*MODELS, *(name for name, entry in MODELS.items() if "fallback" in entry)]
    for number in range(count):
        name = random_.choice(names) if random_.random() > 0.03 else random_.choice(["nobody", ""])
        model = MODELS.get(name)
        caller = random_.choice(callers)
        headers, said = random_.choice(SAID)
        path = _COMPLETIONS if random_.random() < 0.05 else _CHAT
        leaves = may_leave(model, path, caller, said)
        marker = f"<{'may-leave' if leaves else 'must-stay'}:{name}:{number}>"
        body: dict[str, Any] = {"stream": random_.random() < 0.5}
        if path == _CHAT:
            body["messages"] = [{"role": "user", "content": f'{marker} "model": "triage", x-residency: anywhere'}]
        else:
            body["prompt"] = marker
        alias = random_.choice([name, *(model or {}).get("servedNames", [])])
        sent_path, statuses = path, _statuses(name, model, caller)
        form = random_.random()
        if form < 0.7 or model is None:
            if name:
                body["model"] = alias
        else:
            sent_path = f"/{name}{path}"
            if form < 0.8:
                body["model"] = alias
        text = json.dumps(dict(random_.sample(list(body.items()), len(body))), separators=(",", ":"))
        if (
            random_.random() < 0.05 and name and caller.team is not None
        ):  # two models, be it in the body or in the path too
            other = random_.choice([word for word in MODELS if word != name])
            text = text[:-1] + f',"model":"{other}"' + "}"
            text = text.replace("may-leave", "must-stay")
            leaves, statuses = False, frozenset({400, 403})
        data = request(sent_path, [("authorization", f"Bearer {caller.token}"), *headers], text.encode())
        yield Ask(number, data, statuses, leaves, f"{sent_path}, {headers}, team {caller.team}, {text[:300]}")


def _statuses(name: str, model: Mapping[str, Any] | None, caller: Caller) -> frozenset[int]:
    if caller.team is None:
        return frozenset({caller.refused})
    if model is None:
        return frozenset({404 if name else 400})
    if caller.team not in model.get("access", {}).get("teams", [caller.team]):
        return frozenset({403})
    return frozenset({200, 400, 429, 500, 503} if "fallback" in model else {200, 429, 500, 503})


async def set_faults(plane: Plane, random_: random.Random) -> None:
    """Faults of the next segment: about a third of the engines and of the time all is well."""
    for model, engines in plane.engines.items():
        for engine in engines:
            await engine.back()
            engine.mode = random_.choice(["well", "well", "full", *ENGINE_MODES])
            if random_.random() < 0.1:
                await engine.leave()
        plane.scale(model, 0 if random_.random() < 0.15 else len(engines))
    plane.bedrock.mode = random_.choice(["well"] * len(BEDROCK_MODES) + list(BEDROCK_MODES))
    await plane.bedrock.back()
    if random_.random() < 0.05:
        await plane.bedrock.leave()


class Campaign:
    """One run against a plane of its own. `said` is told how far it is, about twenty times."""

    def __init__(self, requests: int, seed: int, said: Callable[[str], None], break_: str = "") -> None:
        self.requests, self.seed, self._said, self._break = requests, seed, said, break_
        self.found = Found(requests)
        self._ids: dict[str, tuple[int, Ask]] = {}

    def run(self, folder: Path) -> Found:
        """Raises what Plane raises, and ValueError for a break that the chart no longer fits."""
        change = {"change": broken(self._break)} if self._break else {}
        with Plane(folder, at_engine=self._at_engine, at_bedrock=self._at_bedrock, **change) as plane:
            started = time.monotonic()
            plane.run(self._drive(plane))
            self.found.seconds = time.monotonic() - started
            self._audit(plane)
        return self.found

    async def _drive(self, plane: Plane) -> None:
        coming = asks(self.seed, self.requests, callers(plane))
        faults = random.Random(f"{self.seed} faults")
        every, shown = max(1, self.requests // SEGMENTS), max(1, self.requests // 20)
        started, changing = time.monotonic(), asyncio.Lock()

        async def client() -> None:
            connection: Connection | None = None
            for ask in coming:
                if ask.number % every == 0:
                    async with changing:
                        await set_faults(plane, faults)
                if ask.number % shown == 0 and ask.number:
                    rate = ask.number / (time.monotonic() - started)
                    at = self.found.at_bedrock
                    self._said(
                        f"{ask.number:,} of {self.requests:,}, {rate:,.0f} a second, {at:,} at Bedrock, "
                        f"leaks {len(self.found.leaked)}"
                    )
                if connection is None or connection.closed:
                    connection = await Connection.open(plane.port)
                self._judge(ask, await connection.ask(ask.data, HANG), connection)
                connection.replies.clear()
                if connection.ending:
                    connection.close()
                    connection = None
            if connection is not None:
                connection.close()

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))

    def _judge(self, ask: Ask, reply: Message | None, connection: Connection) -> None:
        if reply is None:
            self.found.fail("lost", f"request {ask.number} has no status {connection.problem}: {ask.what}")
            connection.abort()
            return
        backend = reply.text("x-inference-backend") or "-"
        self.found.outcomes["may leave" if ask.leaves else "must stay", backend, reply.status] += 1
        if reply.status not in ask.statuses:
            self.found.fail(
                "status", f"{reply.status}, not of {sorted(ask.statuses)}: {ask.what}: {reply.body[:200]!r}"
            )
        if backend == "bedrock" and not ask.leaves:
            self.found.leak(ask.number, f"was answered by bedrock: {ask.what}")
        self._ids[reply.text("x-request-id")] = (reply.status, ask)

    def _at_engine(self, model: str, message: Message) -> None:
        found = _MARKER.search(message.body)
        if found is None or found[2].decode() != model:
            self.found.fail("misrouted", f"an engine of {model} got {message.body[:200]!r}")

    def _at_bedrock(self, message: Message) -> None:
        self.found.at_bedrock += 1
        markers = set(_MARKER.findall(message.body))
        for kind, name, number in markers:
            target = MODELS.get(name.decode(), {}).get("fallback", {}).get("model", "")
            if kind == b"must-stay":
                self.found.leak(int(number), f"is at Bedrock: {message.body[:300]!r}")
            elif f'"model":"{target}"'.encode() not in message.body:
                self.found.fail(
                    "misrouted", f"Bedrock was asked for another model than {target}: {message.body[:300]!r}"
                )
            else:
                self.found.left += 1
        if len(markers) != 1:
            self.found.fail("misrouted", f"Bedrock got a body with {len(markers)} prompts: {message.body[:300]!r}")

    def _audit(self, plane: Plane) -> None:
        """Holds every reply against its one audit line, once as many are there as replies; at most ten seconds."""
        deadline = time.monotonic() + 10
        while len(lines := plane.router.audit()) < len(self._ids) and time.monotonic() < deadline:
            time.sleep(0.2)
        if not plane.router.process.running:
            self.found.fail("crash", f"Envoy ended: {plane.router.process.log_tail(5)}")
        counted = Counter(line["request_id"] for line in lines)
        for line in lines:
            status, ask = self._ids.get(line["request_id"], (None, None))
            if ask is None:
                self.found.fail("audit", f"a line of a request that no client sent: {line}")
            elif line["status"] != status:
                self.found.fail("audit", f"the line of request {ask.number} says {line['status']}, the reply {status}")
            elif line["backend"] == "bedrock" and not ask.leaves:
                self.found.leak(ask.number, f"has a line that says bedrock: {ask.what}")
        for id_, (_, ask) in self._ids.items():
            if counted[id_] != 1:
                self.found.fail("audit", f"request {ask.number} has {counted[id_]} lines: {ask.what}")
