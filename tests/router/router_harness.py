"""What the router's tests share: a catalogue, a client that times what it sees, and waits that end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import pytest

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.serving import Receive, Scope, Send, read_body, send_end, send_event, send_json, send_start

T = TypeVar("T")

HANG = 30.0  # seconds; a guard, far above anything that is expected
CHAT = "/v1/chat/completions"
LONG_SECONDS = 60  # of an answer that is under way while everything else is tested

REGION_TARGET = "openai.gpt-oss-120b-1:0"
GEOGRAPHY_TARGET = "eu.mistral.pixtral-large-2502-v1:0"
ANYWHERE_TARGET = "global.openai.gpt-oss-20b-1:0"
BUDGET_MS = 1000


def model(name: str, residency: str, target: str | None = None, replicas: int = 1, **more: Any) -> dict[str, Any]:
    fallback = {"fallback": {"model": target, "retention": "none"}} if target else {}
    return {
        "source": f"s3://models/{name}/v7/",
        "weightsGiB": 15.3,
        "accelerator": "l40s",
        "maxModelLen": 16384,
        "residency": residency,
        "replicas": {"min": replicas},
        **fallback,
        **more,
    }


#: One model of each kind. `night` is left alone: the answer that takes a minute runs there.
MODELS: dict[str, dict[str, Any]] = {
    "summary": model(
        "summary",
        "region",
        REGION_TARGET,
        replicas=2,
        servedNames=["org/summary:8b", "summary-latest"],
        firstTokenBudget=f"{BUDGET_MS}ms",
    ),
    "intake": model("intake", "cluster"),
    "letters": model("letters", "geography", GEOGRAPHY_TARGET),
    "triage": model("triage", "anywhere", ANYWHERE_TARGET, firstTokenBudget=f"{BUDGET_MS}ms"),
    "embedder": model("embedder", "cluster", api=["embeddings"]),
    "cached": model("cached", "cluster", api=["chat"]),
    "night": model("night", "region", REGION_TARGET, firstTokenBudget=f"{BUDGET_MS}ms"),
}


def catalogue(models: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """The values of a router for these models, which asks for no token."""
    return {
        "auth": {"mode": "none"},
        "global": {
            "aws": {"region": "eu-central-1"},
            "tls": {"mode": "none"},
            "residency": {"geography": "eu"},
            "network": {"policies": False},
            "models": dict(models),
        },
        **values,
    }


#: Health news in fractions of a second, so that a test does not wait for its predecessor's faults to heal.
QUICK = {
    "health": {"interval": "200ms", "timeout": "500ms", "unhealthyThreshold": 2, "ejectionTime": "300ms"},
    "dns": {"refreshRate": "200ms"},
}


async def counting_engine(scope: Scope, receive: Receive, send: Send) -> None:
    """An engine that counts: embeddings, and chats whose prompt came from the prefix cache in part."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/health":
        return await send_json(send, 200, b"")
    body = json.loads(await read_body(receive) or b"{}")
    head = {"id": "counted", "created": 0, "model": body.get("model")}
    if scope["path"] == "/v1/embeddings":
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5]}]
        usage = {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0, "prompt_tokens_details": None}
        return await send_json(send, 200, {**head, "object": "list", "data": data, "usage": usage})
    usage = {
        "prompt_tokens": 40,
        "total_tokens": 45,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "counted"}, "finish_reason": "stop"}
        return await send_json(send, 200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunk = {**head, "object": "chat.completion.chunk"}
    await send_start(send, 200, "text/event-stream; charset=utf-8")
    await send_event(send, {**chunk, "choices": [{"index": 0, "delta": {"content": "c"}, "finish_reason": None}]})
    await send_event(send, {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    await send_event(send, {**chunk, "choices": [], "usage": usage})
    await send_event(send, "[DONE]")
    await send_end(send)


# --- client ----------------------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """What a client saw. `first_byte` and `total` are seconds from the call; `error` is why a body ended too early."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first_byte: float
    total: float
    error: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each server-sent event; `[DONE]` as it is."""
        data = [event[6:] for event in self.body.decode().split("\n\n") if event.startswith("data: ")]
        return [item if item == "[DONE]" else json.loads(item) for item in data]

    @property
    def backend(self) -> str | None:
        return self.headers.get("x-inference-backend")

    @property
    def version(self) -> str | None:
        return self.headers.get("x-inference-model-version")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-envoy-attempt-count", 0))

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    def __str__(self) -> str:
        return f"{self.status} from {self.backend} after {self.attempts} attempts: {self.body[:300]!r} {self.error}"


Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Client:
    """Requests from a loop in a thread of its own; `start` gives a future, `ask` waits for it."""

    def __init__(self, url: str, *, ca: str = "", name: str = "") -> None:
        self.url = url
        # Over TLS the router proves this name, though a test calls it by its address.
        self._tls = {"ssl": ssl.create_default_context(cadata=ca), "server_hostname": name} if ca else {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self.run(self._open()).result(HANG)

    def close(self) -> None:
        self.run(self._session.close()).result(HANG)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG)
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def start(
        self, path: str, body: Any = None, headers: Headers = (), *, method: str = "", timeout: float = HANG
    ) -> concurrent.futures.Future[Reply]:
        """Send a request. A `body` of bytes, or an async generator of them, goes out as it is; all else as JSON."""
        return self.run(self.request(path, body, headers, method or ("GET" if body is None else "POST"), timeout))

    def ask(self, path: str, body: Any = None, headers: Headers = (), **how: Any) -> Reply:
        """The reply. Raises what aiohttp raises where there is none."""
        return self.start(path, body, headers, **how).result(HANG + how.get("timeout", HANG))

    def chat(self, model: str, prompt: str = "hello", headers: Headers = (), **body: Any) -> Reply:
        """A chat completion by the body form."""
        return self.ask(CHAT, chat_body(model, prompt, **body), headers)

    def all(self, requests: Iterable[tuple[str, Any]], timeout: float = HANG) -> list[Reply | BaseException]:
        """Replies, or what was raised, to requests of (path, body) that are sent all at once."""
        futures = [self.start(path, body, timeout=timeout) for path, body in requests]
        concurrent.futures.wait(futures, timeout + HANG)
        return [future.exception() or future.result() for future in futures]

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def request(self, path: str, body: Any, headers: Headers, method: str, timeout: float) -> Reply:
        if body is not None and not isinstance(body, bytes) and not hasattr(body, "__aiter__"):
            body = json.dumps(body).encode()
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        if body is not None and "content-type" not in {name.lower() for name, _ in pairs}:
            pairs.append(("content-type", "application/json"))
        started, parts, error = time.monotonic(), [], ""
        async with self._session.request(
            method,
            self.url + path,
            data=body,
            headers=pairs,
            timeout=aiohttp.ClientTimeout(total=timeout),
            **self._tls,
        ) as response:
            first = time.monotonic() - started
            try:
                async for part in response.content.iter_any():
                    parts.append(part)
            except aiohttp.ClientError as failure:
                error = repr(failure)
            return Reply(response.status, response.headers, b"".join(parts), first, time.monotonic() - started, error)


def chat_body(model: str | None, prompt: str = "hello", **more: Any) -> dict[str, Any]:
    """A chat completion's body; `x_test` in `more` changes the behaviour of a replayed engine for this request."""
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": prompt}], **more}


def marker() -> str:
    """A prompt that no other request has."""
    return f"marker-{uuid.uuid4().hex}"


def openai_error(reply: Reply) -> dict[str, Any]:
    """The error object of a reply, once it has OpenAI's shape."""
    assert reply.headers["content-type"].split(";")[0] == "application/json", str(reply)
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}, str(reply)
    assert isinstance(error["message"], str) and error["message"], str(reply)
    assert error["code"] == reply.status, str(reply)
    return error


class Traffic:
    """A context manager: `clients` clients that ask one request after the other until it ends.

    `replies` are (seconds since the start, reply or what was raised), in the order of their ends.
    """

    def __init__(
        self, client: Client, bodies: Sequence[Mapping[str, Any]], clients: int = 6, pause: float = 0.01
    ) -> None:
        self.client, self.bodies, self.clients, self.pause = client, bodies, clients, pause
        self.replies: list[tuple[float, Reply | Exception]] = []
        self._stop = False

    @property
    def lost(self) -> list[str]:
        """Whatever was not answered by 200 and whole."""
        return [
            f"{at:.2f} s: {reply}"
            for at, reply in self.replies
            if isinstance(reply, Exception) or reply.status != 200 or reply.error
        ]

    def __enter__(self) -> Traffic:
        self._started = time.monotonic()
        self._futures = [self.client.run(self._ask(number)) for number in range(self.clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        concurrent.futures.wait(self._futures, HANG)
        for future in self._futures:
            future.cancel()

    async def _ask(self, number: int) -> None:
        while not self._stop:
            body = self.bodies[number % len(self.bodies)]
            try:
                reply: Reply | Exception = await self.client.request(CHAT, body, (), "POST", HANG)
            except (aiohttp.ClientError, TimeoutError) as error:
                reply = error
            self.replies.append((time.monotonic() - self._started, reply))
            await asyncio.sleep(self.pause)


# --- waits -----------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], T], what: str, timeout: float = HANG, every: float = 0.03) -> T:
    """The first true value of `condition`. Fails with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(every)
    return value


@dataclass
class Audit:
    """The audit lines of one router, read as they grow."""

    bed: Bed
    lines: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0

    def find(self, wanted: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The one line that is `wanted`."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.grow() if wanted(line)]

        (line,) = wait_until(found, f"an audit line of {what}", every=0.05)
        return line

    def of(self, reply: Reply) -> dict[str, Any]:
        """The line of the request that had this reply."""
        return self.find(lambda line: line["request_id"] == reply.request_id, reply.request_id)

    def grow(self) -> list[dict[str, Any]]:
        """All lines of requests' ends so far."""
        with open(self.bed.router.audit_path, "rb") as file:
            file.seek(self._read)
            text = file.read()
        complete = text.rfind(b"\n") + 1
        self._read += complete
        self.lines += [json.loads(line) for line in text[:complete].splitlines()]
        return self.lines


def raw_request(url: str, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as no client library would; status, headers (lower-case names) and body of the reply."""
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=HANG) as connection:
        connection.sendall(data)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()


def helm_test(bed: Bed, router: str) -> int:
    """The exit status of what `helm test` runs, asked of the router at a URL."""
    if shutil.which("curl") is None:
        pytest.skip("the script of `helm test` needs curl on PATH, which its image has")
    (container,) = bed.render.find("Pod", "router-test")["spec"]["containers"]
    command, env = [*container["command"], *container["args"]], os.environ | {"ROUTER": router}
    return subprocess.run(command, env=env, capture_output=True, timeout=60, check=False).returncode
