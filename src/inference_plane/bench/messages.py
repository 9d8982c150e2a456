"""What travels in a benchmark: requests as a client sends them through the load balancer, and an engine's replies.

All bytes are built before anything is measured.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

PATH = "/v1/chat/completions"
STREAM_EVENTS = 100

# Lines of a prior-authorization packet. A scanner of JSON stops at each quote: prose has few of them, and a packet
# of quotations (or a document that is JSON itself) many.
_LINE = "Page {number}: the member states pain since {number} weeks; see the note of Dr. Example, code M54.5.\n"
_QUOTING = 'Page {number}: the member states "pain since {number} weeks"; see the note of Dr. Example, code M54.5.\n'
_PROSE_QUOTES_EVERY = 8  # lines


@dataclass(frozen=True)
class Case:
    """One kind of request. `prompt_bytes` is the size of the body; `connections` are open at once.

    `quotations`: every line of the prompt quotes, two escaped quotes in 100 bytes; else every eighth does.
    """

    name: str
    prompt_bytes: int
    connections: int
    model_last: bool = False
    quotations: bool = False
    stream: bool = False


CASES = (
    Case("1 KB", 1_000, 64),
    Case("120 KB", 120_000, 16),
    Case("120 KB, model last", 120_000, 16, model_last=True),
    Case("120 KB, quotations", 120_000, 16, quotations=True),
    Case("1 KB, stream", 1_000, 64, stream=True),
)

#: Beside other routers: a handful by default, and all of them.
PEER_CASES = (CASES[0], CASES[1], Case("1 KB, stream, 16 connections", 1_000, 16, stream=True))
ALL_CASES = tuple(
    Case(f"{kb} KB{', stream' if stream else ''}, {connections} connections", kb * 1_000, connections, stream=stream)
    for kb in (1, 120) for stream in (False, True) for connections in (1, 64, 256))

#: A moderate load for first-token times: about 20 requests per second.
FIRST_TOKEN = Case("first token of a stream", 1_000, 8, stream=True)


def prompt(length: int, serial: int = 0, quotations: bool = False) -> str:
    """A text whose JSON form has exactly `length` bytes, quotes included; each `serial` below 10,000 has its own.

    Raises ValueError for a length below 7.
    """
    if length < 7:
        raise ValueError(f"a prompt's JSON string has at least 7 bytes, {length} were asked for")
    lines, number = [f"{serial:04} "], 1
    left = length - 7
    while True:
        quoting = quotations or number % _PROSE_QUOTES_EVERY == 0
        line = (_QUOTING if quoting else _LINE).format(number=number)
        if (size := len(json.dumps(line)) - 2) > left:
            break
        lines.append(line)
        left, number = left - size, number + 1
    return "".join(lines) + "x" * left


def body(case: Case, model: str, serial: int = 0) -> bytes:
    """The JSON body of a chat completion of exactly `case.prompt_bytes` bytes, compact as OpenAI's clients write it."""
    def document(content: str) -> dict[str, object]:
        rest = {"messages": [{"role": "user", "content": content}], "max_tokens": 256, "temperature": 0}
        if case.stream:
            rest |= {"stream": True, "stream_options": {"include_usage": True}}
        return rest | {"model": model} if case.model_last else {"model": model} | rest

    def encoded(content: str) -> bytes:
        return json.dumps(document(content), separators=(",", ":")).encode()

    return encoded(prompt(case.prompt_bytes - len(encoded("")) + 2, serial, case.quotations))


def request(case: Case, model: str, serial: int = 0, token: str = "0" * 40) -> bytes:
    """The whole HTTP/1.1 request, with the headers that OpenAI's Python client and an ALB put on it."""
    content = body(case, model, serial)
    headers = {
        "host": "inference.internal.example",
        "x-forwarded-for": "10.0.3.17",
        "x-forwarded-proto": "https",
        "x-forwarded-port": "443",
        "x-amzn-trace-id": "Root=1-67891233-abcdef012345678912345678",
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "content-type": "application/json",
        "user-agent": "OpenAI/Python 1.99.0",
        "x-stainless-lang": "python",
        "authorization": "Bearer " + token,
        "content-length": str(len(content)),
    }
    return _head(f"POST {PATH} HTTP/1.1", headers) + content


def reply() -> bytes:
    """A JSON reply of about 1 KB as it leaves an engine: vLLM's, with the counts of its middleware as headers."""
    content = json.dumps({
        "id": "chatcmpl-8bdde7bf99bcfb63", "object": "chat.completion", "created": 1795284248, "model": "model-000",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "x" * 700}, "logprobs": None,
            "finish_reason": "stop", "stop_reason": None,
        }],
        "usage": {"prompt_tokens": 250, "total_tokens": 390, "completion_tokens": 140},
    }, separators=(",", ":")).encode()
    return _head("HTTP/1.1 200 OK", {
        **_ENGINE_HEADERS,
        "content-type": "application/json",
        "content-length": str(len(content)),
        "x-plane-prompt-tokens": "250",
        "x-plane-completion-tokens": "140",
        "x-plane-cached-tokens": "0",
    }) + content


def stream_head() -> bytes:
    """The head of a stream."""
    headers = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}
    return _head("HTTP/1.1 200 OK", {**_ENGINE_HEADERS, **headers})


def stream_chunks() -> Sequence[bytes]:
    """The events of a stream in HTTP chunks, as vLLM sends them with --enable-force-include-usage: each has a usage."""
    events = []
    for number in range(STREAM_EVENTS):
        choice = {"index": 0, "delta": {"content": f" word{number}"}, "logprobs": None, "finish_reason": None}
        events.append(_event([choice], number + 1))
    final = _event([], STREAM_EVENTS) + b"data: [DONE]\n\n"
    return [_chunk(event) for event in events] + [_chunk(final) + b"0\r\n\r\n"]


_ENGINE_HEADERS = {"date": "Wed, 01 Jul 2026 12:00:00 GMT", "server": "uvicorn"}


def _event(choices: list[dict[str, object]], completion: int) -> bytes:
    document = {
        "id": "chatcmpl-b131f4fc65e8402b", "object": "chat.completion.chunk", "created": 1795284249,
        "model": "model-000", "choices": choices,
        "usage": {"prompt_tokens": 250, "total_tokens": 250 + completion, "completion_tokens": completion},
    }
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _head(first: str, headers: dict[str, str]) -> bytes:
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()
