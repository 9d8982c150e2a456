"""What the load generator itself adds to what it measures: against a server whose delays are known.

The server is a process of its own, knows when it has read a request and when it has written each token, and says so for
each request; the client's times of the same requests stand beside that. Their difference is the generator's error: its
loop, its parser, the loopback and the scheduler of a machine on which both run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.box
import rich.table
import yaml
from aiohttp import web

from inference_plane.load import drive, measures, profiles
from inference_plane.load.samples import ANSWERED, Sample
from inference_plane.onehost.processes import Processes, free_port

MODEL = "known"
TOKENS, GAP = 20, 0.02
#: First tokens come after so many seconds, by chance.
FIRST = (0.05, 0.5)


def delay(number: int) -> float:
    """Seconds until the first token of the request that arrives as this one."""
    return random.Random(number).uniform(*FIRST)


class Known:
    """The server: the first token after `delay`, then `TOKENS` in all with `GAP` between them."""

    def __init__(self, log: Path) -> None:
        self._log = open(log, "w", buffering=1)
        self._arrived = 0

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        clock = asyncio.get_running_loop().time
        read, number = clock(), self._arrived
        self._arrived += 1
        name = f"known-{number}"
        reply = web.StreamResponse(headers={"content-type": "text/event-stream", "x-request-id": name})
        await reply.prepare(request)
        written = []
        for token in range(TOKENS):
            due = read + delay(number) + token * GAP
            await asyncio.sleep(max(0.0, due - clock()))
            usage = {"prompt_tokens": 1, "completion_tokens": token + 1}
            chunk = {"choices": [{"index": 0, "delta": {"content": " word"}}], "usage": usage}
            await reply.write(f"data: {json.dumps(chunk)}\n\n".encode())
            written.append(clock() - read)
        await reply.write(b"data: [DONE]\n\n")
        self._log.write(json.dumps({"id": name, "asked": delay(number), "written": written}) + "\n")
        await reply.write_eof()
        return reply


@dataclass(frozen=True)
class Row:
    """One measure, in milliseconds. `known` is what the server did, `client` what was measured, `error` their
    difference for the same request (of gaps: of the same gap); `locust` is locust's own median, which is rounded to
    its buckets."""

    measure: str
    samples: int
    known_p50: float
    client_p50: float
    error_p50: float
    error_p99: float
    error_max: float
    locust_p50: float | None


def compare(samples: Sequence[Sample], known: Mapping[str, Mapping[str, Any]], stats: Mapping[str, Any]) -> list[Row]:
    """Rows of what both sides say of the same answers."""
    pairs: dict[str, list[tuple[float, float]]] = {"ttft": [], "itl": [], "e2e": []}
    for sample in samples:
        if sample.outcome != ANSWERED or sample.first is None or sample.total is None:
            continue
        written = known[sample.request_id]["written"]
        pairs["ttft"].append((written[0], sample.first))
        pairs["e2e"].append((written[-1], sample.total))
        gaps = [later - earlier for earlier, later in zip(written, written[1:], strict=False)]
        pairs["itl"] += zip(gaps, sample.gaps, strict=True)
    return [_row(measure, found, stats.get(measure)) for measure, found in pairs.items() if found]


def _row(measure: str, pairs: Sequence[tuple[float, float]], stats: Mapping[str, float] | None) -> Row:
    errors = [(client - known) * 1e3 for known, client in pairs]
    sizes = [abs(error) for error in errors]
    return Row(
        measure,
        len(pairs),
        known_p50=statistics.median(known for known, _ in pairs) * 1e3,
        client_p50=statistics.median(client for _, client in pairs) * 1e3,
        error_p50=statistics.median(errors),
        error_p99=measures.percentile(sizes, 99),
        error_max=max(sizes),
        locust_p50=stats["median_ms"] if stats else None,
    )


def measure(*, seconds: float, rate: float, progress: Callable[[str], None]) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and what is known of the run.

    Raises NotReady where a process does not come up, and RuntimeError where a request was not answered.
    """
    document = {
        "description": "Known delays.",
        "seed": 1,
        "users": max(20, round(rate * 4)),
        "curve": [{"phase": "steady", "for": f"{seconds:g}s", "rate": rate}],
        "requests": {"known": {"model": MODEL, "prompt": 20, "output": TOKENS}},
        "slo": {"ttft": "10s"},
    }
    with tempfile.TemporaryDirectory(prefix="inference-plane-bench-") as name, Processes() as processes:
        folder, port = Path(name), free_port()
        source, log = folder / "known.yaml", folder / "known.jsonl"
        source.write_text(yaml.safe_dump(document))
        url = f"http://127.0.0.1:{port}"
        processes.start(
            "known",
            [sys.executable, "-m", "inference_plane.bench.generator", "--port", str(port), "--log", log],
            log_path=folder / "known.log",
            ready=f"{url}/v1/models",
        )
        progress(f"{rate:g} requests a second for {seconds:g} s")
        outcome = drive.run(
            processes,
            folder / "load",
            profiles.load(str(source)),
            source=source,
            scales=(1.0, 1.0),
            url=url,
            models={},
            tokens={},
            ca_file=None,
            driver=drive.NoDriver(),
        )
        known = {line["id"]: line for line in map(json.loads, log.read_text().splitlines())}
    if failed := [sample for sample in outcome.samples if sample.outcome != ANSWERED]:
        raise RuntimeError(f"{len(failed)} of {len(outcome.samples)} requests were not answered: {failed[0].error}")
    lags = outcome.generator.lags
    facts = {
        "requests": len(outcome.samples),
        "rate": rate,
        "late_max_ms": max(sample.late for sample in outcome.samples) * 1e3,
        "lag_p50_ms": measures.percentile(lags, 50) * 1e3,
        "lag_p99_ms": measures.percentile(lags, 99) * 1e3,
        "asked_p50_ms": statistics.median(line["asked"] for line in known.values()) * 1e3,
    }
    return compare(outcome.samples, known, outcome.generator.stats), facts


def table(rows: Sequence[Row], facts: Mapping[str, Any], note: str) -> rich.table.Table:
    """For people."""
    drawn = rich.table.Table(box=rich.box.SIMPLE, caption=note, caption_justify="left")
    drawn.add_column("ms")
    for heading in ("samples", "known p50", "measured p50", "error p50", "|error| p99", "max", "locust's p50"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        figures = (row.known_p50, row.client_p50, row.error_p50, row.error_p99, row.error_max)
        locust = "-" if row.locust_p50 is None else f"{row.locust_p50:.0f}"
        drawn.add_row(row.measure, str(row.samples), *(f"{figure:.2f}" for figure in figures), locust)
    return drawn


def main(arguments: list[str] | None = None) -> None:
    """Serves the known delays until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m inference_plane.bench.generator", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args(arguments)
    web.run_app(Known(options.log).app(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
