"""The plane under one constant load for a long time: does memory stay flat, is every connection given back?

Clients come at random times at a set rate, whether the plane keeps up or not (a Poisson process). They ask for answers
in one piece and for streams, leave in the middle, send what is refused, and now and then find an engine full.
"""
from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import rich.box
import rich.table
import uvloop

from inference_plane.onehost.bed import Bed

from . import messages, plane

_MODELS = 4
_SAMPLE_SECONDS = 5.0
_FULL_EVERY, _FULL_SECONDS = 60.0, 5.0  # an engine refuses all for so long, so often
_PATIENCE = 30.0  # for a reply, and for what is under way at the end
_SETTLE_SECONDS = 10.0  # after the last client, for connections to end
#: Memory that is more in the last third than in the middle one by this part, and by so many bytes, is growing.
GROWTH, GROWTH_BYTES = 0.05, 3 << 20


@dataclass(frozen=True)
class Sample:
    """At one moment: resident bytes and open files by process, and Envoy's own gauges."""

    seconds: float
    resident: Mapping[str, int]
    files: Mapping[str, int]
    gauges: Mapping[str, int]


@dataclass
class Soak:
    """What came of it. `answers` counts by status, `left` those who left on purpose, `faults` what went wrong."""

    seconds: float = 0.0
    answers: dict[int, int] = field(default_factory=dict)
    backends: dict[str, int] = field(default_factory=dict)
    left: int = 0
    samples: list[Sample] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


_GAUGES = ("http.plane.downstream_cx_active", "http.plane.downstream_rq_active")


def run(
    *, seconds: float, rate: float = 10.0, seed: int = 1, progress: Callable[[str], None] = lambda line: None
) -> Soak:
    """`rate` clients a second for so many seconds. Raises NotReady or TimeoutError where something does not start."""
    found = Soak()
    with plane.started(_MODELS, max_num_seqs=64) as (bed, tokens):
        before = _sample(bed, 0.0)
        try:
            uvloop.run(_drive(bed, tokens, found, seconds, rate, random.Random(seed), progress))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        time.sleep(_SETTLE_SECONDS)
        after = _sample(bed, found.seconds)
    found.faults += verdict(found.samples, before, after)
    return found


