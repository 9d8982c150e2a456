"""The middleware inside uvicorn, the server that vLLM uses, seen from a socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import threading
import time

import pytest
import uvicorn
from asgi_harness import HANG_GUARD, body, captured, start
from plane_middleware import PlaneMiddleware

CHAT = captured("chat.sse")
SHORT = {"x-plane-stream": "usage", "x-plane-first-token-budget": "50"}
AMPLE = {"x-plane-stream": "usage", "x-plane-first-token-budget": "600000"}


class Engine:
    """Sends headers at once and tokens when `token` is set, as vLLM does; aborts on http.disconnect."""

    def __init__(self) -> None:
        self.headers_sent = threading.Event()
        self.token = threading.Event()
        self.aborted = threading.Event()
        self.calls = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.calls += 1
        while (await receive()).get("more_body"):
            pass
        work = asyncio.create_task(self.stream(send))
        gone = asyncio.create_task(receive())
        done, pending = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if work not in done:
            assert gone.result()["type"] == "http.disconnect"
            self.aborted.set()

    async def stream(self, send):
        await send(start())
        self.headers_sent.set()
        while not self.token.is_set():
            await asyncio.sleep(0.005)
        await send(body(CHAT))
        await send(body(b"", more=False))


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def port(engine):
    config = uvicorn.Config(PlaneMiddleware(engine), port=0, lifespan="off", log_level="warning", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + HANG_GUARD
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started, "uvicorn did not start on a loopback port"
    yield server.servers[0].sockets[0].getsockname()[1]
    engine.token.set()
    server.should_exit = True
    thread.join(HANG_GUARD)
    assert not thread.is_alive()


@pytest.fixture
def client(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_GUARD)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, headers: dict[str, str], size: int = 2) -> None:
    client.request("POST", "/v1/chat/completions", b"x" * size, headers)


def answer(client: http.client.HTTPConnection) -> tuple[int, bytes, http.client.HTTPResponse]:
    response = client.getresponse()
    return response.status, response.read(), response


@pytest.mark.parametrize("headers", [{}, AMPLE], ids=["absent", "budget"])
def test_headers_come_with_the_first_token(client, engine, headers):
    ask(client, headers)
    assert engine.headers_sent.wait(HANG_GUARD)
    assert select.select([client.sock], [], [], 0.1)[0] == []
    engine.token.set()
    status, data, response = answer(client)
    assert (status, data) == (200, CHAT)
    assert response.headers["content-type"].startswith("text/event-stream")


def test_a_miss_answers_429_aborts_the_engine_and_leaves_the_connection_usable(client, engine):
    ask(client, SHORT)
    status, data, response = answer(client)
    assert (status, response.headers["x-plane-reason"]) == (429, "first-token-budget")
    assert json.loads(data)["error"]["code"] == 429
    assert engine.aborted.wait(HANG_GUARD)
    connection = client.sock
    engine.token.set()
    ask(client, AMPLE)
    assert answer(client)[:2] == (200, CHAT)
    assert client.sock is connection


@pytest.mark.parametrize("size", [2, 200_000])
def test_a_refusal_without_the_engine_leaves_the_connection_usable(client, engine, size):
    spent = {**SHORT, "x-envoy-attempt-count": "2", "x-plane-started-ms": "1000"}
    ask(client, spent, size)
    assert answer(client)[0] == 429
    assert engine.calls == 0
    engine.token.set()
    ask(client, AMPLE)
    assert answer(client)[:2] == (200, CHAT)


@pytest.mark.parametrize("headers", [{}, AMPLE], ids=["absent", "budget"])
def test_a_client_that_leaves_before_the_first_token_aborts_the_engine(client, engine, headers):
    ask(client, headers)
    assert engine.headers_sent.wait(HANG_GUARD)
    client.close()
    assert engine.aborted.wait(HANG_GUARD)
