from __future__ import annotations

import ast
import asyncio
import json
import sys
import time
from pathlib import Path

import plane_middleware
import pytest
from asgi_harness import HANG_GUARD, Wire, body, captured, exchange, json_reply, replying, run, start, streaming
from plane_middleware import (
    EventSplitter,
    PlaneMiddleware,
    first_token_budget,
    tokens_of,
    usage_headers,
    usage_span,
    with_usage,
)

CHAT = captured("chat.sse")
FINISH_USAGE = b'"usage":{"prompt_tokens":16,"total_tokens":24,"completion_tokens":8,"completion_tokens_details":null}'
FINAL_USAGE = b'"usage":{"prompt_tokens":16,"total_tokens":24,"completion_tokens":8}'
USAGE_CHUNK = next(line for line in CHAT.splitlines(keepends=True) if b'"choices":[]' in line) + b"\n"
PLAIN_CHAT = CHAT.replace(USAGE_CHUNK, b"").replace(FINISH_USAGE, FINAL_USAGE)
BUSY_EVENT = captured("overload-after-headers.sse")
BUSY_MESSAGE = json.loads(captured("overload-503.json"))["error"]["message"]

PLAIN = {"x-plane-stream": "plain"}
USAGE = {"x-plane-stream": "usage"}
TOO_SHORT = {**USAGE, "x-plane-first-token-budget": "20"}
AMPLE = {**USAGE, "x-plane-first-token-budget": "600000"}


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def chunk(usage: str | None = None, finish: str = "null", content: str = "hi") -> bytes:
    """A chat chunk in vLLM's bytes; `finish` and `usage` are JSON."""
    tail = f',"usage":{usage}' if usage is not None else ""
    choice = f'{{"index":0,"delta":{{"content":{json.dumps(content)}}},"finish_reason":{finish}}}'
    return f'data: {{"id":"c","choices":[{choice}]{tail}}}\n\n'.encode()


def final(usage: str) -> bytes:
    return f'data: {{"id":"c","choices":[],"usage":{usage}}}\n\n'.encode()


DONE = b"data: [DONE]\n\n"


def error_of(wire: Wire) -> dict:
    assert wire.complete
    assert wire.headers["content-type"] == "application/json"
    assert int(wire.headers["content-length"]) == len(wire.body)
    assert len(wire.headers) == len(wire.messages[0]["headers"]), "a header stands twice"
    return json.loads(wire.body)["error"]


def assert_refused(wire: Wire, reason: str) -> dict:
    error = error_of(wire)
    assert wire.status == error["code"] == 429
    assert (wire.headers["x-plane-reason"], wire.headers["retry-after"]) == (reason, "1")
    assert (error["type"], error["param"]) == ("overloaded", None)
    return error


# --- streams, cut anywhere -------------------------------------------------------------------------------------------


def test_the_captured_stream_has_what_these_tests_rest_on():
    assert CHAT.count(FINISH_USAGE) == CHAT.count(USAGE_CHUNK) == CHAT.count(b'"finish_reason":"') == 1
    assert FINAL_USAGE in USAGE_CHUNK


@pytest.mark.parametrize("ends", [bytes, crlf], ids=["lf", "crlf"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, CHAT), (USAGE, CHAT), (AMPLE, CHAT), (PLAIN, PLAIN_CHAT)],
    ids=["absent", "usage", "budget", "plain"],
)
def test_a_stream_cut_at_every_byte(ends, headers, expected):
    stream, expected = ends(CHAT), ends(expected)

    async def every_cut():
        for cut in range(len(stream) + 1):
            wire = await exchange(streaming([stream[:cut], stream[cut:]]), headers)
            assert (wire.status, wire.complete, wire.body) == (200, True, expected), cut
        wire = await exchange(streaming([stream[i : i + 1] for i in range(len(stream))]), headers)
        assert (wire.complete, wire.body) == (True, expected)

    asyncio.run(every_cut())


