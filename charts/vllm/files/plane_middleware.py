"""ASGI middleware of the vLLM engine: `vllm serve --middleware plane_middleware.PlaneMiddleware`.

vLLM answers a stream with 200 and its headers before the first token exists, so no proxy in front of it can tell a
slow first token from a fast one. This middleware holds the response start until the first event, keeps the first-token
budget that the router sets, turns errors and overload into the status codes that the router retries on, and reports
token usage in the form in which the router reads it.

Request headers, all set by the router, which strips clients' own copies; an absent one means that its aspect is left
alone:

    x-plane-stream               `usage` (the client asked for include_usage) or `plain` (it streams, but did not ask)
    x-plane-first-token-budget   milliseconds, optionally `;per-kib=<milliseconds per KiB of request body>`
    x-plane-started-ms           when the router began with the request, epoch milliseconds
    x-envoy-attempt-count        1 for the first attempt

Response headers: `x-plane-reason` (`first-token-budget` or `engine-busy`) on a 429; `x-plane-prompt-tokens`,
`x-plane-completion-tokens` and `x-plane-cached-tokens` on a JSON reply that has a usage.

Only paths under /v1/ are touched. Standard library only, because it runs inside the engine's image.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("plane_middleware")

ABORT_GRACE = 10.0  # seconds
MAX_HELD_BODY = 64 * 1024 * 1024  # bytes

_EVENT_END = re.compile(rb"\n\r?\n")
_DATA_LINE = re.compile(rb"^data:[ ]?([^\r\n]*)", re.MULTILINE)
_FIELD_LINE = re.compile(rb"^[^:\r\n]", re.MULTILINE)
_BUDGET = re.compile(rb"(\d+(?:\.\d+)?)(?:; *per-kib=(\d+(?:\.\d+)?))?")

# vLLM writes chunks without spaces, and a quote inside a JSON string is escaped (`\"usage\":`), so text that a model
# or a user wrote can never contain these bytes: each is a member's key.
_USAGE = b'"usage":'
_FINISH = b'"finish_reason":"'
_NO_CHOICES = b'"choices":[]'

# OpenAI's names in chat, completions and embeddings; then those of the Responses API.
_PROMPT_TOKENS = ("prompt_tokens", "input_tokens", "total_tokens")
_COMPLETION_TOKENS = ("completion_tokens", "output_tokens")
_PROMPT_DETAILS = ("prompt_tokens_details", "input_tokens_details")


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A whole JSON reply in place of the engine's own."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def refusal(reason: str, message: str) -> Reply:
    """The 429 that sends the router to its next target; `reason` is the value of x-plane-reason."""
    error = {"message": message, "type": "overloaded", "param": None, "code": 429}
    headers = ((b"x-plane-reason", reason.encode()), (b"retry-after", b"1"))
    return Reply(429, json.dumps({"error": error}).encode(), headers)


def first_token_budget(headers: Mapping[bytes, bytes], now: float) -> float | None:
    """Seconds until the first token must exist, or None where no budget applies.

    On the first attempt the whole budget counts from now, so no two nodes' clocks are compared. A later attempt gets
    what the earlier ones left of it, or the client would wait the budget twice. `now` is in epoch seconds.
    Raises ValueError if one of the router's headers is malformed.
    """
    value = headers.get(b"x-plane-first-token-budget")
    if value is None or b"x-plane-stream" not in headers:
        return None
    match = _BUDGET.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"x-plane-first-token-budget is {value!r}, expected `2000` or `2000;per-kib=40`")
    body_kib = _whole_number(headers, b"content-length", 0) / 1024
    budget = (float(match[1]) + float(match[2] or 0) * body_kib) / 1000
    started = _whole_number(headers, b"x-plane-started-ms", 0)
    if started and _whole_number(headers, b"x-envoy-attempt-count", 1) >= 2:
        return min(max(started / 1000 + budget - now, 0.0), budget)
    return budget


def _whole_number(headers: Mapping[bytes, bytes], name: bytes, default: int) -> int:
    value = headers.get(name, b"%d" % default)
    if not value.isdigit():
        raise ValueError(f"{name.decode()} is {value!r}, expected a whole number")
    return int(value)


def error_of(data: bytes) -> dict[str, Any] | None:
    """The error object if `data` is JSON of the form {"error": {...}}."""
    if b'"error"' not in data:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else None


def busy_reply(status: int, error: Mapping[str, Any] | None) -> Reply | None:
    """A 429 if this is vLLM's refusal by --max-num-queued-reqs or -tokens: full is not sick.

    Any other 503, or the 500 of a draining engine, is sick and gives None.
    """
    if status != 503 or error is None or error.get("type") != "Service Unavailable":
        return None
    return refusal("engine-busy", str(error.get("message")))


def error_reply(event: bytes) -> Reply | None:
    """The reply that a stream's first event stands for, or None if it is no error."""
    data = data_of(event)
    error = error_of(data)
    if error is None:
        return None
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 500
    return busy_reply(status, error) or Reply(status, data)


