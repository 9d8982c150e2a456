"""What travels: sizes are exact, bodies are what clients send, and replies are what the load generator understands."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inference_plane.bench import messages
from inference_plane.bench.load import ReplyEnd


@pytest.mark.parametrize("length", [7, 8, 150, 1_000, 119_999])
def test_a_prompt_has_exactly_the_bytes_asked_for(length: int) -> None:
    assert len(json.dumps(messages.prompt(length))) == length


def test_a_prompt_below_its_serial_number_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 7 bytes, 6 were asked for"):
        messages.prompt(6)


def test_a_packet_is_prose_and_another_is_full_of_quotations() -> None:
    prose, quotations = (json.dumps(messages.prompt(120_000, quotations=quotations)) for quotations in (False, True))
    assert 200 < prose.count(r"\"") < 400
    assert quotations.count(r"\"") > 2_000
    assert prose.count(r"\n") > 1_000


@pytest.mark.parametrize("case", messages.CASES, ids=lambda case: case.name)
def test_a_body_is_compact_json_of_its_size_with_the_model_where_the_case_says(case: messages.Case) -> None:
    for model in ("model-000", "a-much-longer-name"):
        body = messages.body(case, model, 7)
        document = json.loads(body)
        assert len(body) == case.prompt_bytes
        assert list(document).index("model") == (len(document) - 1 if case.model_last else 0)
        assert document["model"] == model
        assert document.get("stream", False) is case.stream
        assert body == json.dumps(document, separators=(",", ":")).encode()


def test_bodies_of_two_serial_numbers_differ_at_equal_size() -> None:
    one, two = (messages.body(messages.CASES[0], "model-000", serial) for serial in (1, 2))
    assert one != two
    assert len(one) == len(two)


def test_a_request_says_its_body_s_length() -> None:
    case = replace(messages.CASES[0], prompt_bytes=500)
    head, _, body = messages.request(case, "model-000").partition(b"\r\n\r\n")
    assert b"content-length: 500" in head.split(b"\r\n")
    assert len(body) == 500


def test_the_engine_s_reply_is_about_1_kb_and_counts_the_same_tokens_twice() -> None:
    head, _, body = messages.reply().partition(b"\r\n\r\n")
    usage = json.loads(body)["usage"]
    assert 900 < len(body) < 1_200
    assert b"x-plane-prompt-tokens: %d" % usage["prompt_tokens"] in head
    assert b"x-plane-completion-tokens: %d" % usage["completion_tokens"] in head


def test_a_stream_is_one_whole_chunked_reply_with_usage_in_each_event() -> None:
    ends = ReplyEnd()
    pieces = [messages.stream_head(), *messages.stream_chunks()]
    assert [ends.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    events = [line for line in b"".join(pieces).split(b"\n") if line.startswith(b"data: {")]
    assert len(events) == messages.STREAM_EVENTS + 1
    assert all(b'"usage":{' in event for event in events)
