"""Whether every token is accounted for: a mixed run with aborts, and the same tokens read from four places.

And whether each team is charged its own tokens and nobody else's: what the rate-limit service counted of its budget,
beside what engines and Amazon Bedrock were asked in its name. Whose a request is says its prompt, not the router.

Real: Envoy on the rendered files, the engines' middleware, the rate-limit service, tokens of callers, sockets. Stands in: vLLM, by replayed
engines that count as it does (`onehost.surface`), and Amazon Bedrock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import re
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from inference_plane import helm, usage
from inference_plane.campaign.breaks import changed
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.replay import ReplayEngine

CLIENTS = 24
SETTLED = 30.0  # seconds until the last line must be there
CHAT, VECTORS = "/v1/chat/completions", "/v1/embeddings"
TARGET = "openai.gpt-oss-120b-1:0"
BUDGET_MS = 150
TEAMS = {"care": {"costCenter": "4710"}, "appeals": {"costCenter": "4711"}}
#: Tokens a minute, which no run uses up: what is charged counts, not what is refused.
BUDGET = 1_000_000_000
READ_SECONDS = 5.0  # between two looks at counters that the store keeps for a minute after their last charge
_TEAM = re.compile(rf"\bfor ({'|'.join(TEAMS)})\b")


def _one_team(files: dict[str, str]) -> None:
    bootstrap = json.loads(files["bootstrap.json"])
    key = {"key": "inference-plane", "path": [{"key": "budget_team"}]}
    theirs = {"metadata": {"descriptor_key": "team", "metadata_key": key}}
    care = {"generic_key": {"descriptor_key": "team", "descriptor_value": "care"}}
    found = 0
    for listener in bootstrap["static_resources"]["listeners"]:
        for network in listener["filter_chains"][0]["filters"]:
            for each in network["typed_config"].get("http_filters", ()):
                for limit in each["typed_config"].get("rate_limits", ()):
                    if limit["actions"] == [theirs]:
                        limit["actions"], found = [care], found + 1
    if not found:
        raise ValueError("no budget is charged by the team of the request: the break has to follow the chart")
    files["bootstrap.json"] = json.dumps(bootstrap)


#: What each break takes away, and how, so that a run shows that it would notice.
BREAKS = {"one-team": ("whose budget is charged: it is always that of `care`", _one_team)}


def catalogue(auth: Mapping[str, Any], budgets: bool) -> dict[str, Any]:
    """One model with two engines and a fallback, one whose first engine drains, one that embeds, and one of nobody."""

    def model(name: str, **more: Any) -> dict[str, Any]:
        entry = {"source": f"s3://models/{name}/v7/", "weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}
        return {**entry, "replicas": {"min": 2}, **more}

    fallback = {"residency": "region", "fallback": {"model": TARGET, "retention": "none"}}
    return {
        "auth": dict(auth),
        "global": {
            "aws": {"region": "eu-central-1"},
            "tls": {"mode": "none"},
            "network": {"policies": False},
            "teams": {n: {**team, "tokensPerMinute": BUDGET} for n, team in TEAMS.items()} if budgets else TEAMS,
            "models": {
                "summary": model("summary", firstTokenBudget=f"{BUDGET_MS}ms", **fallback),
                "drains": model("drains"),
                "vectors": model("vectors", api=["embeddings"]),
                "nobody": model("nobody", **fallback),
            },
        },
        "health": {"interval": "200ms", "timeout": "2s", "consecutive5xx": 1_000_000},
        "dns": {"refreshRate": "200ms"},
        # Loopback on a busy machine: each request is counted.
        "budgets": {"timeout": "10s"},
    }


@dataclass(frozen=True)
class Ask:
    """One request, whose client leaves after `leaves` seconds where that is not None."""

    path: str
    body: Mapping[str, Any]
    leaves: float | None = None


def asks(count: int, seed: int) -> Iterator[Ask]:
    """The mix: every kind of reply, each also with a client that leaves, and each way in which a try may fail."""
    pick = random.Random(seed)  # noqa: S311

    def chat(model: str, test: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        marker = f" [[x_test {json.dumps(test)}]]" if test else ""
        return {"model": model, "messages": [{"role": "user", "content": "hello" + marker}], **more}

    def slowly() -> dict[str, Any]:
        return {"token_delay": 0.004, "tokens": pick.randint(20, 60)}

    def one() -> Ask:
        leaves = pick.uniform(0.01, 0.15)
        several = pick.randint(2, 4)
        kinds = [
            (10, lambda: Ask(CHAT, chat("summary", max_tokens=pick.randint(1, 40)))),
            (10, lambda: Ask(CHAT, chat("summary", stream=True, max_tokens=pick.randint(1, 40)))),
            (5, lambda: Ask(CHAT, chat("summary", stream=True, stream_options={"include_usage": True}))),
            (4, lambda: Ask(CHAT, chat("summary", stream=pick.random() < 0.5, n=several))),
            (4, lambda: Ask("/v1/completions", {"model": "drains", "prompt": "hello", "stream": pick.random() < 0.5})),
            (5, lambda: Ask(VECTORS, {"model": "vectors", "input": ["one two", "three"][: pick.randint(1, 2)]})),
            (2, lambda: Ask(VECTORS, {"model": "vectors", "input": "one", "x_test": {"answer_delay": 1}}, leaves)),
            (10, lambda: Ask(CHAT, chat("summary", slowly(), stream=True), leaves)),
            (6, lambda: Ask(CHAT, chat("summary", slowly()), leaves)),
            (3, lambda: Ask(CHAT, chat("summary", slowly(), stream=True, n=several), leaves)),
            (3, lambda: Ask(CHAT, chat("summary", slowly(), n=several), leaves)),
            (3, lambda: Ask(CHAT, chat("summary", {"first_token_delay": BUDGET_MS / 1000 + 0.1}, stream=True))),
            (3, lambda: Ask(CHAT, chat("summary", {"fault": "cut"}, stream=True, max_tokens=9))),
            (2, lambda: Ask(CHAT, chat("summary", {"fault": "overloaded"}, stream=True))),
            (2, lambda: Ask(CHAT, chat("summary", {"fault": "draining"}))),
            (6, lambda: Ask(CHAT, chat("drains", stream=pick.random() < 0.5))),
            (3, lambda: Ask(CHAT, chat("nobody", stream=pick.random() < 0.5))),
            (2, lambda: Ask(CHAT, chat("nobody", {"token_delay": 0.02}, stream=True), leaves)),
            (2, lambda: Ask(CHAT, chat("summary", max_tokens=99_999))),
            (2, lambda: Ask(CHAT, chat("unknown"))),
            (1, lambda: Ask(CHAT, {"messages": []})),
        ]
        weights = [weight for weight, _ in kinds]
        return pick.choices([make for _, make in kinds], weights)[0]()

    for _ in range(count):
        yield one()


@dataclass(frozen=True)
class Sums:
    """Tokens from one place, as one that counts would have them: `prefilled` has the prompt once for each sequence."""

    prompt: int = 0
    completion: int = 0
    prefilled: int = 0


@dataclass(frozen=True)
class Charge:
    """Of one team, in tokens: what engines counted for its prompts, what it owes by its requests, what was charged.

    `open` are estimates of requests whose client left while the budget was asked about: charged or not.
    """

    engines: int
    owed: int
    open: int
    charged: int

    @property
    def foreign(self) -> int:
        """Tokens that nothing in the team's name explains."""
        return max(0, self.charged - self.owed - self.open)

    @property
    def missing(self) -> int:
        """Tokens in the team's name that it was not charged."""
        return max(0, self.owed - self.charged)


