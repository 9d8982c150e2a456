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

Every POST leaves one JSON line on stdout at its end, of `type` `engine`: what it cost, and what became of it. The line
has the router's request id and attempt and nothing of prompt or completion; who called is in the router's lines.
docs/metering.md says what each field means and how the two are joined.

Only paths under /v1/ are touched. Standard library only, because it runs inside the engine's image.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("plane_middleware")

ABORT_GRACE = 10.0  # seconds
MAX_HELD_BODY = 64 * 1024 * 1024  # bytes

# What each line says of the engine, and the environment variable that has it: the chart's, and Kubernetes'.
FACTS = {"model": "PLANE_MODEL", "model_version": "PLANE_MODEL_VERSION", "pod": "HOSTNAME"}

_EVENT_END = re.compile(rb"\n\r?\n")
_DATA_LINE = re.compile(rb"^data:[ ]?([^\r\n]*)", re.MULTILINE)
_FIELD_LINE = re.compile(rb"^[^:\r\n]", re.MULTILINE)
_BUDGET = re.compile(rb"(\d+(?:\.\d+)?)(?:; *per-kib=(\d+(?:\.\d+)?))?")

# vLLM writes chunks without spaces, and a quote inside a JSON string is escaped (`\"usage\":`), so text that a model
# or a user wrote can never contain these bytes: each is a member's key.
_USAGE = b'"usage":'
_FINISH = b'"finish_reason":"'
_NO_CHOICES = b'"choices":[]'
_CHOICE = re.compile(rb'"choices":\[\{"index":(\d+)')
_INDEX = b'{"index":'
_SEVERAL = re.compile(rb'"n"\s*:\s*([1-9]\d*)')

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


@dataclass(frozen=True)
class Tokens:
    """What a request has cost. `prompt` is the prompt once, as a bill has it; `prefilled` is the prompt once for each
    sequence that has a token, as vLLM's counter has it (n > 1)."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    prefilled: int = 0


def tokens_of(document: bytes) -> Tokens | None:
    """The tokens of one sequence by a JSON document's own usage; None if it counts no tokens."""
    span = usage_span(document)
    if span is None and _USAGE not in document:
        return None
    try:
        return _tokens(json.loads(document[slice(*span)]) if span else json.loads(document).get("usage"))
    except (ValueError, AttributeError):
        return None


def _tokens(usage: Any) -> Tokens | None:
    prompt = _first(usage, _PROMPT_TOKENS, int) if isinstance(usage, dict) else None
    if prompt is None:
        return None
    details = _first(usage, _PROMPT_DETAILS, dict) or {}
    cached = _first(details, ("cached_tokens",), int) or 0
    return Tokens(prompt, _first(usage, _COMPLETION_TOKENS, int) or 0, cached, prompt)


def usage_headers(tokens: Tokens | None) -> list[tuple[bytes, bytes]]:
    """The x-plane-*-tokens headers of a JSON reply; none if it counts no tokens."""
    if tokens is None:
        return []
    counts = {b"prompt": tokens.prompt, b"completion": tokens.completion, b"cached": tokens.cached}
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


# --- metering --------------------------------------------------------------------------------------------------------


