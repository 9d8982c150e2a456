"""Envoy killed under load: every prompt that reached an engine or Amazon Bedrock has a line that was written first."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from router_harness import QUICK, REGION_TARGET, Client, Traffic, catalogue, chat_body, model, openai_error, wait_until

from inference_plane import usage
from inference_plane.onehost.bed import Bed

ROUNDS = 6
BED = {
    "values": catalogue(
        {
            "summary": model("summary", "region", REGION_TARGET, replicas=2, firstTokenBudget="300ms", api=["chat"]),
            "intake": model("intake", "cluster", api=["chat"]),
            "gone": model("gone", "region", REGION_TARGET, api=["chat"]),
        },
        **QUICK,
    )
}
BODIES = [
    chat_body("intake"),
    chat_body("intake", stream=True, max_tokens=40, x_test={"token_delay": 0.005}),
    chat_body("summary", "[[x_test {\"first_token_delay\": 1}]]", stream=True),
    chat_body("summary", "word " * 20_000),
    chat_body("gone", stream=True),
    chat_body("gone"),
]


def lines(path: Path, kind: str) -> Counter[str]:
    """How many lines of a type each request has. The kill may cut the last line of `end` in two, and only that."""
    *whole, last = (line for line in path.read_bytes().splitlines(keepends=True) if line.startswith(b"{"))
    records = [json.loads(line) for line in (*whole, *([last] if last.endswith(b"\n") else []))]
    return Counter(record["request_id"] for record in records if record["type"] == kind)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_killed_envoy_leaves_a_line_of_all_that_it_sent(
    bed: Bed, client: Client, number: int
) -> None:
    bed.scale("gone", 0)
    bed.wait_for_engines({"gone": 0})
    engines = [engine for fleet in bed.engines.values() for engine in fleet]
    with Traffic(client, BODIES, clients=36, pause=0):
        wait_until(lambda: sum(len(e.requests) for e in engines) > 60 and len(bed.bedrock.calls) > 20, "there is load")
        time.sleep(random.uniform(0, 0.6))  # noqa: S311
        bed.router.process.kill()
    wait_until(lambda: all(r.finished for e in engines for r in e.requests), "the engines are idle")
    at_engines = {request.headers["x-request-id"] for engine in engines for request in engine.requests}
    at_bedrock = {call.headers["x-request-id"] for call in bed.bedrock.calls}
    starts, leaves = (lines(bed.router.log_path, kind) for kind in ("start", "bedrock"))
    ends = lines(bed.router.audit_path, "end")
    bed.scale("gone", 1)
    old = bed.replace_router()

    assert at_engines | at_bedrock <= set(starts)
    assert at_bedrock <= set(leaves) <= set(starts)
    assert set(ends) <= set(starts), "an end without a start"
    assert set(starts.values()) == set(ends.values()) == {1}
    lost = set(starts) - set(ends)
    assert lost, "no request was under way"
    told = usage.Lines()
    told.read(old.logged().splitlines())
    told.read(line for engine in engines for line in engine.lines)
    report = usage.report(told)
    assert report.lost.total() == len(lost) and report.lost["bedrock"] == len(lost & set(leaves))
    # An engine's middleware has a line also of a request whose body was still on its way.
    lined = {json.loads(line)["request_id"] for engine in engines for line in engine.lines}
    assert report.lost["fleet"] == len(lost & (at_engines | lined) - set(leaves)) and report.without_router == 0
    print(
        f"{len(starts)} started, {len(ends)} ended, {len(lost)} lost; "
        f"{len(at_engines)} at an engine, {len(at_bedrock)} at Amazon Bedrock, none without a line"
    )


def test_an_envoy_that_cannot_write_serves_nobody(bed: Bed) -> None:
    """/dev/full stands for a log that takes no more: the client hears why, and no engine sees the prompt."""
    with bed.another_router(bed.folder / "full", Path("/dev/full")) as router:
        client = Client(router.url)
        try:
            router.wait_for_engines({name: len(engines) for name, engines in bed.engines.items()})
            reply = client.chat("intake")
            assert reply.status == 503 and reply.headers["retry-after"]
            assert openai_error(reply)["message"] == "The request was refused: the router cannot write its audit log."
            assert not any(engine.requests for fleet in bed.engines.values() for engine in fleet)
        finally:
            client.close()
            bed.processes.stop(router.process)