@dataclass(frozen=True)
class Result:
    """What a run came to. `differences` say what does not agree; there should be none."""

    requests: int
    left: int
    statuses: Counter[int]
    outcomes: Counter[str]
    router: Sums
    engine_lines: Sums
    counters: Sums
    report: usage.Report
    differences: list[str]
    charges: Mapping[str, Charge]


class _Bed(Bed):
    """A bed whose router may be broken on purpose."""

    break_ = ""

    def rendered(self, values: Mapping[str, Any], local: Mapping[str, Any] | None = None) -> helm.Render:
        render = super().rendered(values, local)
        return changed(render, BREAKS[self.break_][1]) if self.break_ else render


class _Counters:
    """A context manager that keeps the highest value of each counter of the store, which forgets them."""

    def __init__(self, bed: Bed) -> None:
        self._bed, self._seen, self._end = bed, {}, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def read(self) -> dict[str, int]:
        """Tokens charged, by team."""
        for key in self._bed.store.ask("KEYS tokens_team_*"):
            if key.startswith("tokens_team_"):
                value = self._bed.store.ask(f"GET {key}")[-1]
                self._seen[key] = max(self._seen.get(key, 0), int(value) if value.isdigit() else 0)
        return {
            team: sum(n for key, n in list(self._seen.items()) if key.rpartition("_")[0] == f"tokens_team_{team}")
            for team in TEAMS
        }

    def _look(self) -> None:
        while not self._end.wait(READ_SECONDS):
            self.read()

    def __enter__(self) -> _Counters:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def run(
    count: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
    *,
    budgets: bool = True,
    break_: str = "",
) -> Result:
    """`budgets` false leaves out what teams are charged, and the service that has to be built for it.

    Raises what `Bed` raises where something does not start, and TimeoutError where lines stay away.
    """
    issuer = Issuer()
    with tempfile.TemporaryDirectory(prefix="accounting-") as folder:
        progress("Envoy and the engines start")
        made = _Bed(Path(folder), values=catalogue(issuer.values(), budgets), max_num_seqs=CLIENTS)
        made.break_ = break_
        with contextlib.ExitStack() as stack:
            bed = stack.enter_context(made)
            counters = stack.enter_context(_Counters(bed)) if budgets else None
            bed.engines["drains"][0].behaviour.update({"fault": "draining"})
            bed.scale("nobody", 0)
            bed.wait_for_engines({"nobody": 0})
            tokens = {team: issuer.token(team, seconds=3600) for team in TEAMS}
            left = asyncio.run(_ask_all(bed.url, list(asks(count, seed)), tokens, progress))
            progress("lines are written")
            return _result(bed, _settle(bed), left, counters)


