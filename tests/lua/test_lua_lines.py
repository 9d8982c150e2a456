"""The lines that the router's scripts write before a prompt moves on."""

from __future__ import annotations

import json

import pytest
from lua_harness import Result, load

ROUTE = load("route")
BEDROCK = load("bedrock")
FULL = b"\nfull = true"
HEADERS = {":method": "POST", ":path": "/v1/chat/completions", "x-request-id": "r1"}
BODY = b'{"model":"summary","messages":[{"role":"user","content":"secret"}]}'
CALLER = {"team": "care", "cost_center": "4710", "subject": "sub-1"}
TARGET = {
    "x-plane-target": "openai.gpt-oss-120b-1:0",
    "x-plane-authority": "bedrock.example",
    "x-plane-model": "summary",
}


def line(result: Result) -> dict[str, object]:
    assert result.written.endswith("\n") and result.written.count("\n") == 1
    return json.loads(result.written.encode("latin-1").decode())


def test_a_start_line_says_who_asks_for_what() -> None:
    assert line(ROUTE("envoy_on_request", {**HEADERS, "x-residency": "region"}, BODY, CALLER)) == {
        "type": "start",
        "time": "2026-11-27T13:00:00.123Z",
        "request_id": "r1",
        "team": "care",
        "cost_center": "4710",
        "subject": "sub-1",
        "requested_model": "summary",
        "requested_residency": "region",
        "request_bytes": len(BODY),
    }


def test_what_is_not_known_is_null() -> None:
    found = line(ROUTE("envoy_on_request", HEADERS, BODY))
    assert {name for name, value in found.items() if value is None} == {
        "team",
        "cost_center",
        "subject",
        "requested_residency",
    }


@pytest.mark.parametrize(
    "subject",
    ['"', "\\", 'a","team":"other', "line\nfeed", "tab\t", "\x00\x1f\x7f", "käse", "日本"],
)
def test_a_subject_is_one_json_string_whatever_is_in_it(subject: str) -> None:
    sent = subject.encode().decode("latin-1")
    assert line(ROUTE("envoy_on_request", HEADERS, BODY, {**CALLER, "subject": sent}))["subject"] == subject


@pytest.mark.parametrize(("character", "kept"), [("a", 256), ("é", 127), ("日", 85)])
def test_a_line_stays_shorter_than_a_pipe_takes_at_once(character: str, kept: int) -> None:
    """Only the beginning of a long value is written, and no half of a character."""
    sent = (character * 5000).encode().decode("latin-1")
    found = ROUTE("envoy_on_request", HEADERS, BODY, dict.fromkeys(CALLER, sent))
    assert line(found)["subject"] in (character * kept, character * (kept + 1))
    assert len(found.written) < 4096
    escaped = ROUTE("envoy_on_request", HEADERS, BODY, {**CALLER, "subject": '"' * 5000})
    assert len(escaped.written) < 4096 and line(escaped)["subject"] == '"' * 256


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (HEADERS, b"{}"),
        (HEADERS, None),
        ({**HEADERS, "content-encoding": "gzip"}, BODY),
        ({**HEADERS, ":method": "GET", ":path": "/v1/models/summary"}, None),
    ],
    ids=["no model", "no body", "compressed", "no prompt"],
)
def test_what_has_no_prompt_that_could_go_on_has_no_start_line(headers: dict[str, str], body: bytes | None) -> None:
    assert ROUTE("envoy_on_request", headers, body).written == ""


def test_the_leg_to_bedrock_has_a_line_before_the_prompt_leaves() -> None:
    headers = {**HEADERS, **TARGET, "x-envoy-attempt-count": "3"}
    sent = BEDROCK("envoy_on_request", headers, BODY)
    assert line(sent) == {
        "type": "bedrock",
        "time": "2026-11-27T13:00:00.123Z",
        "request_id": "r1",
        "model": "summary",
        "model_version": "openai.gpt-oss-120b-1:0",
        "backend": "bedrock",
        "attempt": 3,
        "request_bytes": len(sent.body),
    }


def test_a_prompt_whose_line_cannot_be_written_stays_here() -> None:
    started = load("route", after=FULL)("envoy_on_request", HEADERS, BODY)
    assert started.reply == {":status": "503"} and "x-plane-model" not in started.headers
    assert started.headers["x-plane-refused"] == "the router cannot write its audit log"
    left = load("bedrock", after=FULL)("envoy_on_request", {**HEADERS, **TARGET}, BODY)
    assert left.reply[":status"] == "500" and "audit line cannot be written" in left.logged