@pytest.mark.parametrize("ends", [bytes, crlf], ids=["lf", "crlf"])
def test_an_error_first_event_cut_at_every_byte(ends):
    stream = ends(b": keep-alive\n\n" + BUSY_EVENT)

    async def every_cut():
        for cut in range(len(stream) + 1):
            wire = await exchange(streaming([stream[:cut], stream[cut:]]), USAGE)
            assert assert_refused(wire, "engine-busy")["message"] == BUSY_MESSAGE, cut

    asyncio.run(every_cut())


def test_untouched_messages_stay_the_messages_they_were():
    events = [event + b"\n\n" for event in CHAT.split(b"\n\n")[:-1]]
    wire = run(streaming(events), USAGE)
    assert [message["body"] for message in wire.messages[1:]] == [*events, b""]


@pytest.mark.parametrize("stream", [b"", CHAT[:-1], CHAT + b'data: {"id', CHAT[:40]], ids=len)
@pytest.mark.parametrize("headers", [{}, PLAIN], ids=["absent", "plain"])
def test_incomplete_bytes_at_the_end_pass(stream, headers):
    wire = run(replying(start(), body(stream, more=False)), headers)
    expected = stream.replace(USAGE_CHUNK, b"").replace(FINISH_USAGE, FINAL_USAGE) if headers else stream
    assert (wire.status, wire.complete, wire.body) == (200, True, expected)


def test_an_unterminated_error_is_an_error():
    wire = run(replying(start(), body(b'data: {"error": {"message": "m", "code": 404}}', more=False)))
    assert (wire.status, error_of(wire)["message"]) == (404, "m")


def test_splitter_gives_whole_events_whatever_the_line_ends():
    stream = b"data: a\n\ndata: b\r\n\r\nevent: x\r\ndata: c\n\r\n: d\r\n\nrest"
    expected = [b"data: a\n\n", b"data: b\r\n\r\n", b"event: x\r\ndata: c\n\r\n", b": d\r\n\n"]
    for size in range(1, len(stream) + 1):
        splitter = EventSplitter()
        events = [event for at in range(0, len(stream), size) for event in splitter.feed(stream[at : at + size])]
        assert events == expected, size
        assert splitter.feed(b"", last=True) == [b"rest"]


# --- the first event -------------------------------------------------------------------------------------------------


def sent_before(gate: asyncio.Event, parts: list[bytes]):
    """An app that sends its start and `parts`, then waits for the gate before the rest of a short stream."""

    async def app(scope, receive, send):
        for message in [start(), *map(body, parts)]:
            await send(message)
        await gate.wait()
        await send(body(chunk() + DONE, more=False))

    return app


@pytest.mark.parametrize("ends", [bytes, crlf], ids=["lf", "crlf"])
@pytest.mark.parametrize("headers", [{}, PLAIN, AMPLE], ids=["absent", "plain", "budget"])
def test_nothing_goes_out_before_the_first_data_event_and_comments_are_dropped(ends, headers):
    async def scenario():
        gate, wire = asyncio.Event(), Wire()
        parts = [ends(b": keep-alive\n\n"), ends(b": keep-alive\n"), ends(b"\n"), ends(b"retry: 100\n\n")]
        task = asyncio.create_task(exchange(sent_before(gate, parts), headers, wire=wire))
        await asyncio.sleep(0.02)
        assert wire.messages == []
        gate.set()
        await task
        return wire

    wire = asyncio.run(scenario())
    assert (wire.status, wire.complete, wire.body) == (200, True, ends(b"retry: 100\n\n") + chunk() + DONE)


def test_comments_after_the_first_event_pass():
    stream = b": one\n\n" + chunk() + b": two\n\n" + DONE
    assert run(streaming([stream]), USAGE).body == stream.removeprefix(b": one\n\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), (404, 404), (500, 500), (599, 599), (200, 500), (600, 500), ('"x"', 500), ("null", 500)],
)
def test_an_error_first_event_becomes_its_status(code, status):
    payload = f'{{"error": {{"message": "m", "type": "T", "param": null, "code": {code}}}}}'.encode()
    wire = run(streaming([b"data: " + payload + b"\n\n", DONE]), USAGE)
    assert (wire.status, wire.body, wire.complete) == (status, payload, True)
    assert error_of(wire)["type"] == "T"
    assert wire.headers["x-request-id"] == "r1"


