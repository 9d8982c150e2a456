"""vLLM's OpenAI server as clients, routers and scrapers notice it, over anything that generates tokens.

Shapes follow replies captured from vLLM 0.32 with `--enable-force-include-usage --enable-request-id-headers`; the
text completion shape and the validation order follow its source. What matters to a router is kept exactly: a stream's
status and headers leave before its first token, `max_num_seqs` requests run while others wait in order, running plus
waiting never pass `max_num_queued_reqs`, and a client that goes away frees its place at once.

Embeddings are canned numbers, one token a word. Left out: responses, tool parsing, priorities, lists of prompts, and
every metric that is not listed in `metrics`.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from .serving import (
    Receive,
    Scope,
    Send,
    disconnected,
    read_body,
    reset,
    send_end,
    send_event,
    send_json,
    send_start,
    while_connected,
)

FAULTS = {
    "none": "no fault",
    "overloaded": "every inference request gets 503 before the headers",
    "overloaded-after-headers": "streams get 200, then the overload as their only event; others get 503",
    "draining": "every inference request gets 500 while /health stays 200, as vLLM after SIGTERM",
    "dead": "the engine process is gone: inference gets 500 and /health 503",
    "silent": "every request is accepted and never answered, /health too",
    "reset": "every connection is reset before an answer, /health's too",
    "cut": "the connection is reset after the first two tokens of a stream",
}

OVERLOADED = {
    "error": {
        "message": "The engine is currently busy and cannot accept new requests. Please try again later or on a "
        "different instance.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
    }
}
DRAINING = {
    "error": {
        "message": "cannot schedule new futures after shutdown",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
}
DEAD = {
    "error": {
        "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
}

# Upper bounds in seconds of vLLM's histograms, as captured.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)

ENDPOINTS = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl", "/v1/embeddings": "embd"}

FINGERPRINT = "vllm-0.32.0-44a799e5"


@dataclass
class Behaviour:
    """What a demonstration or a test may change at run time. All delays are in seconds and are simulated slowness.

    `first_token_delay` is added before the first token, while the request holds its place, as a long prefill does;
    `token_delay` before each later token; `answer_delay` before a reply that is not streamed. `tokens` is the length
    of a replayed reply (0: as captured, or the request's `max_tokens`). `fault` is one of `faults`.
    """

    faults: ClassVar[Mapping[str, Any]] = FAULTS

    first_token_delay: float = 0.0
    token_delay: float = 0.0
    answer_delay: float = 0.0
    tokens: int = 0
    fault: str = "none"

    def update(self, changes: Mapping[str, Any]) -> None:
        """Apply all changes or none. Raises ValueError for an unknown name, type or fault."""
        for name, value in self._checked(changes).items():
            setattr(self, name, value)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with the changes, for one request."""
        return replace(self, **self._checked(changes))

    def _checked(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        known = {item.name for item in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise ValueError(f"unknown behaviour {', '.join(unknown)}: the names are {', '.join(sorted(known))}")
        for name, value in changes.items():
            if name == "fault":
                if value not in self.faults:
                    raise ValueError(f"unknown fault {value!r}: the faults are {', '.join(self.faults)}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, not {value!r}")
        return dict(changes)


@dataclass(frozen=True)
class Piece:
    """One step of a generation: text that became known, and tokens counted up to and with it.

    `cached_tokens` of the prompt were in the prefix cache.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    cached_tokens: int = 0


class GenerationError(Exception):
    """The generator refused or failed. `status` and `body` are what the client gets."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


# (request body, whether it is a chat, the behaviour for this request) -> pieces
Generate = Callable[[Mapping[str, Any], bool, Behaviour], AsyncGenerator[Piece, None]]


@dataclass
class Received:
    """One inference request as it arrived, and what became of it. Header names are lower-case."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    aborted: bool = False
    finished: bool = False

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Queue:
    """vLLM's scheduler as a client notices it. `max_num_queued_reqs` (0: no limit) counts running plus waiting."""

    def __init__(self, max_num_seqs: int, max_num_queued_reqs: int) -> None:
        self.max_num_seqs, self.max_num_queued_reqs = max_num_seqs, max_num_queued_reqs
        self.clear()

    def clear(self) -> None:
        """As that of a process that starts; it serves in the event loop that asks it first."""
        self.running = self.waiting = 0
        self._slots = asyncio.Semaphore(self.max_num_seqs)

    @property
    def full(self) -> bool:
        return 0 < self.max_num_queued_reqs <= self.running + self.waiting

    @contextlib.contextmanager
    def place(self) -> Any:
        """Wait in the queue from now on; the yielded context manager runs the request."""
        self.waiting += 1
        waits = True

        @contextlib.asynccontextmanager
        async def run() -> AsyncIterator[None]:
            nonlocal waits
            async with self._slots:
                waits = False
                self.waiting -= 1
                self.running += 1
                try:
                    yield
                finally:
                    self.running -= 1

        try:
            yield run
        finally:
            if waits:
                self.waiting -= 1


@dataclass
class SequenceStats:
    """As RequestStateStats of vLLM 0.32."""

    num_generation_tokens: int = 0


@dataclass(eq=False)
class Sequence:
    """One running sequence, under the names of vLLM 0.32's RequestState, which the plane's middleware reads."""

    external_req_id: str
    prompt_len: int = 0
    is_prefilling: bool = True
    num_cached_tokens: int = 0
    parent_req: None = None
    stats: SequenceStats = field(default_factory=SequenceStats)
    #: When its first and its last token so far were made, by the monotonic clock.
    first_token: float = 0.0
    last_token: float = 0.0


class Histogram:
    """Counts by upper bound, and their sum, as Prometheus has them. `name` is without its prefix and unit."""

    def __init__(self, name: str, bounds: tuple[float, ...]) -> None:
        self.name = f"vllm:{name}_seconds"
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def samples(self, model: str) -> Iterator[tuple[str, str, float]]:
        """Suffix, labels and value of each."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield "_bucket", f'engine="0",le="{bound}",{model}', total
        yield "_count", f'engine="0",{model}', total
        yield "_sum", f'engine="0",{model}', self._sum


@dataclass
class Counters:
    """What /metrics adds up."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    rejections: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram("time_to_first_token", TTFT_BUCKETS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram("inter_token_latency", TOKEN_BUCKETS))
    per_token: Histogram = field(default_factory=lambda: Histogram("request_time_per_output_token", TOKEN_BUCKETS))
    whole: Histogram = field(default_factory=lambda: Histogram("e2e_request_latency", REQUEST_BUCKETS))
    queued: Histogram = field(default_factory=lambda: Histogram("request_queue_time", REQUEST_BUCKETS))


class Surface:
    """The ASGI application of one engine.

    `generate` makes the tokens. `knobs` finds changes of behaviour in one request's body. `max_num_queued_reqs` 0 is
    no limit, as in vLLM. `requests` holds every inference request when `record` is set. `kv_cache_usage`, when set,
    replaces the computed gauge.
    """

    def __init__(
        self,
        generate: Generate,
        *,
        served_model_name: str,
        max_num_seqs: int = 4,
        max_num_queued_reqs: int = 0,
        max_model_len: int = 1024,
        behaviour: Behaviour | None = None,
        knobs: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        record: bool = False,
    ) -> None:
        self.generate = generate
        self.name = served_model_name
        self.max_model_len = max_model_len
        self.queue = Queue(max_num_seqs, max_num_queued_reqs)
        self.behaviour = behaviour or Behaviour()
        self.counters = Counters()
        self.kv_cache_usage: float | None = None
        self.requests: list[Received] = []
        self._knobs = knobs
        self._record = record
        self._created = int(time.time())
        self.request_states: dict[str, Sequence] = {}

    @property
    def output_processor(self) -> Surface:
        """Where vLLM's engine client keeps `request_states`."""
        return self

    def state(self) -> dict[str, Any]:
        """What the control interface shows."""
        return {**asdict(self.behaviour), "running": self.queue.running, "waiting": self.queue.waiting}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, fault = scope["path"], self.behaviour.fault
        if fault == "reset":
            reset(scope)
        elif fault == "silent":
            await read_body(receive)
            await disconnected(receive)
        elif path in ENDPOINTS and scope["method"] == "POST":
            await self._inference(scope, receive, send, ENDPOINTS[path])
        elif path == "/health":
            await send_json(send, 503 if fault == "dead" else 200, b"")
        elif path == "/metrics":
            await send_json(send, 200, self.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            await send_json(send, 200, self._models())
        else:
            await send_json(send, 404, _error(404, "Not Found", "NotFoundError"))

    async def metrics_only(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application for a port that serves only metrics."""
        if scope["type"] == "http" and scope["path"] == "/metrics":
            await send_json(send, 200, self.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")
        elif scope["type"] == "http":
            await send_json(send, 404, _error(404, "Not Found", "NotFoundError"))

    async def _inference(self, scope: Scope, receive: Receive, send: Send, kind: str) -> None:
        raw = await read_body(receive)
        if raw is None:
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        received = Received(scope["path"], headers, raw)
        if self._record:
            self.requests.append(received)
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        reply = {"x-request-id": request_id}

        async def refuse(status: int, error: Mapping[str, Any]) -> None:
            received.status, received.finished = status, True
            await send_json(send, status, error, reply)

        body = _parse(raw, self.name, self.max_model_len)
        if isinstance(body, GenerationError):
            return await refuse(body.status, body.body)
        try:
            behaviour = self.behaviour.changed(self._knobs(body) if self._knobs else {})
        except ValueError as error:
            return await refuse(400, _error(400, str(error), "Bad Request", "x_test"))
        if behaviour.fault == "reset":
            return reset(scope)
        if behaviour.fault == "silent":
            return await disconnected(receive)
        if behaviour.fault in ("draining", "dead"):
            return await refuse(500, DRAINING if behaviour.fault == "draining" else DEAD)
        late = behaviour.fault == "overloaded-after-headers" and body.get("stream")
        if self.queue.full or (behaviour.fault.startswith("overloaded") and not late):
            self.counters.rejections += 1
            return await refuse(503, OVERLOADED)
        with self.queue.place() as run:
            answer = _Answer(self, scope, send, received, body, kind, behaviour, reply, request_id)
            if kind == "embd":
                work = answer.embedding(run)
            else:
                work = answer.stream(run) if body.get("stream") else answer.whole(run)
            received.aborted = True  # until it is done: a middleware may cancel it too
            try:
                received.aborted = not await while_connected(receive, work, lambda: answer.complete)
            finally:
                answer.forget()
                if received.aborted:
                    self.counters.finished["abort"] += 1
                received.finished = True

    def count(self, received: Received, sequence: Sequence, piece: Piece, started: float) -> None:
        """Account one piece. As in vLLM each sequence counts its own prompt, once it has a token."""
        now = time.monotonic()
        if sequence.is_prefilling:
            self.counters.first_token.observe(now - started)
            self.counters.prompt_tokens += piece.prompt_tokens
            self.counters.cached_tokens += piece.cached_tokens
            received.prompt_tokens = sequence.prompt_len = piece.prompt_tokens
            sequence.num_cached_tokens, sequence.first_token = piece.cached_tokens, now
            sequence.is_prefilling = False
        else:
            self.counters.between_tokens.observe(now - sequence.last_token)
        sequence.last_token = now
        new = piece.completion_tokens - sequence.stats.num_generation_tokens
        self.counters.generation_tokens += new
        received.completion_tokens += new
        sequence.stats.num_generation_tokens += new
        if piece.finish_reason:
            self.counters.finished[piece.finish_reason] += 1
            self.counters.whole.observe(now - started)
            if sequence.stats.num_generation_tokens > 1:
                decoded = sequence.stats.num_generation_tokens - 1
                self.counters.per_token.observe((now - sequence.first_token) / decoded)

    def metrics(self) -> str:
        """The Prometheus text of /metrics: the gauges and counters below, named and labelled as vLLM does."""
        queue, counters = self.queue, self.counters
        usage = self.kv_cache_usage
        if usage is None:
            held = sum(s.prompt_len + s.stats.num_generation_tokens for s in list(self.request_states.values()))
            usage = min(1.0, held / (queue.max_num_seqs * self.max_model_len))
        model = f'model_name="{self.name}"'
        labels = f'engine="0",{model}'
        lines: list[str] = []

        def family(name: str, kind: str, *samples: tuple[str, str, float]) -> None:
            lines.append(f"# TYPE {name} {kind}")
            lines.extend(f"{name}{suffix}{{{tags}}} {float(value)}" for suffix, tags, value in samples)

        family("vllm:num_requests_running", "gauge", ("", labels, queue.running))
        family("vllm:num_requests_waiting", "gauge", ("", labels, queue.waiting))
        family(
            "vllm:num_requests_waiting_by_reason",
            "gauge",
            ("", f'{labels},reason="capacity"', queue.waiting),
            ("", f'{labels},reason="deferred"', 0),
        )
        family("vllm:kv_cache_usage_perc", "gauge", ("", labels, usage))
        family("vllm:prompt_tokens_total", "counter", ("", labels, counters.prompt_tokens))
        family("vllm:generation_tokens_total", "counter", ("", labels, counters.generation_tokens))
        family(
            "vllm:request_success_total",
            "counter",
            *(
                ("", f'engine="0",finished_reason="{reason}",{model}', counters.finished[reason])
                for reason in ("stop", "length", "abort", "error")
            ),
        )
        family(
            "vllm:admission_rejections_total",
            "counter",
            ("", f'{model},reason="max_num_queued_reqs"', counters.rejections),
        )
        family("vllm:prefix_cache_queries_total", "counter", ("", labels, counters.prompt_tokens))
        family("vllm:prefix_cache_hits_total", "counter", ("", labels, counters.cached_tokens))
        for histogram in (
            counters.first_token,
            counters.between_tokens,
            counters.per_token,
            counters.whole,
            counters.queued,
        ):
            family(histogram.name, "histogram", *histogram.samples(model))
        return "\n".join(lines) + "\n"

    def _models(self) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {
                    "id": self.name,
                    "object": "model",
                    "created": self._created,
                    "owned_by": "vllm",
                    "root": self.name,
                    "parent": None,
                    "max_model_len": self.max_model_len,
                    "permission": [
                        {
                            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
                            "object": "model_permission",
                            "created": self._created,
                            "allow_create_engine": False,
                            "allow_sampling": True,
                            "allow_logprobs": True,
                            "allow_search_indices": False,
                            "allow_view": True,
                            "allow_fine_tuning": False,
                            "organization": "*",
                            "group": None,
                            "is_blocking": False,
                        }
                    ],
                }
            ],
        }


@dataclass
class _Answer:
    """One admitted request on its way out."""

    surface: Surface
    scope: Scope
    send: Send
    received: Received
    body: Mapping[str, Any]
    kind: str
    behaviour: Behaviour
    headers: Mapping[str, str]
    request_id: str
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    complete: bool = False
    cut: bool = False

    def __post_init__(self) -> None:
        external = f"{self.kind}-{self.request_id}"
        self.sequences = [Sequence(external) for _ in range(self.body.get("n") or 1)]
        states = {f"{index}_{external}": sequence for index, sequence in enumerate(self.sequences)}
        self.surface.request_states.update(states)

    @property
    def chat(self) -> bool:
        return self.kind == "chatcmpl"

    @property
    def usage(self) -> dict[str, Any]:
        """Of all sequences, with the prompt once."""
        usage = _usage(self.received.prompt_tokens, sum(s.stats.num_generation_tokens for s in self.sequences))
        if cached := self.sequences[0].num_cached_tokens:  # with --enable-prompt-tokens-details, where there are some
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    def forget(self) -> None:
        """The engine knows no more of these sequences; whoever holds them still sees what they counted."""
        for index, sequence in enumerate(self.sequences):
            self.surface.request_states.pop(f"{index}_{sequence.external_req_id}", None)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces as they come, of each sequence in turn, with the simulated delays before them."""
        behaviour = self.behaviour
        self.surface.counters.queued.observe(time.monotonic() - self.started)
        await asyncio.sleep(behaviour.first_token_delay)
        async with contextlib.AsyncExitStack() as stack:
            running = {}
            for index in range(len(self.sequences)):
                generated = self.surface.generate(self.body, self.chat, behaviour)
                running[index] = await stack.enter_async_context(contextlib.aclosing(generated))
            first = True
            while running:
                if not first:
                    await asyncio.sleep(behaviour.token_delay)
                first = False
                for index, generated in list(running.items()):
                    if (piece := await anext(generated, None)) is None:
                        del running[index]
                        continue
                    if behaviour.fault == "cut" and self.body.get("stream") and piece.completion_tokens > 2:
                        self.cut = True
                        reset(self.scope)
                        await asyncio.sleep(0)  # the server notices
                        return
                    self.surface.count(self.received, self.sequences[index], piece, self.started)
                    yield index, piece
                    if piece.finish_reason:
                        del running[index]

    async def stream(self, run: Any) -> None:
        """Headers first, then a place, then tokens: vLLM answers 200 before it knows when the first token comes."""
        send = self.send
        self.received.status = 200
        await send_start(send, 200, "text/event-stream; charset=utf-8", self.headers)
        if self.behaviour.fault == "overloaded-after-headers":
            await send_event(send, json.dumps(OVERLOADED))
        else:
            async with run():
                try:
                    await self._events()
                except GenerationError as error:
                    self.surface.counters.finished["error"] += 1
                    await send_event(send, error.body)
        if self.cut:
            return
        await send_event(send, "[DONE]")
        self.complete = True
        await send_end(send)

    async def _events(self) -> None:
        started = False
        async with contextlib.aclosing(self.pieces()) as pieces:
            async for index, piece in pieces:
                if not started and self.chat:
                    for each in range(len(self.sequences)):
                        await self._role(each, piece.prompt_tokens)
                started = True
                await send_event(self.send, self._chunk(index, piece))
        if started and not self.cut:
            last = {"choices": [], "usage": self.usage, "system_fingerprint": FINGERPRINT}
            await send_event(self.send, {**self._head("chat.completion.chunk"), **last})

    async def _role(self, index: int, prompt_tokens: int) -> None:
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        await send_event(
            self.send,
            {
                **self._head("chat.completion.chunk"),
                "choices": [choice],
                "usage": _usage(prompt_tokens, 0, details=True),
                "prompt_token_ids": None,
                "prompt_text": None,
            },
        )

    def _chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """With the usage of its own choice so far, as --enable-force-include-usage puts it into each chunk."""
        text = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        stop = {"stop_reason": None} if piece.finish_reason else {}
        choice = {
            "index": index,
            **text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
            **stop,
            "token_ids": None,
        }
        usage = _usage(piece.prompt_tokens, piece.completion_tokens, details=True)
        return {**self._head("chat.completion.chunk"), "choices": [choice], "usage": usage}

    async def embedding(self, run: Any) -> None:
        """A vector for each input, in one piece."""
        inputs = self.body.get("input")
        inputs = inputs if isinstance(inputs, list) else [inputs]
        async with run():
            await asyncio.sleep(self.behaviour.first_token_delay + self.behaviour.answer_delay)
            tokens = sum(len(str(text).split()) for text in inputs)
            self.surface.count(self.received, self.sequences[0], Piece("", tokens, 0), self.started)
            self.surface.counters.finished["stop"] += 1
        data = [{"index": i, "object": "embedding", "embedding": [0.25, -0.5]} for i in range(len(inputs))]
        self.received.status, self.complete = 200, True
        usage = {**_usage(tokens, 0), "prompt_tokens_details": None}
        head = {**self._head("list"), "id": f"embd-{self.request_id}"}
        await send_json(self.send, 200, {**head, "data": data, "usage": usage}, self.headers)

    async def whole(self, run: Any) -> None:
        """The reply at once, when it is complete."""
        texts: dict[int, list[Piece]] = {}
        try:
            async with run(), contextlib.aclosing(self.pieces()) as pieces:
                await asyncio.sleep(self.behaviour.answer_delay)
                async for index, piece in pieces:
                    texts.setdefault(index, []).append(piece)
            if not texts:
                raise GenerationError(500, _error(500, "the generation ended without a token", "InternalServerError"))
        except GenerationError as error:
            self.received.status = error.status
            self.surface.counters.finished["error"] += 1
            self.complete = True
            return await send_json(self.send, error.status, error.body, self.headers)
        self.received.status = 200
        self.complete = True
        choices = [self._choice(index, pieces) for index, pieces in sorted(texts.items())]
        usage = self.usage
        details = {"prompt_tokens_details": usage.get("prompt_tokens_details"), "completion_tokens_details": None}
        await send_json(
            self.send,
            200,
            {
                **self._head("chat.completion"),
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": {**usage, **details},
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            },
            self.headers,
        )

    def _choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        content = (
            {
                "message": {
                    "role": "assistant",
                    "content": text,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "reasoning": None,
                }
            }
            if self.chat
            else {"text": text}
        )
        return {
            "index": index,
            **content,
            "logprobs": None,
            "finish_reason": pieces[-1].finish_reason,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.kind}-{self.request_id}",
            "object": "text_completion" if self.kind == "cmpl" else kind,
            "created": self.created,
            "model": self.surface.name,
        }


def _usage(prompt: int, completion: int, details: bool = False) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return {**usage, "completion_tokens_details": None} if details else usage


def _error(code: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _parse(raw: bytes, name: str, max_model_len: int) -> dict[str, Any] | GenerationError:
    """The request body, or why vLLM refuses it: 400 for JSON and lengths, 404 for another model's name."""
    try:
        body = json.loads(raw)
    except UnicodeDecodeError as error:
        return GenerationError(400, _error(400, f"1 validation error:\n  {error}", "Bad Request", "body"))
    except json.JSONDecodeError as error:
        place = f"body.{error.pos}"
        detail = {
            "type": "json_invalid",
            "loc": place,
            "msg": "JSON decode error",
            "input": "<dict of 0 items>",
            "ctx": {"error": error.msg},
        }
        return GenerationError(400, _error(400, f"1 validation error:\n  {detail}", "Bad Request", place))
    if not isinstance(body, dict):
        return GenerationError(
            400, _error(400, "1 validation error:\n  the body must be an object", "Bad Request", "body")
        )
    if body.get("model", name) != name:
        return GenerationError(
            404,
            _error(
                404, f"The model `{body['model']}` does not exist. Valid aliases: {name}.", "NotFoundError", "model"
            ),
        )
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if isinstance(value, int) and value > max_model_len:
            return GenerationError(
                400,
                _error(
                    400,
                    f"{key}={value} cannot be greater than max_model_len={max_model_len}. Please request fewer output "
                    f"tokens. (parameter={key}, value={value})",
                    "BadRequestError",
                    key,
                ),
            )
    return body