async def _drive(
    bed: Bed, tokens: Sequence[str], found: Soak, seconds: float, rate: float, chance: random.Random,
    progress: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    timeout = aiohttp.ClientTimeout(total=_PATIENCE)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(_watch(bed, found, began, seconds, progress))
        due = began
        while (due := due + chance.expovariate(rate)) < began + seconds:
            await asyncio.sleep(due - loop.time())
            kind = chance.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
            tasks.create_task(_client(session, bed.url, kind, chance.choice(tokens), chance, found))
    found.seconds = loop.time() - began


#: Kinds of clients: how many of 100, and the statuses that are right. Whose engine refuses all has a fallback.
_KINDS: Mapping[str, tuple[int, frozenset[int]]] = {
    "json": (45, frozenset({200})),
    "stream": (35, frozenset({200})),
    "leaves": (10, frozenset({200})),
    "no model": (4, frozenset({404})),
    "no body": (3, frozenset({400})),
    "no token": (3, frozenset({401})),
}


async def _client(
    session: aiohttp.ClientSession, url: str, kind: str, token: str, chance: random.Random, found: Soak
) -> None:
    model = "model-999" if kind == "no model" else f"model-{chance.randrange(_MODELS):03}"
    stream = kind in ("stream", "leaves")
    case = messages.Case(kind, chance.choice((1_000, 1_000, 1_000, 20_000)), 1, stream=stream)
    body = b"{}" if kind == "no body" else messages.body(case, model, chance.randrange(10_000))
    headers = {"content-type": "application/json"}
    if kind != "no token":
        headers["authorization"] = f"Bearer {token}"
    try:
        async with session.post(f"{url}{messages.PATH}", data=body, headers=headers) as reply:
            found.answers[reply.status] = found.answers.get(reply.status, 0) + 1
            if backend := reply.headers.get("x-inference-backend"):
                found.backends[backend] = found.backends.get(backend, 0) + 1
            if reply.status not in _KINDS[kind][1]:
                found.faults.append(f"{kind}: answered {reply.status}: {(await reply.text())[:200]!r}")
            elif kind == "leaves":
                await reply.content.readany()
                reply.close()
                found.left += 1
            else:
                await reply.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        found.faults.append(f"{kind}: {error!r}")


async def _watch(bed: Bed, found: Soak, began: float, seconds: float, progress: Callable[[str], None]) -> None:
    """Samples, and has an engine refuse all from time to time."""
    loop = asyncio.get_running_loop()
    engine = bed.engines["model-001"][0]
    while (now := loop.time() - began) < seconds:
        full = now % _FULL_EVERY > _FULL_EVERY - _FULL_SECONDS
        engine.behaviour.update({"fault": "overloaded" if full else "none"})
        found.samples.append(await asyncio.to_thread(_sample, bed, now))
        progress(f"{now / 60:.1f} of {seconds / 60:g} minutes, {sum(found.answers.values())} answers, "
                 f"{len(found.faults)} faults")
        for log in (bed.router.audit_path, bed.router.log_path):
            os.truncate(log, 0)
        await asyncio.sleep(_SAMPLE_SECONDS)
    engine.behaviour.update({"fault": "none"})


def _sample(bed: Bed, seconds: float) -> Sample:
    held = plane.held(bed.processes)
    fleets = [f"cluster.{group}/{name}.upstream_rq_active" for name in bed.engines for group in ("fleet", "bedrock")]
    return Sample(
        seconds, {name: one.resident for name, one in held.items()}, {name: one.files for name, one in held.items()},
        bed.router.stats([*_GAUGES, *fleets]))


def verdict(samples: Sequence[Sample], before: Sample, after: Sample) -> list[str]:
    """What grew or was not given back, a line each: `before` and `after` are at rest, the samples under load."""
    found = []
    for name in before.resident:
        middle, last = thirds([sample.resident[name] for sample in samples])
        if last - middle > max(GROWTH * middle, GROWTH_BYTES):
            found.append(f"{name}: {middle / 2**20:.1f} MiB in the middle third, {last / 2**20:.1f} in the last one")
        # Envoy's pools keep some connections to engines open on purpose, as before the load.
        if (more := after.files[name] - before.files[name]) > 16:
            found.append(f"{name}: {more} more open files {_SETTLE_SECONDS:g} s after the load than before it")
    for gauge, value in after.gauges.items():
        if value > before.gauges[gauge]:
            found.append(f"envoy: {gauge} is {value} after the load, {before.gauges[gauge]} before it")
    return found


def thirds(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the middle third and of the last one. Raises ValueError for less than three values."""
    if (size := len(values) // 3) == 0:
        raise ValueError(f"{len(values)} samples are too few to tell whether anything grows: let it run longer")
    return statistics.median(values[size:2 * size]), statistics.median(values[2 * size:])


def table(found: Soak) -> rich.table.Table:
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(found.answers.items()))
    served = ", ".join(f"{count} {backend}" for backend, count in sorted(found.backends.items()))
    faults = "\n".join(["", *(f"FAULT {fault}" for fault in found.faults[:20])])
    drawn = rich.table.Table(
        box=rich.box.SIMPLE, title=f"soak of {found.seconds / 60:.1f} minutes", title_justify="left",
        caption_justify="left",
        caption=f"Medians. Answers: {answers}. By: {served}. {found.left} left early. "
                f"{len(found.faults)} faults.{faults if found.faults else ''}")
    for heading in ("", "first third", "middle third", "last third"):
        drawn.add_column(heading, justify="right" if heading else "left")
    size = len(found.samples) // 3
    parts = [found.samples[:size], found.samples[size:2 * size], found.samples[2 * size:]]
    for name in found.samples[0].resident:
        drawn.add_row(f"{name}, MiB", *(
            f"{statistics.median(s.resident[name] for s in part) / 2**20:.1f}" for part in parts))
        drawn.add_row(f"{name}, open files", *(
            f"{statistics.median(s.files[name] for s in part):.0f}" for part in parts))
    return drawn
