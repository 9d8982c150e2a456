"""The line that the middleware leaves of each request: what it cost, as the engine's own counters have it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from asgi_harness import HANG_GUARD, body, captured, json_reply, start, streaming
from plane_middleware import PlaneMiddleware

PATH = "/v1/chat/completions"
ROUTER = {"x-request-id": "r1", "x-envoy-attempt-count": "2"}
CHAT = captured("chat.sse")
EVENTS = [event + b"\n\n" for event in CHAT.split(b"\n\n") if event]


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", **members}, separators=(",", ":")).encode() + b"\n\n"


def chunk(index: int, completion: int, prompt: int = 7, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": "w"}, "finish_reason": finish}
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return event(choices=[choice], usage=usage)


def final(prompt: int, completion: int, cached: int | None = None) -> bytes:
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return event(choices=[], usage=usage)


async def _ask(
    app: Any,
    headers: dict[str, str],
    path: str,
    leaves: asyncio.Event | None,
    engine: Any,
    options: dict[str, Any],
    request: bytes = b"{}",
) -> list[str]:
    lines: list[str] = []
    waiting = [{"type": "http.request", "body": request, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop()
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "path": path,
        "method": "POST",
        "headers": [(name.encode(), value.encode()) for name, value in {**ROUTER, **headers}.items()],
    }
    if engine is not None:
        scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
    middleware = PlaneMiddleware(app, report=lines.append, **options)
    try:
        await asyncio.wait_for(middleware(scope, receive, send), HANG_GUARD)
    except RuntimeError:
        pass
    return lines


def line(
    app: Any, headers: dict[str, str] = {}, *, path: str = PATH, engine: Any = None, **options: Any
) -> dict[str, Any]:
    (only,) = asyncio.run(_ask(app, headers, path, None, engine, options))
    return json.loads(only)


def abandoned(parts: list[bytes], *, first: dict[str, Any] | None = None, engine: Any = None) -> dict[str, Any]:
    """The line of a request whose client leaves after these parts; the app then ends without a last message."""

    async def run() -> list[str]:
        leaves = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            if first:
                await send(first)
            for part in parts:
                await send(body(part))
            leaves.set()
            assert (await receive())["type"] == "http.disconnect"
            if engine is not None:
                engine.output_processor.request_states.clear()  # as vLLM's abort does

        return await _ask(app, {}, PATH, leaves, engine, {})

    (only,) = asyncio.run(run())
    return json.loads(only)


def tokens(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[f"{kind}_tokens"] for kind in ("prompt", "completion", "cached", "prefilled"))


def test_a_line_has_what_the_router_can_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANE_MODEL", "summary")
    monkeypatch.setenv("PLANE_MODEL_VERSION", "v7")
    monkeypatch.setenv("HOSTNAME", "summary-0")
    found = line(streaming([CHAT]))
    assert found.pop("time").endswith("Z") and found.pop("duration_ms") >= 0
    assert found == {
        "type": "engine",
        "request_id": "r1",
        "attempt": 2,
        "model": "summary",
        "model_version": "v7",
        "pod": "summary-0",
        "path": PATH,
        "status": 200,
        "outcome": "finished",
        "prompt_tokens": 16,
        "completion_tokens": 8,
        "cached_tokens": 0,
        "prefilled_tokens": 16,
        "usage_source": "stream",
    }


@pytest.mark.parametrize("kind", [{}, {"x-plane-stream": "usage"}, {"x-plane-stream": "plain"}])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_counted_however_it_is_cut(kind: dict[str, str], size: int) -> None:
    parts = [CHAT[i : i + size] for i in range(0, len(CHAT), size)]
    assert tokens(line(streaming(parts), kind)) == (16, 8, 0, 16)


def test_a_json_reply_and_one_with_several_choices() -> None:
    assert tokens(line(json_reply(captured("chat.json")))) == (16, 8, 0, 16)
    reply = json.loads(captured("chat.json"))
    reply["choices"] = [{**reply["choices"][0], "index": index} for index in range(3)]
    reply["usage"] = {"prompt_tokens": 16, "completion_tokens": 24, "prompt_tokens_details": {"cached_tokens": 5}}
    found = line(json_reply(json.dumps(reply, separators=(",", ":")).encode()))
    assert tokens(found) == (16, 24, 5, 48) and found["usage_source"] == "reply"


def test_embeddings_have_prompts_alone() -> None:
    vectors = b'[{"index":0,"embedding":[0.1]},{"index":1,"embedding":[0.1]}]'
    data = b'{"data":%s,"usage":{"prompt_tokens":9,"total_tokens":9}}' % vectors
    assert tokens(line(json_reply(data), path="/v1/embeddings")) == (9, 0, 0, 9)


def test_the_responses_api_counts_at_its_end() -> None:
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 3}}}
    last = b"event: response.completed\ndata: " + json.dumps(done).encode() + b"\n\n"
    events = [b"event: response.created\ndata: {}\n\n", last]
    assert tokens(line(streaming(events), path="/v1/responses")) == (5, 3, 0, 5)


def test_a_stream_with_several_choices_counts_each() -> None:
    parts = [chunk(0, 0), chunk(1, 0), chunk(2, 0), chunk(0, 1), chunk(1, 1), chunk(2, 1), chunk(1, 2), final(7, 4, 3)]
    assert tokens(line(streaming(parts))) == (7, 4, 3, 21)


@pytest.mark.parametrize(
    ("request_body", "prefilled"),
    [(b'{"prompt":["a","b"]}', 9), (b'{"prompt":["a","b"], "n" : 2}', 18), (b'{"prompt":"say \\"n\\":7"}', 9)],
)
def test_choices_of_a_text_completion_may_be_prompts(request_body: bytes, prefilled: int) -> None:
    choices = [{"index": index, "text": "w", "finish_reason": "stop"} for index in range(2)]
    reply = {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await json_reply(json.dumps(reply, separators=(",", ":")).encode())(scope, receive, send)

    (only,) = asyncio.run(_ask(app, {}, "/v1/completions", None, None, {}, request_body))
    assert tokens(json.loads(only)) == (9, 4, 0, prefilled)


def test_a_stream_of_several_prompts_that_is_left_counts_those_that_began() -> None:
    parts = [chunk(0, 1, 5), chunk(1, 2, 5), chunk(2, 1, 6), chunk(3, 0, 6)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        for part in parts:
            await send(body(part))

    (only,) = asyncio.run(_ask(app, {}, "/v1/completions", None, None, {}, b'{"prompt":["a","b"],"n":2}'))
    assert tokens(json.loads(only)) == (11, 4, 0, 16)


@pytest.mark.parametrize(
    ("parts", "counted"),
    [
        (EVENTS[:1], (0, 0, 0, 0)),  # the role alone: no token yet
        (EVENTS[:4], (16, 3, 0, 16)),
        ([chunk(0, 0), chunk(1, 0), chunk(0, 1), chunk(0, 2)], (7, 2, 0, 7)),  # the second choice waits for its turn
        ([chunk(0, 1), chunk(1, 1), chunk(1, 2)], (7, 3, 0, 14)),
    ],
)
def test_a_stream_that_its_client_leaves_costs_what_its_chunks_said(
    parts: list[bytes], counted: tuple[int, ...]
) -> None:
    found = abandoned(parts, first=start())
    assert found["outcome"] == "aborted" and tokens(found) == counted and found["usage_source"] == "stream"


def test_a_request_that_its_engine_never_read_cost_nothing() -> None:
    async def run() -> list[str]:
        leaves = asyncio.Event()
        leaves.set()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            pass  # as a server whose client is gone before the whole body is there

        return await _ask(app, {}, PATH, leaves, None, {})

    found = json.loads(asyncio.run(run())[0])
    assert found["outcome"] == "aborted" and tokens(found) == (0, 0, 0, 0)


def test_of_a_reply_that_never_came_nothing_is_claimed() -> None:
    found = abandoned([])
    assert (found["outcome"], found["status"], found["usage_source"]) == ("aborted", None, None)
    assert tokens(found) == (None, None, None, None)


# --- vLLM's own states -----------------------------------------------------------------------------------------------


def state(request_id: str, prompt: int, generated: int, parent: Any = None, cached: int = 0) -> SimpleNamespace:
    """As RequestState of vLLM 0.32."""
    return SimpleNamespace(
        external_req_id=request_id,
        prompt_len=prompt,
        is_prefilling=not generated,
        num_cached_tokens=cached,
        parent_req=parent,
        stats=SimpleNamespace(num_generation_tokens=generated),
    )


def client(*states: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(
        output_processor=SimpleNamespace(request_states={str(number): one for number, one in enumerate(states)})
    )


def test_vllms_own_states_are_more_exact_than_the_last_chunk() -> None:
    """A step may be counted that was never sent; other requests' states are theirs."""
    engine = client(state("chatcmpl-r1", 16, 4, cached=8), state("chatcmpl-r2", 9, 9))
    found = abandoned(EVENTS[:3], first=start(), engine=engine)
    assert tokens(found) == (16, 4, 8, 16) and found["usage_source"] == "engine"