def test_an_error_without_a_code_is_a_500():
    assert run(streaming([b'data: {"error": {"message": "m"}}\n\n'])).status == 500


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"id":"c","choices":[],"error":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"{\\"error\\": {\\"code\\": 503}}"}}]}\n\n',
        b'data: {"choices":[{"error":{"code":503}}]}\n\n',
        b'data: not json, "error"\n\n',
        b'data: ["error"]\n\n',
    ],
)
def test_what_only_looks_like_an_error_passes(event):
    wire = run(streaming([event, DONE]), USAGE)
    assert (wire.status, wire.body) == (200, event + DONE)


def test_an_error_after_the_first_event_passes():
    stream = chunk() + BUSY_EVENT
    wire = run(streaming([chunk(), BUSY_EVENT]), PLAIN)
    assert (wire.status, wire.body) == (200, stream)


# --- overload is not sickness ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, USAGE, AMPLE], ids=["absent", "usage", "budget"])
def test_overload_as_status_and_as_first_event_becomes_429(headers):
    for app in json_reply(captured("overload-503.json"), 503), streaming([BUSY_EVENT]):
        wire = run(app, headers)
        assert assert_refused(wire, "engine-busy")["message"] == BUSY_MESSAGE
        assert wire.headers["x-request-id"] == "r1"


def test_overload_in_pieces_becomes_429():
    data = captured("overload-503.json")
    app = replying(start(503, "application/json"), body(data[:50]), body(data[50:], more=False))
    assert_refused(run(app), "engine-busy")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("draining-500.json", 500),
        ("err400.json", 400),
        ("err404.json", 404),
        ("errlen.json", 400),
        ("models.json", 200),
    ],
)
@pytest.mark.parametrize("headers", [{}, PLAIN, AMPLE], ids=["absent", "plain", "budget"])
def test_other_replies_are_untouched(name, status, headers):
    sent = [start(status, "application/json"), body(captured(name), more=False)]
    assert run(replying(*sent), headers).messages == sent


@pytest.mark.parametrize("data", [b'{"error":{"type":"InternalServerError","code":503}}', b"{}", b"", b"no json"])
def test_any_other_503_stays_503(data):
    sent = [start(503, "application/json"), body(data, more=False)]
    assert run(replying(*sent), AMPLE).messages == sent


def test_the_busy_type_with_another_status_stays_what_it_is():
    payload = captured("overload-503.json").replace(b"503", b"500").strip()
    wire = run(streaming([b"data: " + payload + b"\n\n"]))
    assert (wire.status, wire.body) == (500, payload)


def test_a_draining_engines_error_as_first_event_stays_500():
    wire = run(streaming([b"data: " + captured("draining-500.json").strip() + b"\n\n", DONE]), AMPLE)
    assert (wire.status, error_of(wire)["type"]) == (500, "InternalServerError")
    assert "x-plane-reason" not in wire.headers


# --- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-plane-first-token-budget": "2000"}, None),
        ({"x-plane-stream": "plain"}, None),
        ({"x-plane-stream": "plain", "x-plane-first-token-budget": "2000"}, 2.0),
        ({"x-plane-stream": "usage", "x-plane-first-token-budget": "2000;per-kib=40"}, 2.0),
        ({"x-plane-stream": "usage", "x-plane-first-token-budget": "2000;per-kib=40", "content-length": "102400"}, 6.0),
        (
            {"x-plane-stream": "usage", "x-plane-first-token-budget": "2000; per-kib=0.5", "content-length": "102400"},
            2.05,
        ),
    ],
)
def test_budget(headers, expected):
    assert first_token_budget({k.encode(): v.encode() for k, v in headers.items()}, now=1e9) == expected


