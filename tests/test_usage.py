"""Tokens by who asked, from lines of routers and engines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from inference_plane import usage
from inference_plane.commands import usage as command

CALLER = {"team": "care", "cost_center": "4710", "subject": "s"}


def start(request_id: str = "r1", **more: Any) -> dict[str, Any]:
    own = {"requested_model": "summary", "requested_residency": None, "request_bytes": 400}
    return {"type": "start", "time": "t", "request_id": request_id, **CALLER, **own, **more}


def bedrock(request_id: str = "r1", **more: Any) -> dict[str, Any]:
    place = {"model": "summary", "model_version": "gpt", "backend": "bedrock", "attempt": 3, "request_bytes": 440}
    return {"type": "bedrock", "time": "t", "request_id": request_id, **place, **more}


def end(request_id: str | None = "r1", **more: Any) -> dict[str, Any]:
    place = {"model": "summary", "model_version": "v7", "backend": "fleet", "upstream": "10.0.0.1:8000", "attempts": 1}
    reply = {"status": 200, "content_type": "application/json", "details": "via_upstream", "flags": "-", "reason": None}
    tokens = {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None}
    sizes = {"request_bytes": 400, "response_bytes": 1000}
    line = {"type": "end", "time": "t", "request_id": request_id, **CALLER, "requested_model": "summary"}
    return {**line, **place, **reply, **tokens, **sizes, **more}


def engine(request_id: str | None = "r1", tokens: tuple[int, ...] | None = (16, 8, 4), **more: Any) -> dict[str, Any]:
    names = ("prompt_tokens", "completion_tokens", "cached_tokens")
    place = {"model": "summary", "model_version": "v7", "pod": "summary-0", "attempt": 1}
    told = dict.fromkeys(names) if tokens is None else dict(zip(names, tokens, strict=True))
    line = {"type": "engine", "time": "t", "request_id": request_id, **place, "outcome": "finished", **told}
    return {**line, "usage_source": "reply" if tokens else None, **more}


AT_BEDROCK = {"backend": "bedrock", "model_version": "gpt", "upstream": "10.0.9.9:443", "attempts": 3}
STREAM = {"content_type": "text/event-stream"}
SEEN = {"prompt_tokens": 16, "completion_tokens": 5}
LEFT = {"status": 0, "flags": "DownstreamConnectionTermination"}
UNREACHED = {"status": 503, "details": "upstream_reset_before_response_started", "flags": "UpstreamConnectionFailure"}
FLEET = usage.Key("care", "4710", "summary", "v7", "fleet")
BEDROCK = usage.Key("care", "4710", "summary", "gpt", "bedrock")


def reported(*lines: dict[str, Any]) -> usage.Report:
    read = usage.Lines()
    read.read(json.dumps(line) for line in lines)
    return usage.report(read)


@pytest.mark.parametrize(
    ("lines", "key", "use"),
    [
        ((start(), end(prompt_tokens=16, completion_tokens=8), engine()), FLEET, usage.Use(1, 16, 8, 4)),
        ((start(), end(**SEEN, **STREAM), engine(tokens=(16, 6, 0))), FLEET, usage.Use(1, 16, 6)),
        ((start(), end(**SEEN, **STREAM)), FLEET, usage.Use(1, 16, 5)),
        ((start(), end(**LEFT), engine(tokens=(16, 3, 0))), FLEET, usage.Use(1, 16, 3)),
        ((start(), end(status=429, reason="engine-busy"), engine(tokens=(0, 0, 0))), FLEET, usage.Use(1)),
        ((start(), engine()), FLEET, usage.Use(1, 16, 8, 4)),
        ((start(), bedrock(), end(**AT_BEDROCK, **SEEN)), BEDROCK, usage.Use(1, 16, 5)),
        ((start(), bedrock(), end(status=429, **AT_BEDROCK)), BEDROCK, usage.Use(1)),
        ((start(), bedrock(), end(**AT_BEDROCK, **UNREACHED)), BEDROCK, usage.Use(1)),
        ((start(), bedrock(), end(**AT_BEDROCK, **STREAM)), BEDROCK, usage.Use(1, 110, 4, 0, 114)),
        ((start(), bedrock(), end(**AT_BEDROCK, **LEFT)), BEDROCK, usage.Use(1, 110, 0, 0, 110)),
        ((start(), bedrock()), BEDROCK, usage.Use(1, 110, 0, 0, 110)),
    ],
    ids=[
        "a reply", "an aborted stream", "its engine was killed", "an aborted reply", "refused", "the router was killed",
        "bedrock", "bedrock refuses", "bedrock is not reached", "a stream of bedrock is left",
        "bedrock is left before its reply", "the router was killed with a prompt at bedrock",
    ],
)  # fmt: skip
def test_what_a_request_cost(lines: tuple[dict[str, Any], ...], key: usage.Key, use: usage.Use) -> None:
    made = reported(*lines)
    assert made.uses[key] == use and made.total() == use


def test_each_try_counts_where_it_was() -> None:
    """A first token that was late in the fleet, then Amazon Bedrock: both cost, and the request counts once."""
    late = engine(tokens=(16, 1, 0), outcome="first-token-budget")
    again = engine(tokens=(0, 0, 0), attempt=2)
    made = reported(start(), late, again, bedrock(), end(**AT_BEDROCK, **SEEN))
    assert made.uses == {FLEET: usage.Use(0, 16, 1), BEDROCK: usage.Use(1, 16, 5)}


def test_a_second_engine_without_a_line_is_counted_by_the_router() -> None:
    made = reported(start(), engine(tokens=(0, 0, 0)), end(attempts=2, prompt_tokens=16, completion_tokens=4, **STREAM))
    assert made.uses == {FLEET: usage.Use(1, 16, 4)} and made.without_engine == 1


def test_a_canary_s_tokens_are_its_version_s() -> None:
    made = reported(start(), engine(tokens=(9, 1, 0), model_version="v8"), engine(attempt=2), end(attempts=2))
    assert {key.model_version: use.prompt_tokens for key, use in made.uses.items()} == {"v8": 9, "v7": 16}


def test_what_has_no_partner_is_said() -> None:
    lost = (start("a"), start("b"), engine("b"), start("c"), bedrock("c"))
    made = reported(*lost, engine("d"), engine(None), engine("e", None), end("e"))
    assert made.lost == {"router": 1, "fleet": 1, "bedrock": 1}
    assert (made.without_router, made.unknown, made.without_engine) == (2, 1, 0)
    assert made.uses[usage.Key(None, None, "summary", "v7", "fleet")] == usage.Use(0, 32, 16, 8)


def test_what_came_to_no_place_is_a_request_without_tokens() -> None:
    nothing = dict.fromkeys(("backend", "model", "model_version", "upstream", "team", "cost_center"))
    refused = {**nothing, "status": 401}
    made = reported(end(**refused, details="jwt"), end(None, **refused, details="http1.codec_error"))
    assert made.total() == usage.Use(2)


LOG = [
    "[2026-11-27 13:31:41.210][1][warning] not a line",
    '2026-11-27T13:31:41Z stderr F ' + json.dumps(start()),
    "[pod/summary-0/vllm] " + json.dumps(engine()),
    json.dumps(end()),
    '{"level":"info","type":"other"}',
    '{"type":"end","request_id":"r2","pat',
]


def test_lines_are_found_in_what_a_collector_made_of_them() -> None:
    lines = usage.Lines()
    lines.read(LOG)
    assert set(lines.requests) == {"r1"} and lines.unreadable == 1
    assert usage.report(lines).uses == {FLEET: usage.Use(1, 16, 8, 4)}


@pytest.fixture
def log(tmp_path: Path) -> str:
    (tmp_path / "lines.log").write_text("\n".join(LOG))
    return str(tmp_path / "lines.log")


def test_the_command_prints_a_table(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([log]) == 0
    out = capsys.readouterr().out
    assert [word for word in next(line for line in out.splitlines() if "care" in line).split()] == [
        "care", "4710", "summary", "v7", "fleet", "1", "16", "8", "4", "0",
    ]  # fmt: skip
    assert "started without an end: 0" in out and "lines that were cut: 1" in out


def test_the_command_prints_csv_and_json(
    log: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["--csv", log]) == 0
    out, err = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["cost_center"] == "4710" and row["completion_tokens"] == "8" and "requests: 1" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(LOG)))
    assert command.main(["--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["prompt_tokens"] == 16 and document["checks"]["lost"] == {}


def test_the_command_says_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "none.log")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    (tmp_path / "other.log").write_text("hello\n")
    assert command.main([str(tmp_path / "other.log")]) == 2
    assert "no audit line" in capsys.readouterr().err