async def _ask_all(url: str, todo: list[Ask], tokens: Mapping[str, str], progress: Callable[[str], None]) -> int:
    """How many clients left."""
    left = done = 0
    total, teams = len(todo), list(tokens)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:

        async def client() -> None:
            nonlocal left, done
            while todo:
                ask = todo.pop()
                team = teams[len(todo) % len(teams)]
                headers = {"authorization": f"Bearer {tokens[team]}"}
                try:
                    async with asyncio.timeout(ask.leaves):
                        async with session.post(url + ask.path, json=_signed(ask.body, team), headers=headers) as reply:
                            async for _ in reply.content.iter_any():
                                pass
                except TimeoutError:
                    if ask.leaves is None:
                        raise
                    left += 1
                except aiohttp.ClientPayloadError:
                    pass  # a cut stream
                done += 1
                if done % 200 == 0:
                    progress(f"{done} of {total} requests")

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return left


def _signed(body: Mapping[str, Any], team: str) -> Any:
    """The body, whose prompt names its team: where it arrives it says itself who is to be charged."""
    text = json.dumps(body)
    for word in ('"hello', '"one'):
        text = text.replace(word, f'"for {team} {word[1:]}')
    return json.loads(text)


def _engines(bed: Bed) -> list[ReplayEngine]:
    return [engine for fleet in bed.engines.values() for engine in fleet if isinstance(engine, ReplayEngine)]


