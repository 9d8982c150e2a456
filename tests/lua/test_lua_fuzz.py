"""What the scanner reads is what a JSON parser reads, or the body is refused: on seeded, mutated bodies."""

from __future__ import annotations

import json
import random

import pytest

from inference_plane.campaign import bodies

COUNT = 3000


def parse(body: bytes) -> dict | None:
    """What the engine's parser reads (Python's json: the last duplicate wins); None where it rejects the body."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def meant(read: dict) -> str:
    """The x-plane-stream header that belongs to a parsed body; empty without a stream."""
    if read.get("stream") is not True:
        return ""
    options = read.get("stream_options")
    return "usage" if isinstance(options, dict) and options.get("include_usage") is True else "plain"


def check_body_form(route, body: bytes) -> bool:
    """Asserts the property for the body form; True where the body was accepted."""
    headers = route(body=body).headers
    if "x-plane-refused" in headers:
        assert "x-plane-model" not in headers and "x-plane-stream" not in headers, body
        return False
    read = parse(body)
    if read is not None:
        assert headers["x-plane-model"] == read["model"], body
        assert headers.get("x-plane-stream", "") == meant(read), body
    return True


def check_path_form(route, body: bytes) -> None:
    """Asserts the property for the path form, whose body may name no other model."""
    headers = route("/my-model/v1/chat/completions", body).headers
    if "x-plane-refused" in headers:
        assert "x-plane-model" not in headers, body
        return
    assert headers["x-plane-model"] == "my-model"
    read = parse(body)
    if read is not None:
        assert headers.get("x-plane-stream", "") == meant(read), body
        assert read.get("model") in (None, "my-model"), body


def check_bedrock(bedrock, body: bytes, kept: set[str]) -> None:
    """Asserts that only listed keys leave, unchanged, under the target's name, or nothing leaves."""
    told = {"x-plane-target": "target-1:0", "x-plane-authority": "bedrock.example"}
    result = bedrock("envoy_on_request", {":path": "/v1/chat/completions", **told}, body)
    if result.reply:
        assert result.reply[":status"] == "400", body
        return
    pairs: list[tuple[str, object]] = []

    def top(found: list[tuple[str, object]]) -> dict:
        pairs[:] = found  # the outermost object is read last
        return dict(found)

    try:
        sent = json.loads(result.body, object_pairs_hook=top)
    except ValueError:
        assert parse(body) is None, body
        return
    assert len(pairs) == len(sent) and set(sent) <= kept | {"model", "stream_options"}, body
    assert sent["model"] == "target-1:0", body
    read = parse(body)
    if read is not None:
        expected = {key: read[key] for key in read.keys() & kept}
        if read.get("stream") is True:
            expected["stream_options"] = {"include_usage": True}
        assert json.dumps({**expected, "model": "target-1:0"}, sort_keys=True) == json.dumps(sent, sort_keys=True), body


KEPT = set(
    "messages max_completion_tokens max_tokens temperature top_p stop stream tools tool_choice parallel_tool_calls"
    " response_format reasoning_effort".split()
)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_body_is_refused_or_read_as_a_parser_reads_it(route, bedrock, seed):
    accepted = 0
    for body in bodies.bodies(seed, COUNT):
        accepted += check_body_form(route, body)
        check_path_form(route, body)
        check_bedrock(bedrock, body, KEPT)
    assert COUNT / 10 < accepted < COUNT * 0.9, f"{accepted} of {COUNT} accepted: the generator shows nothing"


def test_valid_bodies_are_accepted(route):
    random_ = random.Random(3)
    for _ in range(500):
        body = bodies.valid(random_)
        headers = route(body=body).headers
        # json.dumps escapes only non-ASCII keys here, and those are refused by design.
        if b'"\\u00e9"' in body:
            assert "escapes" in headers["x-plane-refused"]
        else:
            assert "x-plane-refused" not in headers, (body, headers)