@pytest.mark.parametrize(
    ("attempt", "elapsed", "expected"),
    [
        (1, 1500, 2.0),
        (1, 9000, 2.0),
        (2, 0, 2.0),
        (2, 1500, 0.5),
        (3, 1500, 0.5),
        (2, 2000, 0.0),
        (2, 9000, 0.0),
        (2, -500, 2.0),
    ],
)
def test_a_later_attempt_gets_what_is_left_of_the_budget(attempt, elapsed, expected):
    headers = {
        b"x-plane-stream": b"plain",
        b"x-plane-first-token-budget": b"2000",
        b"x-envoy-attempt-count": b"%d" % attempt,
        b"x-plane-started-ms": b"%d" % (1_700_000_000_000 - elapsed),
    }
    assert first_token_budget(headers, now=1_700_000_000) == pytest.approx(expected)


BUDGET = "x-plane-first-token-budget"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(BUDGET, value) for value in ("", "2s", "-1", "2000;per-kib=", "2000,40")],
        ("content-length", "-1"),
        ("x-plane-started-ms", "-"),
        ("x-plane-started-ms", "nan"),
    ],
)
def test_a_malformed_header_of_the_router_is_said_and_no_budget_applied(name, value, caplog):
    wire = run(streaming([CHAT]), {**USAGE, BUDGET: "0", name: value})
    assert (wire.status, wire.body) == (200, CHAT)
    assert name in caplog.text and repr(value.encode()) in caplog.text


class Engine:
    """Waits as vLLM's handlers do, for its work and for http.disconnect, and aborts on the latter."""

    def __init__(self, *before: dict) -> None:
        self.before = before
        self.aborted = False

    async def __call__(self, scope, receive, send):
        assert (await receive())["type"] == "http.request"
        for message in self.before:
            await send(message)
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"
        self.aborted = True
        for message in start(), body(chunk(), more=False):  # must not reach the client
            await send(message)


@pytest.mark.parametrize(
    "before",
    [[], [start()], [start(), body(b": keep-alive\n\n"), body(b'data: {"id"')]],
    ids=["nothing", "start", "part"],
)
def test_a_missed_budget_answers_429_and_aborts_the_engine(before, caplog):
    engine = Engine(*before)
    wire = run(engine, TOO_SHORT)
    assert "20 ms" in assert_refused(wire, "first-token-budget")["message"]
    assert engine.aborted
    assert caplog.text == ""


def test_the_429_does_not_wait_for_the_engine():
    async def scenario():
        release, wire = asyncio.Event(), Wire()

        async def slow_to_end(scope, receive, send):
            while (await receive())["type"] != "http.disconnect":
                pass
            await release.wait()

        task = asyncio.create_task(exchange(slow_to_end, TOO_SHORT, wire=wire))
        async with asyncio.timeout(HANG_GUARD):
            while len(wire.messages) < 2:
                await asyncio.sleep(0.005)
        assert not task.done()
        release.set()
        await task
        return wire

    assert_refused(asyncio.run(scenario()), "first-token-budget")


def test_an_engine_that_ignores_the_abort_is_cancelled_and_that_is_logged(caplog):
    cancelled = []

    async def deaf(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert_refused(run(deaf, TOO_SHORT, abort_grace=0.02), "first-token-budget")
    assert cancelled
    assert "cancelled" in caplog.text and "/v1/chat/completions" in caplog.text


def test_an_engine_that_fails_after_the_miss_is_logged_not_raised(caplog):
    async def failing(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        raise RuntimeError("abort failed")

    assert_refused(run(failing, TOO_SHORT), "first-token-budget")
    assert "abort failed" in caplog.text


def test_a_second_attempt_without_budget_left_is_refused_without_the_engine():
    async def never(scope, receive, send):
        raise AssertionError("called")

    began = f"{time.time() * 1000 - 5000:.0f}"
    headers = {**PLAIN, "x-plane-first-token-budget": "2000", "x-envoy-attempt-count": "2", "x-plane-started-ms": began}
    assert_refused(run(never, headers), "first-token-budget")


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        ([start(), body(chunk())], [body(chunk()), body(DONE, more=False)]),
        ([start(200, "application/json")], [body(b"{}", more=False)]),
        ([start(400, "application/json")], [body(b"{}", more=False)]),
    ],
    ids=["stream", "json", "error"],
)
def test_after_an_answer_the_budget_is_over(first, rest):
    async def slow_after_answer(scope, receive, send):
        for message in first:
            await send(message)
        await asyncio.sleep(0.1)
        for message in rest:
            await send(message)

    assert run(slow_after_answer, TOO_SHORT).messages == [*first, *rest]