def _settle(bed: Bed) -> int:
    """How many requests Envoy has seen, once all have ended; a client may have left before it sent anything."""
    seen, active = "http.plane.downstream_rq_total", "http.plane.downstream_rq_active"
    deadline = time.monotonic() + SETTLED
    while True:
        stats = bed.router.stats([seen, active])
        idle = not stats[active] and all(request.finished for engine in _engines(bed) for request in engine.requests)
        told = all(len(engine.lines) >= len(engine.requests) for engine in _engines(bed))
        if idle and told and len(bed.router.audit()) >= stats[seen]:
            return stats[seen]
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{len(bed.router.audit())} end lines of {stats[seen]} requests after {SETTLED:g} s, "
                f"{stats[active]} under way"
            )
        time.sleep(0.1)


def _result(bed: Bed, count: int, left: int, counters: _Counters | None) -> Result:
    lines = usage.Lines()
    lines.read(bed.router.logged().splitlines())
    tries = [json.loads(line) for engine in _engines(bed) for line in engine.lines]
    for line in tries:
        lines.add(line)
    ends = bed.router.audit()
    report = usage.report(lines)
    found = Result(
        count,
        left,
        Counter(line["status"] for line in ends),
        Counter(line["outcome"] for line in tries),
        _sums(line for line in ends if line["backend"] == "fleet"),
        _sums(tries),
        _counters(engine.surface.metrics() for engine in _engines(bed)),
        report,
        [],
        {},
    )
    fleet = [use for key, use in report.uses.items() if key.backend == "fleet"]
    sent = {r.headers["x-request-id"] for e in _engines(bed) for r in e.requests}
    sent |= {call.headers["x-request-id"] for call in bed.bedrock.calls}
    checks = {
        "end lines, of requests": (len(ends), count),
        "requests with an end line, of end lines": (len({line["request_id"] for line in ends}), len(ends)),
        "prompts at an engine or Amazon Bedrock without a start line": (
            len(sent - {line["request_id"] for line in bed.router.audit("start")}),
            0,
        ),
        "prompt tokens, engine lines and engine counters": (found.engine_lines.prefilled, found.counters.prefilled),
        "completion tokens, engine lines and engine counters": (
            found.engine_lines.completion,
            found.counters.completion,
        ),
        "prompt tokens, by team and engine lines": (sum(use.prompt_tokens for use in fleet), found.engine_lines.prompt),
        "completion tokens, by team and engine lines": (
            sum(use.completion_tokens for use in fleet),
            found.engine_lines.completion,
        ),
        "requests by team, and requests": (report.total().requests, count),
        "estimated tokens of the fleet": (sum(use.estimated_tokens for use in fleet), 0),
        "tries of unknown cost, and those that an engine failed": (
            report.unknown,
            sum(line["prompt_tokens"] is None and line["outcome"] == "error" for line in tries),
        ),
        "requests started without an end": (report.lost.total(), 0),
        "answers of the fleet without an engine line": (report.without_engine, 0),
        "engine lines without a router line": (report.without_router, 0),
    }
    checks |= _prometheus(bed, ends)
    if counters:
        more, charges = _charged(bed, counters, ends, tries)
        checks, found = checks | more, dataclasses.replace(found, charges=charges)
    found.differences.extend(f"{what}: {one} and {other}" for what, (one, other) in checks.items() if one != other)
    return found