def test_a_reply_that_never_came_is_known_to_the_engine() -> None:
    assert tokens(abandoned([], engine=client(state("chatcmpl-r1", 16, 5)))) == (16, 5, 0, 16)
    assert tokens(abandoned([], engine=client(state("chatcmpl-r1", 16, 0)))) == (0, 0, 0, 0)
    two_prompts = client(state("cmpl-r1-0", 5, 2), state("cmpl-r1-1", 6, 3))
    assert tokens(abandoned([], engine=two_prompts)) == (11, 5, 0, 11)


def test_a_choice_that_ended_before_the_client_left_is_counted() -> None:
    parent = SimpleNamespace(output_aggregator=[SimpleNamespace(token_ids=[1, 2, 3]), None])
    assert tokens(abandoned([], engine=client(state("chatcmpl-r1", 16, 5, parent)))) == (16, 8, 0, 32)


def test_a_choice_of_a_stream_that_ended_is_counted() -> None:
    engine = client(state("chatcmpl-r1", 7, 2), state("chatcmpl-r1", 7, 1))

    async def run() -> list[str]:
        leaves = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            for message in (start(), body(chunk(0, 1)), body(chunk(1, 1)), body(chunk(0, 2, finish="stop"))):
                await send(message)
            engine.output_processor.request_states.pop("0")
            leaves.set()
            await receive()

        return await _ask(app, {}, PATH, leaves, engine, {})

    assert tokens(json.loads(asyncio.run(run())[0])) == (7, 3, 0, 14)