def test_without_the_stream_header_there_is_no_budget():
    async def slow(scope, receive, send):
        await asyncio.sleep(0.05)
        await send(start())
        await send(body(CHAT, more=False))

    assert run(slow, {"x-plane-first-token-budget": "10"}).body == CHAT


# --- usage -----------------------------------------------------------------------------------------------------------


def tokens(wire: Wire) -> tuple[str | None, ...]:
    return tuple(wire.headers.get(f"x-plane-{kind}-tokens") for kind in ("prompt", "completion", "cached"))


def test_a_json_reply_carries_its_usage_as_headers():
    wire = run(json_reply(captured("chat.json")))
    assert (wire.status, wire.body, tokens(wire)) == (200, captured("chat.json"), ("16", "8", "0"))
    assert wire.headers["content-length"] == str(len(wire.body))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            '{"usage":{"prompt_tokens":7,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":5}},"x":1}',
            ("7", "2", "5"),
        ),
        (
            '{"data":[{"embedding":[0.1,2]}],"usage":{"prompt_tokens":7,"total_tokens":7,"completion_tokens":0}}',
            ("7", "0", "0"),
        ),
        ('{"data":[],"usage":{"prompt_tokens":7,"total_tokens":7}}', ("7", "0", "0")),
        ('{"results":[],"usage":{"total_tokens":9}}', ("9", "0", "0")),
        (
            '{"usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":1},"output_tokens":4},"user":null}',
            ("3", "4", "1"),
        ),
        # a tool's parameters with a member of that name, before and after the reply's own
        ('{"tools":[{"usage":{"prompt_tokens":1}}],"usage":{"prompt_tokens":7}}', ("7", "0", "0")),
        ('{"usage":{"prompt_tokens":7},"tools":[{"usage":{"prompt_tokens":1}}]}', ("7", "0", "0")),
        ('{"tools":[{"usage":{"prompt_tokens":1}}]}', (None, None, None)),
        # a transcription counts seconds
        ('{"text":"x","usage":{"type":"duration","seconds":3}}', (None, None, None)),
        ('{"usage":null}', (None, None, None)),
        ('{"usage":{"prompt_tokens":7}', (None, None, None)),
        ("[]", (None, None, None)),
    ],
)
def test_usage_headers(reply, expected):
    wire = run(json_reply(reply.encode()))
    assert (wire.body, tokens(wire)) == (reply.encode(), expected)


def test_what_a_model_wrote_is_never_taken_for_usage():
    spoof = '","usage":{"prompt_tokens":1,"completion_tokens":1}} ä'
    reply = json.dumps(
        {"usage": {"prompt_tokens": 70}, "message": spoof, spoof: 1}, separators=(",", ":"), ensure_ascii=False
    )
    assert dict(usage_headers(tokens_of(reply.encode())))[b"x-plane-prompt-tokens"] == b"70"


def test_a_reply_in_pieces_is_held_until_its_usage_is_known_and_keeps_its_pieces():
    data = captured("chat.json")
    sent = [start(200, "application/json"), body(data[:100]), body(data[100:]), body(b"", more=False)]
    wire = run(replying(*sent))
    assert wire.messages[1:] == sent[1:]
    assert tokens(wire) == ("16", "8", "0")


def test_a_reply_over_the_limit_passes_unheld():
    sent = [
        start(200, "application/json"),
        body(captured("chat.json")[:60]),
        body(captured("chat.json")[60:], more=False),
    ]
    assert run(replying(*sent), max_held_body=50).messages == sent


def test_usage_span_is_in_bytes_and_takes_only_the_documents_own():
    document = '{"ä":"ü","usage": {"é":1},"ö":"ß"}'.encode()
    at = usage_span(document)
    assert document[slice(*at)] == '{"é":1}'.encode()
    assert usage_span(b'{"usage":{"a":"\xff"},"b":"\xff"}') == (9, 18)
    assert usage_span(b'{"a":{"usage":{}}}') is None
    assert usage_span(b'{"a":1}') is None


