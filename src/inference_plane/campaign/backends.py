"""Engines and an Amazon Bedrock that cost next to nothing: each reads a whole request, tells who asks, and answers.

Stand-ins for speed. An engine answers as vLLM behind the plane's middleware does, so that a full one says 429; the
Bedrock stand-in checks no signature. What is exact is what arrived: every byte of every request is seen.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from .wire import Message, Messages


def _reply(status: str, body: object, headers: str = "") -> bytes:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n{headers}\r\n"
    return head.encode() + text


def _error(status: str, message: str, headers: str = "") -> bytes:
    return _reply(status, {"error": {"message": message, "type": "stand-in", "param": None, "code": 0}}, headers)


_USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
_WHOLE = _reply("200 OK", {"choices": [{"message": {"role": "assistant", "content": "yes"}}], "usage": _USAGE})
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def _chunk(event: object) -> bytes:
    text = b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(text), text)


_EVENT = _chunk({"choices": [{"index": 0, "delta": {"content": "yes"}, "finish_reason": None}]})
_STREAM = _STREAM_HEAD + _EVENT + _chunk({"choices": [], "usage": _USAGE}) + _chunk(b"[DONE]") + b"0\r\n\r\n"

#: How an engine may be: the bytes of its answer, or what `Backend` does by name.
ENGINE_MODES: dict[str, bytes | None] = {
    "well": None,
    "full": _error("429 Too Many Requests", "full", "x-plane-reason: engine-busy\r\nretry-after: 1\r\n"),
    "late": _error("429 Too Many Requests", "late", "x-plane-reason: first-token-budget\r\n"),
    "draining": _error("500 Internal Server Error", "draining"),
    "overloaded": _error("503 Service Unavailable", "overloaded"),
    "resetting": None,
    "cutting": None,
}

#: How Amazon Bedrock may be. Its errors are worded as its runtime API's.
BEDROCK_MODES: dict[str, bytes | None] = {
    "well": None,
    "throttling": _reply("429 Too Many Requests", {"message": "slow"}, "x-amzn-errortype: ThrottlingException\r\n"),
    "refusing": _reply("400 Bad Request", {"message": "no"}, "x-amzn-errortype: ValidationException\r\n"),
    "erring": _reply("500 Internal Server Error", {"message": "err"}, "x-amzn-errortype: InternalServerException\r\n"),
    "resetting": None,
    "cutting": None,
}


class Backend:
    """One engine, or Bedrock, on an address. `mode` may change at any time; `seen` is told of each request.

    `listen` and `leave` must run in the loop that serves; leaving cuts what is open, as a pod's death does.
    """

    def __init__(self, modes: dict[str, bytes | None], seen: Callable[[Message], None]) -> None:
        self.modes, self.seen, self.mode, self.requests = modes, seen, "well", 0
        self.host, self.port = "", 0
        self._open: set[_Served] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int = 0) -> None:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Served(self), host, port, backlog=1024)
        self.host, self.port = self._server.sockets[0].getsockname()

    async def leave(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._open):
            connection.transport.abort()

    async def back(self) -> None:
        """Listen again where it did; nothing where it does."""
        if self._server is None:
            await self.listen(self.host, self.port)


class _Served(asyncio.Protocol):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._messages = Messages(responses=False)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._backend._open.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._backend._open.discard(self)

    def data_received(self, data: bytes) -> None:
        for message in self._messages.feed(data):
            if message.start.startswith(b"GET /health"):
                self.transport.write(_HEALTHY)
            else:
                self._answer(message)

    def _answer(self, message: Message) -> None:
        backend = self._backend
        backend.requests += 1
        backend.seen(message)
        stream = b'"stream":true' in message.body or b'"stream": true' in message.body
        if (bytes_ := backend.modes[backend.mode]) is not None:
            self.transport.write(bytes_)
        elif backend.mode == "resetting":
            self._reset()
        elif not stream:
            self.transport.write(_WHOLE)
        elif backend.mode == "cutting":
            self.transport.write(_STREAM_HEAD + _EVENT)
            asyncio.get_running_loop().call_later(0.01, self._reset)  # after Envoy has taken the beginning
        else:
            self.transport.write(_STREAM)

    def _reset(self) -> None:
        if (raw := self.transport.get_extra_info("socket")) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