@pytest.mark.parametrize(
    "engine", [SimpleNamespace(), client(SimpleNamespace(external_req_id="chatcmpl-r1")), client()]
)
def test_a_vllm_that_keeps_its_states_elsewhere_leaves_what_was_sent(engine: Any) -> None:
    async def run() -> list[str]:
        leaves = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(start())
            await send(body(EVENTS[0] + EVENTS[1]))
            leaves.set()
            await receive()

        return await _ask(app, {}, PATH, leaves, engine, {})

    found = json.loads(asyncio.run(run())[0])
    assert tokens(found) == (16, 1, 0, 16) and found["usage_source"] == "stream"


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_refusals_cost_nothing() -> None:
    busy = line(json_reply(captured("overload-503.json"), 503))
    assert (busy["outcome"], busy["status"], *tokens(busy)) == ("refused", 429, 0, 0, 0, 0)
    bad = line(json_reply(captured("err400.json"), 400))
    assert (bad["outcome"], bad["status"], *tokens(bad)) == ("refused", 400, 0, 0, 0, 0)


def test_errors_cost_what_was_sent_before_them() -> None:
    late = line(streaming([EVENTS[0] + EVENTS[1], b'data: {"error":{"message":"x","code":500}}\n\n']))
    assert (late["outcome"], late["status"], *tokens(late)) == ("error", 200, 16, 1, 0, 16)

    async def draining_app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await json_reply(captured("draining-500.json"), 500)(scope, receive, send)

    draining = line(draining_app)
    assert (draining["outcome"], draining["status"], draining["usage_source"]) == ("error", 500, None)

    async def raising(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("engine")

    assert line(raising)["outcome"] == "error"


def test_a_missed_budget_says_what_the_engine_spent() -> None:
    engine = client(state("chatcmpl-r1", 16, 0))

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        one = engine.output_processor.request_states.popitem()[1]
        one.is_prefilling, one.stats.num_generation_tokens = False, 1  # its first token came while it was told

    found = line(slow, {"x-plane-stream": "usage", "x-plane-first-token-budget": "30"}, engine=engine)
    assert (found["outcome"], found["status"], *tokens(found)) == ("first-token-budget", 429, 16, 1, 0, 16)
    spent = {"x-plane-stream": "usage", "x-plane-first-token-budget": "30", "x-plane-started-ms": "1"}
    assert tokens(line(slow, spent, engine=None)) == (0, 0, 0, 0)


def test_the_default_line_goes_to_stdout_whole(capfd: pytest.CaptureFixture[str]) -> None:
    scope = {"type": "http", "path": PATH, "method": "POST", "headers": []}

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            pass

        await PlaneMiddleware(streaming([CHAT]))(scope, receive, send)

    asyncio.run(run())
    out = capfd.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["request_id"] is None


def test_no_line_has_a_word_of_prompt_or_completion() -> None:
    found = json.dumps(line(streaming([CHAT])))
    assert "documen" not in found and '"content"' not in found
