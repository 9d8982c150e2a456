"""Drives PlaneMiddleware without a server: apps that send given bytes, and what a server would have been sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plane_middleware import PlaneMiddleware

DATA = Path(__file__).parents[1] / "data/vllm-0.32"
HANG_GUARD = 20.0  # seconds


def captured(name: str) -> bytes:
    return (DATA / name).read_bytes()


@dataclass
class Wire:
    """The messages that the server was sent."""

    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        """One start, then bodies, of which exactly the last has no more to come."""
        types = [message["type"] for message in self.messages]
        more = [message.get("more_body", False) for message in self.messages[1:]]
        return (
            types == ["http.response.start"] + ["http.response.body"] * len(more) and more.index(False) == len(more) - 1
        )


def start(
    status: int = 200, content_type: str = "text/event-stream; charset=utf-8", *extra: tuple[bytes, bytes]
) -> dict:
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", content_type.encode()), (b"x-request-id", b"r1"), *extra],
    }


def body(data: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def replying(*messages: dict[str, Any]):
    """An app that sends the messages."""

    async def app(scope, receive, send):
        for message in messages:
            await send(dict(message))

    return app


def streaming(parts: Iterable[bytes]):
    """An app that streams as Starlette does: the start, a message a part, an empty last one."""
    return replying(start(), *[body(part) for part in parts], body(b"", more=False))


def json_reply(data: bytes, status: int = 200):
    return replying(start(status, "application/json", (b"content-length", b"%d" % len(data))), body(data, more=False))


async def exchange(
    app: Any,
    headers: Mapping[str, str] = {},
    *,
    path: str = "/v1/chat/completions",
    requests: Iterable[dict[str, Any]] = ({"type": "http.request", "body": b"{}", "more_body": False},),
    disconnect: asyncio.Event | None = None,
    wire: Wire | None = None,
    **options: Any,
) -> Wire:
    """One request through the middleware; the client leaves when `disconnect` is set. Raises what the app raised."""
    wire, waiting = wire or Wire(), list(requests)

    async def receive():
        if waiting:
            return waiting.pop(0)
        await (disconnect or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        wire.messages.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": "POST",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await asyncio.wait_for(PlaneMiddleware(app, **options)(scope, receive, send), HANG_GUARD)
    return wire


def run(app: Any, headers: Mapping[str, str] = {}, **keywords: Any) -> Wire:
    return asyncio.run(exchange(app, headers, **keywords))
