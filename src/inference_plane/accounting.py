"""Whether every token is accounted for: a mixed run with aborts, and the same tokens read from four places.

Real: Envoy on the rendered files, the engines' middleware, tokens of callers, sockets. Stands in: vLLM, by replayed
engines that count as it does (`onehost.surface`), and Amazon Bedrock.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from inference_plane import usage
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.replay import ReplayEngine

CLIENTS = 24
SETTLED = 30.0  # seconds until the last line must be there
CHAT, VECTORS = "/v1/chat/completions", "/v1/embeddings"
TARGET = "openai.gpt-oss-120b-1:0"
BUDGET_MS = 150
TEAMS = {"care": {"costCenter": "4710"}, "appeals": {"costCenter": "4711"}}


def catalogue(auth: Mapping[str, Any]) -> dict[str, Any]:
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
            "teams": TEAMS,
            "models": {
                "summary": model("summary", firstTokenBudget=f"{BUDGET_MS}ms", **fallback),
                "drains": model("drains"),
                "vectors": model("vectors", api=["embeddings"]),
                "nobody": model("nobody", **fallback),
            },
        },
        "health": {"interval": "200ms", "timeout": "2s", "consecutive5xx": 1_000_000},
        "dns": {"refreshRate": "200ms"},
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


def run(count: int, seed: int = 0, progress: Callable[[str], None] = lambda line: None) -> Result:
    """Raises what `Bed` raises where something does not start, and TimeoutError where lines stay away."""
    issuer = Issuer()
    with tempfile.TemporaryDirectory(prefix="accounting-") as folder:
        progress("Envoy and the engines start")
        with Bed(Path(folder), values=catalogue(issuer.values()), max_num_seqs=CLIENTS) as bed:
            bed.engines["drains"][0].behaviour.update({"fault": "draining"})
            bed.scale("nobody", 0)
            bed.wait_for_engines({"nobody": 0})
            tokens = {team: issuer.token(team, seconds=3600) for team in TEAMS}
            left = asyncio.run(_ask_all(bed.url, list(asks(count, seed)), tokens, progress))
            progress("lines are written")
            return _result(bed, _settle(bed), left)


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
                headers = {"authorization": f"Bearer {tokens[teams[len(todo) % len(teams)]]}"}
                try:
                    async with asyncio.timeout(ask.leaves):
                        async with session.post(url + ask.path, json=ask.body, headers=headers) as reply:
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


def _result(bed: Bed, count: int, left: int) -> Result:
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
    found.differences.extend(f"{what}: {one} and {other}" for what, (one, other) in checks.items() if one != other)
    return found


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
