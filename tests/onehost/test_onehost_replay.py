"""The replayed engine looks like captured vLLM, and its faults are what they say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from inference_plane.onehost.processes import free_port
from inference_plane.onehost.replay import Replay, ReplayEngine
from inference_plane.onehost.serving import load_middleware
from inference_plane.onehost.surface import DRAINING, OVERLOADED

DATA = Path(__file__).parents[1] / "data" / "vllm-0.32"
CHAT = {"model": "clinical-summary", "messages": [{"role": "user", "content": "hello"}]}
STREAM = {**CHAT, "stream": True}
UNSTABLE = {"id", "created"}  # of a captured reply


@pytest.fixture
def engine() -> Iterator[ReplayEngine]:
    with ReplayEngine(DATA, max_num_seqs=2, max_num_queued_reqs=3) as running:
        yield running


def _post(engine: ReplayEngine, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, Any]:
    """Status, headers and text of one reply; 0 where the connection ended."""

    async def post() -> tuple[int, Any, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                engine.url + path, data=data, headers={"content-type": "application/json", **headers}
            ) as reply,
        ):
            return reply.status, reply.headers, await reply.text()

    return asyncio.run(asyncio.wait_for(post(), 30))


def _get(engine: ReplayEngine, path: str) -> tuple[int, str]:
    async def get() -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(engine.url + path) as reply:
            return reply.status, await reply.text()

    return asyncio.run(asyncio.wait_for(get(), 30))


def _wait(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"hang: {what}"
        time.sleep(0.01)


def _events(text: str) -> list[Any]:
    return [json.loads(line[6:]) if line[6:] != "[DONE]" else "[DONE]" for line in text.splitlines() if line]


def _stable(value: Any) -> Any:
    return {key: item for key, item in value.items() if key not in UNSTABLE} if isinstance(value, dict) else value


def _captured(name: str) -> Any:
    return json.loads((DATA / name).read_text())


def test_a_stream_is_the_captured_one(engine: ReplayEngine) -> None:
    status, headers, text = _post(
        engine, {**STREAM, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    )
    captured = (DATA / "chat.sse").read_text()
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert [_stable(event) for event in _events(text)] == [_stable(event) for event in _events(captured)]
    assert re.sub(r'"id":"[^"]*"|"created":\d+', "", text) == re.sub(
        r'"id":"[^"]*"|"created":\d+', "", captured.rstrip("\n") + "\n\n"
    )


def test_a_reply_is_the_captured_one(engine: ReplayEngine) -> None:
    status, headers, text = _post(engine, CHAT)
    captured, reply = _captured("chat.json"), json.loads(text)
    assert (status, headers["content-type"]) == (200, "application/json")
    text_of = [
        json.loads(line[6:])["choices"] for line in (DATA / "chat.sse").read_text().splitlines() if '"delta"' in line
    ]
    assert reply["choices"][0]["message"].pop("content") == "".join(item[0]["delta"]["content"] for item in text_of)
    captured["choices"][0]["message"].pop("content")  # another generation than the captured stream
    assert _stable(reply) == _stable(captured)


def test_each_chunk_counts_so_far_and_the_usage_chunk_ends_a_stream(engine: ReplayEngine) -> None:
    *chunks, usage, done = _events(_post(engine, STREAM)[2])
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 16, "total_tokens": 24, "completion_tokens": 8}
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, *range(1, 9)]


def test_each_choice_is_a_sequence_with_a_prompt_of_its_own(engine: ReplayEngine) -> None:
    *chunks, usage, _ = _events(_post(engine, {**STREAM, "n": 3})[2])
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1, 2}
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (16, 24)
    whole = json.loads(_post(engine, {**CHAT, "n": 3})[2])
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2] and whole["usage"]["completion_tokens"] == 24
    assert (engine.surface.counters.prompt_tokens, engine.surface.counters.generation_tokens) == (96, 48)


def test_embeddings_count_the_words_of_their_inputs(engine: ReplayEngine) -> None:
    body = {"model": CHAT["model"], "input": ["one two", "three"]}
    reply = json.loads(_post(engine, body, "/v1/embeddings")[2])
    assert len(reply["data"]) == 2 and reply["usage"]["prompt_tokens"] == 3 == engine.surface.counters.prompt_tokens


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        (b"{", 400, "err400.json"),
        ({**CHAT, "model": "nope"}, 404, "err404.json"),
        ({**CHAT, "max_tokens": 5000}, 400, "errlen.json"),
    ],
)
def test_refusals_are_the_captured_ones(engine: ReplayEngine, body: Any, status: int, name: str) -> None:
    found, _, text = _post(engine, body)
    assert (found, json.loads(text)) == (status, _captured(name))


@pytest.mark.parametrize(
    ("fault", "status", "name", "stated"),
    [
        ("overloaded", 503, "overload-503.json", OVERLOADED),
        ("draining", 500, "draining-500.json", DRAINING),
    ],
)
def test_faults_before_the_headers_are_the_captured_ones(
    engine: ReplayEngine, fault: str, status: int, name: str, stated: Any
) -> None:
    engine.behaviour.fault = fault
    for body in (CHAT, STREAM):
        found, _, text = _post(engine, body)
        assert (found, json.loads(text)) == (status, _captured(name))
    assert _get(engine, "/health")[0] == 200
    assert stated == _captured(name)


def test_overload_after_the_headers_is_the_captured_one(engine: ReplayEngine) -> None:
    engine.behaviour.fault = "overloaded-after-headers"
    status, _, text = _post(engine, STREAM)
    assert (status, text.rstrip()) == (200, (DATA / "overload-after-headers.sse").read_text().rstrip())
    assert _post(engine, CHAT)[0] == 503


def test_models_have_the_captured_shape(engine: ReplayEngine) -> None:
    model, captured = json.loads(_get(engine, "/v1/models")[1])["data"][0], _captured("models.json")["data"][0]
    assert list(model) == list(captured) and list(model["permission"][0]) == list(captured["permission"][0])
    assert (model["id"], model["max_model_len"]) == ("clinical-summary", 1024)


def test_metrics_are_a_part_of_the_captured_ones(engine: ReplayEngine) -> None:
    def samples(text: str) -> set[str]:
        return {line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#")}

    ours = samples(_get(engine, "/metrics")[1])
    assert ours <= samples((DATA / "metrics-saturated.txt").read_text())
    assert 'vllm:num_requests_waiting{engine="0",model_name="clinical-summary"}' in ours


def test_headers_of_a_stream_leave_before_its_first_token(engine: ReplayEngine) -> None:
    engine.behaviour.first_token_delay = 600

    async def leave_after_headers() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{engine.url}/v1/chat/completions", json=STREAM) as reply,
        ):
            return reply.status

    assert asyncio.run(asyncio.wait_for(leave_after_headers(), 30)) == 200
    _wait(lambda: engine.requests[0].finished, "the abort was not noticed")
    assert engine.requests[0].aborted
    assert (
        'request_success_total{engine="0",finished_reason="abort",model_name="clinical-summary"} 1.0'
        in engine.surface.metrics()
    )
    assert engine.surface.queue.running == 0


def test_a_full_engine_runs_some_queues_some_and_refuses_the_rest(engine: ReplayEngine) -> None:
    async def crowd() -> tuple[list[int], str]:
        async with aiohttp.ClientSession() as session:

            async def post() -> int:
                async with session.post(
                    f"{engine.url}/v1/chat/completions", json={**CHAT, "x_test": {"answer_delay": 600}}
                ) as reply:
                    return reply.status

            held = [asyncio.ensure_future(post()) for _ in range(3)]
            while engine.surface.queue.running + engine.surface.queue.waiting < 3:
                await asyncio.sleep(0.01)
            refused = [await post() for _ in range(2)]
            metrics = engine.surface.metrics()
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            while engine.surface.queue.running + engine.surface.queue.waiting:
                await asyncio.sleep(0.01)
            return refused, metrics

    refused, metrics = asyncio.run(asyncio.wait_for(crowd(), 30))
    assert refused == [503, 503]
    for name, value in (("num_requests_running", 2), ("num_requests_waiting", 1)):
        assert f'vllm:{name}{{engine="0",model_name="clinical-summary"}} {value}.0' in metrics
    assert 'vllm:admission_rejections_total{model_name="clinical-summary",reason="max_num_queued_reqs"} 2.0' in metrics
    assert _post(engine, CHAT)[0] == 200


def test_one_request_may_behave_differently(engine: ReplayEngine) -> None:
    marked = {**CHAT, "messages": [{"role": "user", "content": 'hello [[x_test {"tokens": 3}]]'}]}
    assert json.loads(_post(engine, marked)[2])["usage"]["completion_tokens"] == 3
    assert json.loads(_post(engine, {**CHAT, "x_test": {"tokens": 2}})[2])["usage"]["completion_tokens"] == 2
    assert json.loads(_post(engine, {**CHAT, "max_tokens": 5})[2])["usage"]["completion_tokens"] == 5
    assert json.loads(_post(engine, CHAT)[2])["usage"]["completion_tokens"] == 8
    status, _, text = _post(engine, {**CHAT, "x_test": {"speed": 3}})
    assert status == 400 and "unknown behaviour speed" in text


def test_what_arrived_is_recorded(engine: ReplayEngine) -> None:
    _post(engine, STREAM, **{"X-Request-Id": "r-1", "x-team": "appeals"})
    request = engine.requests[0]
    _wait(lambda: request.finished, "the engine has noted the end of the request")
    assert request.json == STREAM and request.headers["x-team"] == "appeals"
    assert (request.status, request.prompt_tokens, request.completion_tokens, request.aborted) == (200, 16, 8, False)
    assert _events(_post(engine, STREAM, **{"X-Request-Id": "r-2"})[2])[0]["id"] == "chatcmpl-r-2"


def test_text_completions(engine: ReplayEngine) -> None:
    _, _, text = _post(engine, {"model": "clinical-summary", "prompt": "hello", "stream": True}, "/v1/completions")
    first, *_, usage, _ = _events(text)
    assert (
        first["object"] == "text_completion"
        and "text" in first["choices"][0]
        and usage["usage"]["completion_tokens"] == 8
    )


@pytest.mark.parametrize("fault", ["reset", "cut"])
def test_a_reset_is_a_reset(engine: ReplayEngine, fault: str) -> None:
    engine.behaviour.fault = fault
    with pytest.raises((aiohttp.ClientError, ConnectionResetError)):
        _post(engine, STREAM)


def test_a_silent_engine_accepts_and_never_answers(engine: ReplayEngine) -> None:
    engine.behaviour.fault = "silent"

    async def both() -> None:
        async with aiohttp.ClientSession() as session:
            for path in ("/health", "/v1/models"):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2), session.get(engine.url + path) as reply:
                        pytest.fail(f"{path} answered {reply.status}")

    asyncio.run(both())


def test_a_dead_engine_refuses_connections_and_comes_back_on_its_address(engine: ReplayEngine) -> None:
    engine.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        _get(engine, "/health")
    engine.start()
    assert _get(engine, "/health")[0] == 200


def test_an_engine_that_comes_back_queues_as_a_new_one(engine: ReplayEngine) -> None:
    async def crowd() -> list[int]:
        async with aiohttp.ClientSession() as session:

            async def post() -> int:
                body = {**CHAT, "x_test": {"answer_delay": 0.2}}
                async with session.post(f"{engine.url}/v1/chat/completions", json=body) as reply:
                    return reply.status

            return await asyncio.gather(*(post() for _ in range(3)))  # two run, one waits

    for _ in range(2):
        assert asyncio.run(asyncio.wait_for(crowd(), 30)) == [200, 200, 200]
        engine.stop()
        engine.start()


def test_unknown_settings_are_refused_by_name(engine: ReplayEngine) -> None:
    with pytest.raises(ValueError, match="unknown fault 'slow': the faults are none, overloaded"):
        engine.behaviour.update({"fault": "slow"})
    with pytest.raises(ValueError, match="token_delay must be a number of at least 0, not -1"):
        engine.behaviour.update({"token_delay": -1})


def test_the_middleware_wraps_the_surface(tmp_path: Path) -> None:
    file = tmp_path / "middleware.py"
    file.write_text("""