MERGES = {
    "usage absent": (chunk(None, '"stop"'), chunk('{"prompt_tokens":5,"completion_tokens":9}', '"stop"')),
    "usage null": (chunk("null", '"stop"'), chunk('{"prompt_tokens":5,"completion_tokens":9}', '"stop"')),
    "usage of one choice": (
        chunk('{"prompt_tokens":5,"completion_tokens":4}', '"stop"'),
        chunk('{"prompt_tokens":5,"completion_tokens":9}', '"stop"'),
    ),
    "tool calls": (chunk(None, '"tool_calls"'), chunk('{"prompt_tokens":5,"completion_tokens":9}', '"tool_calls"')),
}


@pytest.mark.parametrize(("finish", "merged"), MERGES.values(), ids=MERGES.keys())
@pytest.mark.parametrize("ends", [bytes, crlf], ids=["lf", "crlf"])
def test_the_usage_chunk_moves_into_the_finish_chunk(finish, merged, ends):
    parts = [chunk(), finish, final('{"prompt_tokens":5,"completion_tokens":9}'), DONE]
    assert run(streaming(map(ends, parts)), PLAIN).body == ends(chunk() + merged + DONE)
    assert run(streaming(map(ends, parts)), USAGE).body == ends(b"".join(parts))
    assert run(streaming(map(ends, parts))).body == ends(b"".join(parts))


def test_with_two_choices_the_last_finish_chunk_gets_the_sum_and_the_first_stays():
    first, second = chunk('{"completion_tokens":4}', '"stop"'), chunk('{"completion_tokens":5}', '"length"')
    wire = run(streaming([first, chunk(), second, final('{"completion_tokens":9}'), DONE]), PLAIN)
    assert wire.body == first + chunk() + chunk('{"completion_tokens":9}', '"length"') + DONE


def test_text_that_looks_like_a_finish_or_a_usage_is_never_held():
    async def scenario():
        gate, wire = asyncio.Event(), Wire()
        tricky = chunk(content='{"finish_reason":"stop","choices":[],"usage":{"prompt_tokens":1}}')
        task = asyncio.create_task(exchange(sent_before(gate, [chunk(), tricky]), PLAIN, wire=wire))
        await asyncio.sleep(0.02)
        assert wire.body == chunk() + tricky
        gate.set()
        await task

    asyncio.run(scenario())


def test_a_finish_chunk_waits_for_one_event_only():
    async def scenario():
        gate, wire = asyncio.Event(), Wire()
        parts = [chunk(), chunk(None, '"stop"'), chunk(None, '"stop"', "second")]
        task = asyncio.create_task(exchange(sent_before(gate, parts), PLAIN, wire=wire))
        await asyncio.sleep(0.02)
        assert wire.body == parts[0] + parts[1]
        gate.set()
        await task
        assert wire.body == b"".join(parts) + chunk() + DONE

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "parts",
    [
        [chunk(), final('{"prompt_tokens":5}'), DONE],
        [chunk(), chunk(None, '"stop"'), DONE],
        [chunk(), chunk(None, '"stop"')],
        [chunk(), chunk(None, '"stop"'), final("null"), DONE],
        [chunk(), b'data: {"finish_reason":"x"}\ndata: {}\n\n', final('{"prompt_tokens":5}'), DONE],
        [chunk(), b'data: {"finish_reason":"x","a":{"usage":1}}\n\n', final('{"prompt_tokens":5}'), DONE],
    ],
    ids=["no finish chunk", "no usage chunk", "cut", "null usage", "two data lines", "usage elsewhere"],
)
def test_what_cannot_be_merged_is_passed_as_it_is(parts):
    assert run(streaming(parts), PLAIN).body == b"".join(parts)


def test_with_usage_changes_nothing_else():
    event = 'id: 7\r\ndata: {"t":"ä\\u00e4 1.0e0","usage":{"a":1},"z":"ö"}\r\n\r\n'.encode()
    assert with_usage(event, b'{"b":2}') == event.replace(b'{"a":1}', b'{"b":2}')
    assert with_usage(b"data: [DONE]\n\n", b"{}") is None


