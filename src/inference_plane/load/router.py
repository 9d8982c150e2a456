"""What clients saw beside what the router says of the same requests: its audit lines of type `end`, by request id.
Pure.

A difference is either a clock's (the router sees a request later and its end earlier than the client) or something that
one of them does not know; each is counted and said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .samples import ANSWERED, CANCELLED, Sample

Line = Mapping[str, Any]
#: A difference: the connection broke before the router had said one.
NO_ID = "requests without an id of the router"


def compare(samples: Sequence[Sample], lines: Iterable[Line]) -> dict[str, Any]:
    """Counts of what agrees and what does not; `examples` has some request ids of each difference.

    The id of a request that was tried again by its client is that of its last try.
    """
    ends = {line["request_id"]: line for line in lines if line["path"].endswith("/chat/completions")}
    differences: dict[str, list[str]] = {}

    def differs(what: str, sample: Sample) -> None:
        differences.setdefault(what, []).append(sample.request_id or f"number {sample.number}")

    added: dict[str, list[float]] = {"ttft": [], "e2e": []}
    matched = 0
    for sample in samples:
        if sample.sent is None:
            continue
        if not sample.request_id:
            if sample.outcome != CANCELLED:  # who leaves before the headers has no id
                differs(NO_ID, sample)
            continue
        line = ends.get(sample.request_id)
        if line is None:
            differs("requests without a line of the router", sample)
            continue
        matched += 1
        if line["status"] != sample.status:
            differs("another status", sample)
        if (line.get("backend") or "") != sample.backend and sample.status == 200:
            differs("another backend", sample)
        if sample.outcome != ANSWERED:
            continue
        for name in ("prompt_tokens", "completion_tokens"):
            if line.get(name) is not None and line[name] != getattr(sample, name):
                differs(f"other {name.replace('_', ' ')}", sample)
        if sample.waits:  # the router knows the last try alone
            continue
        # Of a stream the engine's middleware holds the headers until the first token.
        for name, seen, said in (("ttft", sample.first, "first_byte_ms"), ("e2e", sample.total, "duration_ms")):
            if seen is not None and line.get(said) is not None:
                added[name].append(seen * 1e3 - line[said])
    return {
        "compared": matched,
        "lines": len(ends),
        "lines_without_a_request": len(ends.keys() - {sample.request_id for sample in samples}),
        "differences": {what: len(who) for what, who in differences.items()},
        "examples": {what: who[:3] for what, who in differences.items()},
        "client_minus_router_ms": {
            name: {"median": statistics.median(values), "max": max(values)} if values else None
            for name, values in added.items()
        },
    }


def of(router: Any) -> list[Line]:
    """The lines of a router of this machine; those of the last requests come within 200 ms."""
    time.sleep(0.5)
    return router.audit()