def usage_span(document: bytes) -> tuple[int, int] | None:
    """Start and end, in bytes, of the value of the document's own last `usage` member, or None.

    Looks at the end of the document only, because replies with embeddings have megabytes before it. What follows the
    value must close exactly one object; so a `usage` deeper inside (a tool's parameters, say) is not taken.
    """
    key = document.rfind(_USAGE)
    if key < 0:
        return None
    tail = document[key + len(_USAGE) :].lstrip()
    text = tail.decode(errors="surrogateescape")
    try:
        _, length = json.JSONDecoder().raw_decode(text)
        json.loads('{"":0' + text[length:])
    except ValueError:
        return None
    start = len(document) - len(tail)
    return start, start + len(text[:length].encode(errors="surrogateescape"))


def usage_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    """The x-plane-*-tokens headers of a JSON reply; none if it counts no tokens."""
    span = usage_span(body)
    if span is None and _USAGE not in body:
        return []
    try:
        usage = json.loads(body[slice(*span)]) if span else json.loads(body).get("usage")
    except (ValueError, AttributeError):
        return []
    if not isinstance(usage, dict):
        return []
    prompt = _first(usage, _PROMPT_TOKENS, int)
    if prompt is None:
        return []
    details = _first(usage, _PROMPT_DETAILS, dict) or {}
    counts = {
        b"prompt": prompt,
        b"completion": _first(usage, _COMPLETION_TOKENS, int) or 0,
        b"cached": _first(details, ("cached_tokens",), int) or 0,
    }
    return [(b"x-plane-%s-tokens" % name, b"%d" % count) for name, count in counts.items()]


def _first(members: Mapping[str, Any], names: tuple[str, ...], kind: type) -> Any:
    return next((members[name] for name in names if isinstance(members.get(name), kind)), None)


def with_usage(event: bytes, usage: bytes) -> bytes | None:
    """The event with `usage` (JSON) as its document's usage, nothing else changed; None if it is no plain object."""
    lines = list(_DATA_LINE.finditer(event))
    if len(lines) != 1:
        return None
    start, end = lines[0].span(1)
    data = event[start:end].rstrip()
    if span := usage_span(data):
        merged = data[: span[0]] + usage + data[span[1] :]
    elif _USAGE not in data and data.endswith(b"}"):
        merged = data[:-1] + b"," + _USAGE + usage + b"}"
    else:
        return None
    return event[:start] + merged + event[end:]


# --- server-sent events ----------------------------------------------------------------------------------------------