# --- the rest of ASGI ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, AMPLE], ids=["absent", "budget"])
@pytest.mark.parametrize("before", [[], [start()], [start(), body(chunk())]], ids=["nothing", "start", "event"])
def test_a_clients_disconnect_reaches_the_engine(headers, before):
    async def scenario():
        seen, left = [], asyncio.Event()

        async def engine(scope, receive, send):
            for message in before:
                await send(message)
            listening = asyncio.create_task(receive())
            seen.append((await listening)["type"])
            left.set()
            seen.append((await receive())["type"])

        await exchange(engine, headers, disconnect=left)
        return seen

    assert asyncio.run(scenario()) == ["http.request", "http.disconnect"]


def test_a_receive_begun_before_the_answer_gets_the_later_disconnect():
    async def scenario():
        left = asyncio.Event()

        async def engine(scope, receive, send):
            await receive()
            listening = asyncio.create_task(receive())
            await asyncio.sleep(0)
            await send(start())
            await send(body(chunk()))
            assert not listening.done()
            left.set()
            assert (await listening)["type"] == "http.disconnect"

        await exchange(engine, AMPLE, disconnect=left)

    asyncio.run(scenario())


@pytest.mark.parametrize("headers", [{}, AMPLE], ids=["absent", "budget"])
@pytest.mark.parametrize("before", [[], [start()], [start(), body(chunk())]], ids=["nothing", "start", "event"])
def test_exceptions_of_the_engine_propagate(headers, before):
    async def failing(scope, receive, send):
        for message in before:
            await send(message)
        raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        run(failing, headers)


def test_cancelling_the_request_cancels_the_engine():
    async def scenario():
        cancelled = asyncio.Event()

        async def engine(scope, receive, send):
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        task = asyncio.create_task(exchange(engine, AMPLE))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), HANG_GUARD)

    asyncio.run(scenario())


def test_a_listener_that_the_engine_cancels_leaves_no_receive_behind():
    async def scenario():
        async def engine(scope, receive, send):
            await receive()
            tasks = asyncio.all_tasks()
            listening = asyncio.create_task(receive())
            await asyncio.sleep(0)
            listening.cancel()
            await asyncio.wait({listening})
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == tasks
            for message in start(), body(CHAT, more=False):
                await send(message)

        return await exchange(engine, AMPLE)

    assert asyncio.run(scenario()).body == CHAT


OTHER = {"type": "http.response.trailers", "headers": []}


@pytest.mark.parametrize("headers", [{}, PLAIN, AMPLE], ids=["absent", "plain", "budget"])
@pytest.mark.parametrize(
    "before",
    [
        [],
        [start()],
        [start(), body(b"retry: 1\n\n"), body(b"data: x")],
        [start(), body(chunk())],
        [start(), body(chunk() + chunk(None, '"stop"') + b"data: ")],
        [start(200, "application/json"), body(b"{")],
        [start(404, "text/plain")],
    ],
    ids=["nothing", "start", "part", "event", "finish", "json", "text"],
)
def test_other_message_types_keep_their_place(headers, before):
    wire = run(replying(*before, OTHER), headers)
    assert wire.messages[-1] == OTHER
    assert b"".join(m.get("body", b"") for m in wire.messages) == b"".join(m.get("body", b"") for m in before)
    assert [m["type"] for m in wire.messages].count("http.response.start") == len(before[:1])


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1", "/version"])
def test_paths_outside_the_api_are_untouched(path):
    sent = [start(), body(BUSY_EVENT, more=False)]
    assert run(replying(*sent), TOO_SHORT, path=path).messages == sent


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_scopes_are_untouched(kind):
    async def scenario():
        seen = []

        async def app(*arguments):
            seen.append(arguments)

        arguments = ({"type": kind}, object(), object())
        await PlaneMiddleware(app)(*arguments)
        assert seen == [arguments]

    asyncio.run(scenario())


def test_the_module_needs_only_the_standard_library():
    source = Path(plane_middleware.__file__).read_text()
    tree = ast.parse(source, feature_version=(3, 10))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