class PlaneMiddleware:
    def __init__(self, app, report, facts):
        self.app, self.report = app, report
    async def __call__(self, scope, receive, send):
        async def marked(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-wrapped", b"yes"))
                self.report(type(scope["app"].state.engine_client).__name__)
            await send(message)
        await self.app(scope, receive, marked)
""")
    with ReplayEngine(DATA, middleware=file) as engine:
        assert _post(engine, CHAT)[1]["x-wrapped"] == "yes"
        assert engine.lines == ["Surface"]


def test_a_middleware_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such Python file"):
        load_middleware(tmp_path / "none.py", None)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="no class PlaneMiddleware"):
        load_middleware(tmp_path / "empty.py", None)


def test_a_taken_address_is_named() -> None:
    port = free_port()
    with ReplayEngine(DATA, port=port), pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        ReplayEngine(DATA, port=port).start()


def test_a_port_may_serve_metrics_alone() -> None:
    port = free_port()
    with ReplayEngine(DATA, metrics_port=port) as engine:

        async def get(path: str) -> int:
            async with aiohttp.ClientSession() as session, session.get(f"http://{engine.host}:{port}{path}") as reply:
                return reply.status

        assert [asyncio.run(get(path)) for path in ("/metrics", "/v1/models")] == [200, 404]


def test_a_capture_without_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat.sse").write_text("data: [DONE]\n")
    with pytest.raises(ValueError, match="not a captured chat stream"):
        Replay.from_capture(tmp_path / "chat.sse")