class Meter:
    """What a request has cost, from what its app sends.

    With --enable-force-include-usage each chunk of a stream counts its own choice so far, so the last ones are enough
    for a stream that ends early. Nothing is parsed before the end. `request` is the body of a text completion, which
    may have several prompts: choice i is of prompt i // n. Elsewhere all choices share one prompt.
    """

    def __init__(self) -> None:
        self.complete = self.failed = self.streams = self.several = False
        self.request = b""
        self._splitter = EventSplitter()
        self._last: dict[bytes, bytes] = {}
        self._final = self._body = b""

    def feed(self, message: Message) -> None:
        """Every message of the app, in order; `reply` has the body of those that are no streams."""
        if message["type"] == "http.response.start":
            self.streams = media_type(message) == b"text/event-stream"
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
            if self.streams:
                for event in self._splitter.feed(message.get("body", b""), self.complete):
                    self._event(event)

    def reply(self, body: bytes) -> Tokens | None:
        """The tokens of a whole JSON reply, which this is."""
        self._body = body
        return tokens_of(body)

    def _event(self, event: bytes) -> None:
        if choice := _CHOICE.search(event):
            self._last[choice[1]] = event
            self.several = len(self._last) > 1
        elif _NO_CHOICES in event or event.startswith(b"event: response.completed"):
            self._final = event
        elif data_of(event).startswith(b'{"error"'):
            self.failed = True

    def tokens(self) -> Tokens | None:
        """What was told of tokens so far, or None."""
        if self._body:
            one = tokens_of(self._body)
            choices = self._body.count(_INDEX) if b'"choices":[' in self._body else 1
            return one and replace(one, prefilled=one.prompt * self._choices_of_a_prompt(choices))
        each = {int(index): found for index, event in self._last.items() if (found := tokens_of(data_of(event)))}
        whole = tokens_of(data_of(self._final)) or _tokens(_response(data_of(self._final)))
        if not each:
            return whole
        begun = {index: one for index, one in each.items() if one.completion}
        several = self._choices_of_a_prompt(max(each) + 1)
        prompts = {index // several: one.prompt for index, one in begun.items()}
        told = whole or Tokens(
            sum(prompts.values()),
            sum(one.completion for one in begun.values()),
            max((one.cached for one in begun.values()), default=0),
        )
        return replace(told, prefilled=sum(one.prompt for one in begun.values()))

    def _choices_of_a_prompt(self, choices: int) -> int:
        if not self.request:
            return choices
        found = _SEVERAL.search(self.request)
        return int(found[1]) if found else 1


def _response(data: bytes) -> Any:
    """The usage in the last event of a stream of the Responses API, or None."""
    try:
        return json.loads(data)["response"]["usage"]
    except (ValueError, KeyError, TypeError):
        return None


def engine_states(scope: Mapping[str, Any], request_id: str) -> list[Any]:
    """vLLM's own states of a request's sequences, from which its counters are fed; [] where it keeps none there.

    vLLM 0.32: AsyncLLM.output_processor.request_states, of RequestState; a state outlives its removal from that map.
    """
    try:
        states = scope["app"].state.engine_client.output_processor.request_states
        return [state for state in states.values() if request_id in state.external_req_id] if request_id else []
    except (AttributeError, KeyError, TypeError):
        return []


def engine_tokens(states: list[Any]) -> Tokens | None:
    """What vLLM's counters have of these sequences, or None where there are none or they look otherwise."""
    try:
        if not states:
            return None
        begun = [state for state in states if not state.is_prefilling]
        # With n > 1 and no stream a sequence that has ended has left the map; its parent keeps what it said.
        parents = {id(state.parent_req): state for state in states if state.parent_req is not None}.values()
        ended = [
            (state.prompt_len, len(choice.token_ids))
            for state in parents
            for choice in state.parent_req.output_aggregator
            if choice
        ]
        prompts = {state.external_req_id: state.prompt_len for state in states if ended or state in begun}
        return Tokens(
            sum(prompts.values()),
            sum(state.stats.num_generation_tokens for state in states) + sum(tokens for _, tokens in ended),
            max((state.num_cached_tokens for state in begun), default=0),
            sum(state.prompt_len for state in begun) + sum(prompt for prompt, _ in ended),
        )
    except (AttributeError, TypeError):
        return None


def write_line(line: str) -> None:
    """One write to stdout, past sys.stdout, in which vLLM puts the process's name before each line."""
    os.write(1, line.encode() + b"\n")


# --- ASGI ------------------------------------------------------------------------------------------------------------


def media_type(start: Message) -> bytes:
    content_type = b"".join(value for name, value in start.get("headers", ()) if name.lower() == b"content-type")
    return content_type.partition(b";")[0].strip().lower()


class _Exchange:
    """One request's reply on its way out, and what its app is told about the client."""

    def __init__(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        max_held_body: int,
        facts: Mapping[str, str | None],
    ) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._aborted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status: int | None = None
        self.missed = self._read = False
        self.meter = Meter()
        self._scope, self._headers, self._facts = scope, headers, facts
        self._states: list[Any] = []
        self._started = time.time()
        self._receive = receive
        self._send_out = send
        self._plain = headers.get(b"x-plane-stream") == b"plain"
        self._max_held_body = max_held_body
        self._handle: Send = self._on_start
        self._holding = False
        self._held: list[Message] = []
        self._held_size = 0
        self._splitter = EventSplitter()
        self._merger = UsageMerger()

    async def receive(self) -> Message:
        message = await self._next_message()
        if message["type"] == "http.request":
            self._read = not message.get("more_body", False)
            if self._scope["path"] == "/v1/completions":
                self.meter.request += message.get("body", b"")
        if message["type"] == "http.disconnect" and not self.meter.complete:
            self._note_states()
        return message

    async def _next_message(self) -> Message:
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

    def _note_states(self) -> None:
        """Before the app hears that the client is gone: afterwards vLLM forgets them."""
        request_id = self._headers.get(b"x-request-id", b"").decode("latin-1")
        self._states = self._states or engine_states(self._scope, request_id)

    async def send(self, message: Message) -> None:
        self.meter.feed(message)
        if self.meter.several:  # of several choices one may end, and leave vLLM's map, long before the client does
            self._note_states()
        if self._holding and message["type"] != "http.response.body":
            await self._release()  # so that a type which this file does not know keeps its place
        await self._handle(message)

    async def abort(self, reply: Reply) -> None:
        """Answers with `reply` and tells the app that the client is gone."""
        self.missed = True
        self._note_states()
        self._aborted.set_result(None)
        await self._replace(reply)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send_out(message)

    def line(self, failed: bool) -> str:
        """The request's line, once nothing more will come of it; `failed`: the app raised."""
        outcome = self._outcome(failed)
        counted = None if outcome == "finished" else engine_tokens(self._states)
        told = self.meter.tokens()
        if told is None and (outcome == "refused" or not self._read):
            told = Tokens()  # it never came to the engine
        tokens = counted or told
        source = "engine" if counted else None if told is None else "stream" if self.meter.streams else "reply"
        started = datetime.datetime.fromtimestamp(self._started, datetime.UTC)
        return json.dumps(
            {
                "type": "engine",
                "time": f"{started:%Y-%m-%dT%H:%M:%S}.{started.microsecond // 1000:03}Z",
                "request_id": self._text(b"x-request-id"),
                "attempt": int(attempt) if (attempt := self._text(b"x-envoy-attempt-count") or "").isdigit() else None,
                **self._facts,
                "path": self._scope["path"][:128],
                "status": self.status,
                "outcome": outcome,
                "prompt_tokens": tokens and tokens.prompt,
                "completion_tokens": tokens and tokens.completion,
                "cached_tokens": tokens and tokens.cached,
                "prefilled_tokens": tokens and tokens.prefilled,
                "usage_source": source,
                "duration_ms": round((time.time() - self._started) * 1000),
            }
        )

    def _text(self, name: bytes) -> str | None:
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")[:128]

    def _outcome(self, failed: bool) -> str:
        if self.missed:
            return "first-token-budget"
        if failed or self.meter.failed or (self.status or 0) >= 500:
            return "error"
        if not self.meter.complete:
            return "aborted"
        return "refused" if (self.status or 0) >= 400 else "finished"

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
        kind = media_type(message)
        if kind == b"text/event-stream":
            self._handle, self._holding = self._on_first_event, True
        elif kind == b"application/json" and message["status"] in (200, 503):
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
            self._held[0] = {**start, "headers": [*start.get("headers", ()), *usage_headers(self.meter.reply(body))]}
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
    max_held_body bytes passes without usage headers. `report` takes the line of each POST; `facts` replace what the
    pod's environment says of it. An abort reaches a Starlette StreamingResponse at once only where the server states
    an ASGI spec_version below 2.4, as uvicorn does (2.3); elsewhere the grace ends it.
    """

    def __init__(
        self,
        app: Any,
        abort_grace: float = ABORT_GRACE,
        max_held_body: int = MAX_HELD_BODY,
        report: Callable[[str], None] = write_line,
        facts: Mapping[str, str] = {},
    ) -> None:
        self.app = app
        self.report = report
        self.facts = {name: facts.get(name) or os.environ.get(variable) for name, variable in FACTS.items()}
        self.abort_grace = abort_grace
        self.max_held_body = max_held_body

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        exchange = _Exchange(scope, headers, receive, send, self.max_held_body, self.facts)
        failed = True
        try:
            await self._serve(scope, headers, exchange)
            failed = False
        finally:
            if scope["method"] == "POST":
                self.report(exchange.line(failed))

    async def _serve(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes], exchange: _Exchange) -> None:
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
            exchange.answered.set_result(None)  # nothing waits for a first token
            return await self.app(scope, exchange.receive, exchange.send)
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