class EventSplitter:
    """Bytes in, whole events out, each with its blank line; lines end with LF or CRLF."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes, last: bool = False) -> list[bytes]:
        """The events that `data` completes; with `last` also the incomplete rest."""
        searched = max(0, len(self._rest) - 2)  # an end may be cut after its first or second byte
        self._rest += data
        events, start = [], 0
        for match in _EVENT_END.finditer(self._rest, searched):
            events.append(bytes(self._rest[start : match.end()]))
            start = match.end()
        del self._rest[:start]
        if last and self._rest:
            events.append(self.take_rest())
        return events

    def take_rest(self) -> bytes:
        """The incomplete rest, which is then forgotten."""
        rest = bytes(self._rest)
        self._rest.clear()
        return rest


def data_of(event: bytes) -> bytes:
    """The event's data: its `data:` lines joined by line feeds."""
    return b"\n".join(_DATA_LINE.findall(event))


class UsageMerger:
    """Moves the usage of the final chunk without choices into the finish chunk before it.

    --enable-force-include-usage makes vLLM send that chunk to clients that did not ask for it and that fail on
    `choices[0]`. Its usage replaces the one that the same flag puts into each chunk: that one counts a single choice
    and no cached tokens.
    """

    def __init__(self) -> None:
        self._finish = b""

    def feed(self, event: bytes) -> bytes:
        """What may go out after `event`; only a finish chunk is kept back, until the next event."""
        finish, self._finish = self._finish, b""
        if finish and _NO_CHOICES in event:
            data = data_of(event)
            span = usage_span(data)
            usage = data[slice(*span)] if span else b""
            merged = with_usage(finish, usage) if usage.startswith(b"{") else None
            return merged if merged is not None else finish + event
        if _FINISH in event:
            self._finish = event
            return finish
        return finish + event

    def flush(self) -> bytes:
        finish, self._finish = self._finish, b""
        return finish


# --- ASGI ------------------------------------------------------------------------------------------------------------