def _charged(
    bed: Bed, counters: _Counters, ends: list[usage.Line], tries: list[usage.Line]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, Charge]]:
    """What each team was charged beside what was asked in its name."""
    arrived = [request for engine in _engines(bed) for request in engine.requests] + list(bed.bedrock.calls)
    sender = {
        request.headers["x-request-id"]: named[1]
        for request in arrived
        if (named := _TEAM.search(repr(request.body)))
    }
    owes = {line["request_id"]: _owed(line) for line in ends}
    # What arrived nowhere has no tokens, only the estimate of its prompt.
    whose = {line["request_id"]: sender.get(line["request_id"], line["team"]) for line in ends}
    owed: Counter[str] = Counter()
    open_: Counter[str] = Counter()
    for line in ends:
        owed[whose[line["request_id"]]] += owes[line["request_id"]]
        open_[whose[line["request_id"]]] += line["budget_estimate"] if line["budget"] == "unavailable" else 0
    counted: Counter[str] = Counter()
    for line in tries:
        counted[sender.get(line["request_id"], "")] += (line["prompt_tokens"] or 0) + (line["completion_tokens"] or 0)
    deadline = time.monotonic() + SETTLED
    last: dict[str, int] = {}
    # The last charges come after the last lines.
    while last != (charged := counters.read()) or any(charged[team] < owed[team] for team in TEAMS):
        if time.monotonic() > deadline:
            break
        last = charged
        time.sleep(0.5)
    finished = {line["request_id"]: line for line in tries if line["outcome"] == "finished"}
    # Whole ones: of an answer whose client left the router may have seen less than the engine made.
    whole = {line["request_id"] for line in ends if line["status"] == 200 and line["details"] == "via_upstream"}
    free = sum(
        max(0, line["prompt_tokens"] + line["completion_tokens"] - owes[name])
        for name, line in finished.items()
        if name in whole
    )
    checks: dict[str, tuple[Any, Any]] = {
        "requests whose line has another team than their prompt": (
            sum(line["team"] != whose[line["request_id"]] for line in ends if line["request_id"] in sender),
            0,
        ),
        "tokens of finished answers that nobody was charged": (free, 0),
        "prompts of nobody": (len(arrived) - sum(r.headers["x-request-id"] in sender for r in arrived), 0),
    }
    charges = {team: Charge(counted[team], owed[team], open_[team], charged[team]) for team in TEAMS}
    for team, charge in charges.items():
        checks[f"tokens charged to {team} that are not its own"] = charge.foreign, 0
        checks[f"tokens of {team} that it was not charged"] = charge.missing, 0
    return checks, charges


def _owed(line: usage.Line) -> int:
    """As docs/budgets.md has it: what was used, or the estimate where that is more; nothing where nobody was asked."""
    if line["budget"] != "within":
        return 0
    return max(line["budget_estimate"], (line["prompt_tokens"] or 0) + (line["completion_tokens"] or 0))


def _sums(lines: Iterator[usage.Line] | list[usage.Line]) -> Sums:
    names = ("prompt_tokens", "completion_tokens", "prefilled_tokens")
    totals: Counter[str] = Counter()
    for line in lines:
        totals.update({name: line.get(name) or 0 for name in names})
    return Sums(*(totals[name] for name in names))


def _counters(metrics: Iterator[str]) -> Sums:
    """Of vLLM's names, over all engines."""
    text = "\n".join(metrics)
    prompt, completion = (
        int(sum(float(value) for value in re.findall(rf"^vllm:{kind}_tokens_total{{.*}} (\S+)$", text, re.MULTILINE)))
        for kind in ("prompt", "generation")
    )
    return Sums(0, completion, prompt)


_SAMPLE = re.compile(r"^envoy_usage_(requests|tokens)\{(.*)\} (\d+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def _prometheus(bed: Bed, ends: list[usage.Line]) -> dict[str, tuple[Any, Any]]:
    """The router's counters beside the sums of the end lines, series by series."""
    with urllib.request.urlopen(f"{bed.router.status_url}/metrics", timeout=10) as reply:
        exposed = reply.read().decode()
    counted = {
        (name, frozenset(_LABEL.findall(labels))): int(value)
        for name, labels, value in _SAMPLE.findall(exposed)
        if int(value)
    }
    wanted: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for line in ends:
        labels = {name: line[name] or "" for name in ("team", "cost_center", "model", "backend")}
        wanted["requests", frozenset({**labels, "status": str(line["status"])}.items())] += 1
        for kind in ("prompt", "completion", "cached"):
            wanted["tokens", frozenset({**labels, "kind": kind}.items())] += line[f"{kind}_tokens"] or 0
    wanted = +wanted
    return {
        f"{name} {dict(labels)}, counter and end lines": (counted.get((name, labels), 0), wanted[name, labels])
        for name, labels in {**counted, **wanted}
    }