class _Exchange:
    """One request's reply on its way out, and what its app is told about the client."""

    def __init__(self, receive: Receive, send: Send, plain: bool, max_held_body: int) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receive = receive
        self._send = send
        self._plain = plain
        self._max_held_body = max_held_body
        self._handle: Send = self._on_start
        self._holding = False
        self._held: list[Message] = []
        self._held_size = 0
        self._splitter = EventSplitter()
        self._merger = UsageMerger()

    async def receive(self) -> Message:
        if self._aborted.done():
            return {"type": "http.disconnect"}
        if self.answered.done():
            return await self._receive()
        message = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({message, self._aborted}, return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if self._aborted.done() else message.result()
        finally:
            message.cancel()

    async def send(self, message: Message) -> None:
        if self._holding and message["type"] != "http.response.body":
            await self._release()  # so that a type which this file does not know keeps its place
        await self._handle(message)

    async def abort(self, reply: Reply) -> None:
        """Answers with `reply` and tells the app that the client is gone."""
        self._aborted.set_result(None)
        await self._replace(reply)

    def _answer_with(self, handle: Send, holding: bool = False) -> None:
        self._handle, self._holding = handle, holding
        if not self.answered.done():
            self.answered.set_result(None)

    async def _replace(self, reply: Reply) -> None:
        self._answer_with(self._swallow)
        kept = self._held[0].get("headers", ()) if self._held else ()
        own = {b"content-type": b"application/json", b"content-length": b"%d" % len(reply.body), **dict(reply.headers)}
        headers = [(name, value) for name, value in kept if name.lower() not in own] + list(own.items())
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": reply.body})

    async def _swallow(self, message: Message) -> None:
        pass

    async def _release(self) -> None:
        """Sends what is held; from then on everything passes."""
        self._answer_with(self._send)
        held, self._held = self._held, []
        for message in held:
            await self._send(message)
        if rest := self._merger.flush() + self._splitter.take_rest():
            await self._send({"type": "http.response.body", "body": rest, "more_body": True})

    async def _on_start(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            return await self._send(message)
        self._held.append(message)
        content_type = b"".join(value for name, value in message.get("headers", ()) if name.lower() == b"content-type")
        media_type = content_type.partition(b";")[0].strip().lower()
        if media_type == b"text/event-stream":
            self._handle, self._holding = self._on_first_event, True
        elif media_type == b"application/json" and message["status"] in (200, 503):
            self._answer_with(self._on_json, holding=True)
        else:
            await self._release()

    async def _on_json(self, message: Message) -> None:
        self._held.append(message)
        self._held_size += len(message.get("body", b""))
        if self._held_size > self._max_held_body:
            return await self._release()
        if message.get("more_body", False):
            return
        start, *parts = self._held
        body = b"".join(part.get("body", b"") for part in parts)
        if start["status"] == 200:
            self._held[0] = {**start, "headers": [*start.get("headers", ()), *usage_headers(body)]}
        elif reply := busy_reply(start["status"], error_of(body)):
            return await self._replace(reply)
        await self._release()

    async def _on_first_event(self, message: Message) -> None:
        last = not message.get("more_body", False)
        events = self._splitter.feed(message.get("body", b""), last)
        while events and not _DATA_LINE.search(events[0]):
            event = events.pop(0)
            if _FIELD_LINE.search(event):  # no comment, so it is not dropped
                self._held.append({"type": "http.response.body", "body": event, "more_body": True})
        if not events and not last:
            return
        if events and (reply := error_reply(events[0])):
            return await self._replace(reply)
        body = b"".join(events) + self._splitter.take_rest()
        await self._release()
        if self._plain:
            self._answer_with(self._on_plain_event, holding=True)
        await self._handle({**message, "body": body})

    async def _on_plain_event(self, message: Message) -> None:
        last = not message.get("more_body", False)
        body = b"".join(map(self._merger.feed, self._splitter.feed(message.get("body", b""), last)))
        body += self._merger.flush() if last else b""
        if body or last:
            await self._send({**message, "body": body})


class PlaneMiddleware:
    """The middleware; see the module's docstring for its contract.

    abort_grace is how long, in seconds, an app may run on after its budget was missed; a JSON reply of more than
    max_held_body bytes passes without usage headers. An abort reaches a Starlette StreamingResponse at once only
    where the server states an ASGI spec_version below 2.4, as uvicorn does (2.3); elsewhere the grace ends it.
    """

    def __init__(self, app: Any, abort_grace: float = ABORT_GRACE, max_held_body: int = MAX_HELD_BODY) -> None:
        self.app = app
        self.abort_grace = abort_grace
        self.max_held_body = max_held_body

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        exchange = _Exchange(receive, send, headers.get(b"x-plane-stream") == b"plain", self.max_held_body)
        try:
            budget = first_token_budget(headers, time.time())
        except ValueError as error:
            logger.warning(
                "request to %s runs without a first-token budget: %s; correct what the router sets",
                scope["path"],
                error,
            )
            budget = None
        if budget is None:
            return await self.app(scope, receive, exchange.send)
        if budget <= 0:
            message = "Earlier attempts used up the first-token budget."
            return await exchange.abort(refusal("first-token-budget", message))
        await self._within(budget, scope, exchange)

    async def _within(self, budget: float, scope: Mapping[str, Any], exchange: _Exchange) -> None:
        app = asyncio.ensure_future(self.app(scope, exchange.receive, exchange.send))
        try:
            await asyncio.wait({app, exchange.answered}, timeout=budget, return_when=asyncio.FIRST_COMPLETED)
            if app.done() or exchange.answered.done():
                return await app
            message = f"No token within the first-token budget of {budget * 1000:.0f} ms."
            await exchange.abort(refusal("first-token-budget", message))
            await asyncio.wait({app}, timeout=self.abort_grace)
            if not app.done():
                logger.warning(
                    "%s ran on for %g s after its first-token budget was missed and it was told that the client is "
                    "gone; it is cancelled, until then its batch slot was in use",
                    scope["path"],
                    self.abort_grace,
                )
            # The 429 is out: raising now would only make the server close a connection that is still good.
            elif not app.cancelled() and (error := app.exception()):
                logger.warning("%s failed after its first-token budget was missed", scope["path"], exc_info=error)
        finally:
            app.cancel()
