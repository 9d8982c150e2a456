"""Each fault of docs/faults.md on a real Envoy: what the client sees, what the audit line says, where prompts were."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from router_harness import (
    BUDGET_MS,
    CHAT,
    HANG,
    QUICK,
    REGION_TARGET,
    Audit,
    Client,
    catalogue,
    chat_body,
    marker,
    model,
    openai_error,
    raw_request,
    wait_until,
)

from inference_plane.checkout import ROOT
from inference_plane.onehost.bed import Bed
from inference_plane.onehost.serving import Receive, Scope, Send, disconnected, send_json

GUARD, LONGEST = 2.0, 5.0  # seconds: hangGuard and requestTimeout here
BODY_LIMIT = 1024 * 1024


async def _frozen(scope: Scope, receive: Receive, send: Send) -> None:
    """An engine that is healthy and never answers."""
    if scope["type"] == "http" and scope["path"] == "/health":
        await send_json(send, 200, b"")
    elif scope["type"] == "http":
        await disconnected(receive)


BED = {
    "values": catalogue(
        {
            "intake": model("intake", "cluster"),
            "summary": model("summary", "region", REGION_TARGET, replicas=2, firstTokenBudget=f"{BUDGET_MS}ms"),
            "frozen": model("frozen", "region", REGION_TARGET),
        },
        **QUICK,
        hangGuard=f"{GUARD:g}s",
        requestTimeout=f"{LONGEST:g}s",
        maxBodyMiB=1,
    ),
    "apps": {"frozen": _frozen},
}


@pytest.fixture(scope="module")
def lines(module_bed: Bed) -> Audit:
    return Audit(module_bed)


def _fence(client: Client, lines: Audit) -> int:
    """How many lines there are once those of all requests so far have been written: Envoy keeps them for 200 ms."""
    lines.of(client.ask("/v1/models"))
    return len(lines.lines)


def _at_engines(**behaviour: Any) -> Callable[[Bed, str], None]:
    def arrange(bed: Bed, name: str) -> None:
        for engine in bed.engines[name]:
            engine.behaviour.update(behaviour)

    return arrange


def _well(bed: Bed, name: str) -> None:
    pass


def _empty(bed: Bed, name: str) -> None:
    bed.scale(name, 0)
    bed.wait_for_engines({name: 0})


def _gone(bed: Bed, name: str) -> None:
    for engine in bed.engines[name]:
        engine.stop()


def _bedrock(**behaviour: Any) -> Callable[[Bed, str], None]:
    def arrange(bed: Bed, name: str) -> None:
        _empty(bed, name)
        bed.bedrock.behaviour.update(behaviour)

    return arrange


def _bedrock_elsewhere(**changes: Any) -> Callable[[Bed, str], None]:
    """Bedrock's clusters are told something else, by a reload, as a changed release does."""

    def arrange(bed: Bed, name: str) -> None:
        _empty(bed, name)
        _reload(bed, {**bed.local, "bedrock": {**bed.local["bedrock"], **changes}})

    return arrange


def _reload(bed: Bed, local: dict[str, Any]) -> None:
    names = ("cluster_manager.cds.update_success", "cluster_manager.cds.update_rejected")
    before = bed.router.stats(names)
    bed.router.reload(bed.rendered(bed.values, local))
    wait_until(lambda: bed.router.stats(names) != before, "Envoy reads the changed clusters")
    assert bed.router.stats(names)[names[1]] == before[names[1]]


@pytest.fixture
def mended(bed: Bed) -> Iterator[Bed]:
    """The bed, whose engines run and whose Bedrock is where it was, after the test too."""
    yield bed
    for engines in bed.engines.values():
        for engine in engines:
            with contextlib.suppress(OSError):  # it runs
                engine.start()
    _reload(bed, bed.local)


@dataclass(frozen=True)
class Fault:
    """One row. `arrange` makes the fault; the rest is what follows from it.

    `intake` may not fall back and has one engine; `summary` may and has two; `frozen` may, and has no budget. `backend`
    is who answers, empty for the router itself. `cut`: the stream breaks off. `after` is seconds that pass at least.
    `line` are words of the audit line's `details` or `reason`.
    """

    arrange: Callable[[Bed, str], None]
    model: str
    stream: bool
    status: int
    backend: str
    tries: int
    when: str
    line: str
    again: str
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    after: float = 0.0

    @property
    def asked(self) -> str:
        way = {"intake": "may not fall back", "summary": "may fall back", "frozen": "may fall back, no budget"}[
            self.model
        ]
        return f"{way}; {'stream' if self.stream else 'whole'}"

    @property
    def sees(self) -> str:
        headers = "".join(f", `{name}: {value}`" for name, value in self.headers.items())
        return f"{self.status}, {self.backend or 'no backend'}, tries {self.tries}{headers}" + (
            "; cut, no `[DONE]`" if self.cut else ""
        )


_BUSY = {"retry-after": "1", "x-plane-reason": "engine-busy"}
_EMPTY = {"retry-after": "15", "x-plane-reason": "no-capacity"}
_LATER = {"retry-after": "15"}
_SECOND, _BOTH, _NOBODY = "router: once more in the fleet", "router: fleet, fleet, Bedrock", "nobody"
_CUT_AT = "upstream_reset_after_response_started"
_NEVER = "upstream_reset_before_response_started"

FAULTS: dict[str, Fault] = {
    "engines full": Fault(
        _at_engines(fault="overloaded"), "intake", False, 429, "fleet", 2, "at once", "engine-busy",
        f"{_SECOND}; the client after `retry-after`", _BUSY
    ),
    "engines full, with a way out": Fault(
        _at_engines(fault="overloaded"), "summary", True, 200, "bedrock", 3, "at once", "via_upstream", _BOTH
    ),
    "full after vLLM's 200": Fault(
        _at_engines(fault="overloaded-after-headers"), "intake", True, 429, "fleet", 2, "at once", "engine-busy",
        f"{_SECOND}; the client after `retry-after`", _BUSY
    ),
    "full after vLLM's 200, with a way out": Fault(
        _at_engines(fault="overloaded-after-headers"), "summary", True, 200, "bedrock", 3, "at once", "via_upstream",
        _BOTH
    ),
    "engines drain (500)": Fault(
        _at_engines(fault="draining"), "intake", False, 500, "fleet", 2, "at once", "via_upstream", _SECOND
    ),
    "engines drain (500), with a way out": Fault(
        _at_engines(fault="draining"), "summary", False, 200, "bedrock", 3, "at once", "via_upstream", _BOTH
    ),
    "engines reset connections": Fault(
        _at_engines(fault="reset"), "intake", False, 503, "fleet", 2, "at once", _NEVER, _SECOND, _LATER
    ),
    "engines reset connections, with a way out": Fault(
        _at_engines(fault="reset"), "summary", True, 200, "bedrock", 3, "at once", "via_upstream", _BOTH
    ),
    "engines killed": Fault(
        _gone, "intake", False, 503, "fleet", 2, "at once", _NEVER, _SECOND, _LATER
    ),
    "engines killed, with a way out": Fault(
        _gone, "summary", False, 200, "bedrock", 3, "at once", "via_upstream", _BOTH
    ),
    "no engine": Fault(
        _empty, "intake", False, 503, "none", 2, "at once", "no-capacity",
        f"{_SECOND}; the client after `retry-after`", _EMPTY
    ),
    "no engine, with a way out": Fault(
        _empty, "summary", True, 200, "bedrock", 3, "at once", "via_upstream", _BOTH
    ),
    "engines silent": Fault(
        _at_engines(fault="silent"), "intake", True, 504, "fleet", 1, "after `requestTimeout`", "response_timeout",
        _NOBODY, after=LONGEST * 0.9
    ),
    "engines silent, with a way out": Fault(
        _at_engines(fault="silent"), "summary", True, 200, "bedrock", 3, "after one budget", "via_upstream", _BOTH,
        after=BUDGET_MS / 1000 * 0.9
    ),
    "engines silent, with a way out and no budget": Fault(
        _well, "frozen", True, 200, "bedrock", 3, "after 2 x `hangGuard`", "via_upstream", _BOTH, after=GUARD * 1.8
    ),
    "slow first token": Fault(
        _at_engines(first_token_delay=1.5), "intake", True, 200, "fleet", 1, "when the engine is ready",
        "via_upstream", _NOBODY, after=1.4
    ),
    "slow first token, with a way out": Fault(
        _at_engines(first_token_delay=60), "summary", True, 200, "bedrock", 3, "after one budget", "via_upstream",
        _BOTH, after=BUDGET_MS / 1000 * 0.9
    ),
    "slow every token": Fault(
        _at_engines(token_delay=0.15, tokens=10), "summary", True, 200, "fleet", 1, "first token at once",
        "via_upstream", _NOBODY, after=1.0
    ),
    "longer than allowed": Fault(
        _at_engines(token_delay=0.5, tokens=60), "summary", True, 200, "fleet", 1, "cut at `requestTimeout`",
        "response_timeout", _NOBODY, cut=True, after=LONGEST * 0.9
    ),
    "engine killed in mid-stream": Fault(
        _at_engines(fault="cut"), "summary", True, 200, "fleet", 1, "at once", _CUT_AT, "the client, from the start",
        cut=True
    ),
    "Bedrock throttles": Fault(
        _bedrock(fault="throttled"), "summary", True, 429, "bedrock", 3, "at once", "via_upstream", "the client"
    ),
    "Bedrock refuses": Fault(
        _bedrock(fault="refused"), "summary", False, 400, "bedrock", 3, "at once", "via_upstream", _NOBODY
    ),
    "Bedrock errs": Fault(
        _bedrock(fault="error"), "summary", False, 500, "bedrock", 3, "at once", "via_upstream", "the client"
    ),
    "Bedrock unavailable": Fault(
        _bedrock(fault="unavailable"), "summary", False, 503, "bedrock", 3, "at once", "via_upstream", "the client"
    ),
    "Bedrock silent, stream": Fault(
        _bedrock(fault="silent"), "summary", True, 504, "bedrock", 3, "after `hangGuard`", "upstream_per_try_timeout",
        "the client", after=GUARD * 0.9
    ),
    "Bedrock silent, whole": Fault(
        _bedrock(fault="silent"), "summary", False, 504, "bedrock", 3, "after `requestTimeout`", "response_timeout",
        "the client", after=LONGEST * 0.9
    ),
    "Bedrock resets connections": Fault(
        _bedrock(fault="reset"), "summary", False, 503, "bedrock", 3, "at once", _NEVER, "the client", _LATER
    ),
    "Bedrock cut in mid-stream": Fault(
        _bedrock(fault="cut"), "summary", True, 200, "bedrock", 3, "at once", _CUT_AT, "the client, from the start",
        cut=True
    ),
    "Bedrock refuses connections": Fault(
        _bedrock_elsewhere(port=1), "summary", False, 503, "bedrock", 3, "at once", _NEVER, "the client", _LATER
    ),
    "Bedrock's TLS fails": Fault(
        _bedrock_elsewhere(tls=True), "summary", False, 503, "bedrock", 3, "at once", _NEVER, "the client", _LATER
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_answered_as_the_table_says(mended: Bed, client: Client, lines: Audit, name: str) -> None:
    bed, fault = mended, FAULTS[name]
    fault.arrange(bed, fault.model)
    prompt = marker()
    reply = client.chat(fault.model, prompt, stream=fault.stream)
    # Where a health check was quicker than the request, nobody is asked any more.
    noticed = name == "engines killed" and reply.backend == "none"
    assert (reply.status, reply.backend or "") == (fault.status, "none" if noticed else fault.backend), str(reply)
    assert reply.attempts == fault.tries or fault.status == 504, str(reply)
    for header, value in fault.headers.items():
        assert reply.headers.get(header) == value, str(reply)
    assert reply.total >= fault.after, str(reply)
    if fault.status == 200 and fault.stream:
        assert (b"[DONE]" not in reply.body) == fault.cut, str(reply)
        assert bool(reply.error) == fault.cut, str(reply)
    line = lines.of(reply)
    assert (line["status"], line["backend"]) == (fault.status, "fleet" if fault.backend == "none" else fault.backend)
    assert line["attempts"] == fault.tries, line
    assert noticed or fault.line in f"{line['details']} {line['reason']}", line
    assert bed.bedrock.seen(prompt) <= int(fault.backend == "bedrock"), "a prompt at Bedrock that the fleet answered"
    if fault.model == "intake":
        assert bed.bedrock.seen(prompt) == 0


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.backend == "bedrock"])
def test_a_restricted_prompt_stays_whatever_is_broken(mended: Bed, client: Client, lines: Audit, name: str) -> None:
    """The same fault, the same model, and a client that said `x-residency: cluster`: there is no way out."""
    fault = FAULTS[name]
    fault.arrange(mended, fault.model)
    prompt = marker()
    reply = client.chat(fault.model, prompt, {"x-residency": "cluster"}, stream=fault.stream)
    line = lines.of(reply)
    assert mended.bedrock.seen(prompt) == 0 and reply.backend != "bedrock", str(reply)
    assert (line["status"], line["route"]) == (reply.status, f"{fault.model}/chat/restricted")


def test_a_killed_router_leaves_nothing_running_and_the_next_one_serves(
    bed: Bed, client: Client, tmp_path: Path
) -> None:
    with bed.another_router(tmp_path) as doomed:
        doomed.wait_for_engines({"intake": 1})
        bed.engines["intake"][0].behaviour.update({"token_delay": 0.1, "tokens": 40})
        other = Client(doomed.url)
        answer = other.start(CHAT, chat_body("intake", stream=True))
        wait_until(lambda: bed.engines["intake"][0].requests, "the engine has the request")
        doomed.process.kill()
        with contextlib.suppress(aiohttp.ClientError):
            assert answer.result(HANG).error
        wait_until(lambda: bed.engines["intake"][0].requests[0].aborted, "the engine stops the request")
        other.close()
    bed.engines["intake"][0].behaviour.update({"token_delay": 0.0, "tokens": 0})
    assert client.chat("intake").status == 200


def test_all_engines_gone_and_back_loses_nothing_that_may_fall_back(bed: Bed, client: Client) -> None:
    statuses = []
    for replicas in (0, 2, 0, 2):
        bed.scale("summary", replicas)
        for _ in range(20):  # while Envoy hears of it
            statuses.append(client.chat("summary").status)
        bed.wait_for_engines({"summary": replicas})
    assert set(statuses) == {200}
    assert client.chat("summary").backend == "fleet"


# --- protocol --------------------------------------------------------------------------------------------------------

_BODY = json.dumps(chat_body("summary")).encode()
_IN_CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY)
_LINE = f"POST {CHAT} HTTP/1.1"


def _raw(*headers: str, line: str = _LINE, body: bytes = _BODY, length: bool = True) -> bytes:
    head = [line, "host: plane", *headers, *([f"content-length: {len(body)}"] if length else [])]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def _chunks(*headers: str, body: bytes = _IN_CHUNKS) -> bytes:
    return _raw("transfer-encoding: chunked", *headers, body=body, length=False)


#: What is sent, and the status that answers it; 200 is an answer of the fleet, for requests that are proper after all.
PROTOCOL: dict[str, tuple[bytes, int]] = {
    "content-length beside chunked (CL.TE)": (_raw("transfer-encoding: chunked"), 400),
    "chunked beside content-length (TE.CL)": (_chunks("content-length: 4"), 400),
    "an unknown transfer-encoding": (_raw("transfer-encoding: xchunked", length=False), 501),
    "chunked twice": (_chunks("transfer-encoding: chunked"), 501),
    "chunked after gzip": (_raw("transfer-encoding: gzip, chunked", body=_IN_CHUNKS, length=False), 501),
    "content-length twice": (_raw(f"content-length: {len(_BODY)}"), 400),
    "two content-lengths in one": (_raw(f"content-length: {len(_BODY)}, {len(_BODY)}", length=False), 400),
    "a content-length with a plus": (_raw(f"content-length: +{len(_BODY)}", length=False), 400),
    "chunk extensions": (_chunks(body=b"%x;a=b\r\n%s\r\n0;c\r\n\r\n" % (len(_BODY), _BODY)), 200),
    "no chunk at all": (_chunks(body=b"0\r\n\r\n"), 400),
    "trailers": (_chunks(body=_IN_CHUNKS[:-2] + b"x-residency: cluster\r\nx-plane-model: intake\r\n\r\n"), 200),
    "chunks that end with a bare LF": (_chunks(body=_IN_CHUNKS.replace(b"\r\n", b"\n")), 400),
    "a chunk size that is no number": (_chunks(body=b"zz\r\n"), 400),
    "a chunk size beyond 64 bits": (_chunks(body=b"f" * 17 + b"\r\n"), 400),
    "a blank before the colon": (_raw("x-residency : cluster"), 400),
    "a null byte in a header": (_raw("x-residency: clus\x00ter"), 400),
    "a null byte in the path": (_raw(line=f"POST {CHAT}\x00 HTTP/1.1"), 400),
    "a header name with an underscore": (_raw("x_residency: cluster"), 400),
    "a folded header": (_raw("x-foo: a\r\n b"), 200),
    "headers of more than 60 KiB": (_raw("x-a: " + "a" * 61_500), 431),
    "headers of less than 60 KiB": (_raw("x-a: " + "a" * 60_500), 200),
    "more than 100 headers": (_raw(*(f"x-{number}: a" for number in range(101))), 431),
    "HTTP/1.0": (_raw(line=f"POST {CHAT} HTTP/1.0"), 426),
    "no host": (_raw().replace(b"host: plane\r\n", b""), 400),
    "an absolute target": (_raw(line=f"POST http://elsewhere.example{CHAT} HTTP/1.1"), 200),
    "double slashes": (_raw(line="POST //v1//chat///completions HTTP/1.1"), 200),
    "dots": (_raw(line=f"POST /intake/..{CHAT} HTTP/1.1"), 200),
    "encoded dots": (_raw(line=f"POST /intake/%2e%2E{CHAT} HTTP/1.1"), 200),
    "an encoded slash": (_raw(line="POST /v1%2fchat/completions HTTP/1.1"), 400),
    "an encoded backslash": (_raw(line="POST /v1%5cchat/completions HTTP/1.1"), 400),
    "a path parameter": (_raw(line=f"POST {CHAT};a=b HTTP/1.1"), 404),
    "a fragment": (_raw(line=f"POST {CHAT}#a HTTP/1.1"), 400),
    "a websocket": (_raw("connection: upgrade", "upgrade: websocket"), 403),
    "an upgrade to h2c": (_raw("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk"), 200),
    "expect": (_raw("expect: 100-continue"), 200),
    "TRACE": (_raw(line=f"TRACE {CHAT} HTTP/1.1"), 404),
    "OPTIONS": (_raw(line=f"OPTIONS {CHAT} HTTP/1.1"), 404),
    "CONNECT": (b"CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: elsewhere.example\r\n\r\n", 404),
    "a method that nobody knows": (_raw(line=f"BREW {CHAT} HTTP/1.1"), 400),
    "other names for method and path": (
        _raw("x-http-method-override: GET", "x-original-url: /v1/models", "x-rewrite-url: /v1/models"), 200),
    "what is not HTTP": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOL)
def test_a_request_that_is_odd_has_its_status_and_one_line(bed: Bed, client: Client, lines: Audit, name: str) -> None:
    data, wanted = PROTOCOL[name]
    before = _fence(client, lines)
    status, headers, body = raw_request(bed.url, data)
    assert status == wanted, body
    wait_until(lambda: len(lines.grow()) > before, "an audit line")
    (line,) = lines.grow()[before:]
    assert line["status"] == wanted
    if wanted != 200:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == wanted
        assert "`-`" not in error["message"], "the message has a hole"
    assert (headers.get("x-inference-backend") == "fleet") == (wanted == 200)
    assert not bed.bedrock.calls


def test_a_body_of_exactly_the_limit_is_served_and_one_byte_more_is_not(bed: Bed, client: Client) -> None:
    empty = json.dumps(chat_body("intake", "")).encode()
    for more, status in ((0, 200), (1, 413)):
        prompt = "x" * (BODY_LIMIT - len(empty) + more)
        reply = client.ask(CHAT, json.dumps(chat_body("intake", prompt)).encode())
        assert reply.status == status, str(reply)
    assert openai_error(reply)["message"] == "The body is larger than 1 MiB."


def test_a_second_request_on_the_same_connection_is_judged_by_itself(bed: Bed, client: Client, lines: Audit) -> None:
    """Pipelined: one that may leave, and behind it one that must not."""
    _empty(bed, "summary")
    free, bound = marker(), marker()
    before = _fence(client, lines)
    data = _raw(body=json.dumps(chat_body("summary", free)).encode())
    data += _raw("x-residency: cluster", "connection: close", body=json.dumps(chat_body("summary", bound)).encode())
    address = bed.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=HANG) as connection:
        connection.sendall(data)
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"503"]
    assert (bed.bedrock.seen(free), bed.bedrock.seen(bound)) == (1, 0)
    wait_until(lambda: len(lines.grow()) == before + 2, "two audit lines")


# HTTP/2 (RFC 9113), as far as one request needs it: frames, and headers that are neither indexed nor compressed.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _literal(*headers: tuple[str, str]) -> bytes:
    text = b""
    for name, value in headers:
        text += b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return text


def _http2(
    bed: Bed, body: bytes, *more: tuple[str, str], trailers: tuple[tuple[str, str], ...] = ()
) -> dict[int, bytes]:
    """The content of the frames that answer a chat, by their kind, until the stream or the connection ends."""
    head = _literal((":method", "POST"), (":scheme", "http"), (":path", CHAT), (":authority", "plane"), *more)
    address = bed.url.removeprefix("http://").split(":")
    found: dict[int, bytes] = {}
    with socket.create_connection((address[0], int(address[1])), timeout=HANG) as connection:
        sent = _PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, 4, 1, head)
        sent += _frame(_DATA, 0 if trailers else 1, 1, body)
        connection.sendall(sent + (_frame(_HEADERS, 5, 1, _literal(*trailers)) if trailers else b""))
        with connection.makefile("rb") as stream:
            while head := stream.read(9):
                kind, flags, of = head[3], head[4], int.from_bytes(head[5:], "big")
                content = stream.read(int.from_bytes(head[:3], "big"))
                found[kind] = found.get(kind, b"") + content
                if kind == _SETTINGS and not flags:
                    connection.sendall(_frame(_SETTINGS, 1, 0))
                if kind in (_RST, _GOAWAY) or (of == 1 and flags & 1):
                    break
    return found


def test_http2_without_tls_is_served_like_http1(bed: Bed, client: Client, lines: Audit) -> None:
    before = _fence(client, lines)
    found = _http2(bed, json.dumps(chat_body("intake", prompt := marker())).encode())
    assert found[_HEADERS][0] == 0x88, "the static table's :status 200"
    assert json.loads(found[_DATA])["object"] == "chat.completion"
    assert [prompt.encode() in request.body for request in bed.engines["intake"][0].requests] == [True]
    wait_until(lambda: len(lines.grow()) == before + 1, "its audit line")


@pytest.mark.parametrize(
    ("more", "trailers", "at_bedrock"),
    [
        ((("x-residency", "cluster"),), (), 0),
        ((("x-residency", "anywhere"), ("x-residency", "anywhere")), (), 0),
        ((("x-residency", "cluster"),), (("x-residency", "anywhere"),), 0),
        ((("x-residency", "cluster"), ("x-plane-stream", "plain"), ("x-envoy-retry-on", "5xx")), (), 0),
        ((), (("x-plane-model", "intake"),), 1),
    ],
)
def test_http2_keeps_what_http1_keeps(
    bed: Bed,
    client: Client,
    lines: Audit,
    more: tuple[tuple[str, str], ...],
    trailers: tuple[tuple[str, str], ...],
    at_bedrock: int,
) -> None:
    _empty(bed, "summary")
    before = _fence(client, lines)
    found = _http2(bed, json.dumps(chat_body("summary", prompt := marker())).encode(), *more, trailers=trailers)
    assert _HEADERS in found or _RST in found or _GOAWAY in found
    assert bed.bedrock.seen(prompt) == at_bedrock
    wait_until(lambda: len(lines.grow()) == before + 1, "its audit line")


@pytest.mark.parametrize(
    "header", [("connection", "x-residency"), ("X-Residency", "cluster"), ("te", "chunked"), ("x-a", "b\0")]
)
def test_what_is_no_proper_http2_ends_the_connection(
    bed: Bed, client: Client, lines: Audit, header: tuple[str, str]
) -> None:
    """RFC 9113, section 8.1.1: malformed. Envoy closes without an answer, the prompt goes nowhere, a line says why."""
    _empty(bed, "summary")
    before = _fence(client, lines)
    found = _http2(
        bed, json.dumps(chat_body("summary", prompt := marker())).encode(), ("x-residency", "cluster"), header
    )
    assert _HEADERS not in found and bed.bedrock.seen(prompt) == 0
    assert not bed.engines["summary"][0].requests
    end = _fence(client, lines) - 1
    assert [(line["status"], line["details"]) for line in lines.lines[before:end]] == [
        (0, "http2.invalid.header.field")
    ]


# --- the table -------------------------------------------------------------------------------------------------------

DOC = ROOT / "docs" / "faults.md"


def _rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of docs/faults.md."""
    text = DOC.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_the_table_of_faults_is_what_is_tested() -> None:
    wanted = [
        [name, fault.asked, fault.sees, fault.when, f"`{fault.line}`", fault.again] for name, fault in FAULTS.items()
    ]
    shown = "\n".join("| " + " | ".join(row) + " |" for row in wanted)
    assert _rows("Faults") == wanted, f"docs/faults.md, Faults, should be:\n{shown}"


def test_the_table_of_odd_requests_is_what_is_tested() -> None:
    wanted = [[name, str(status)] for name, (_, status) in PROTOCOL.items()]
    shown = "\n".join("| " + " | ".join(row) + " |" for row in wanted)
    assert _rows("Odd requests") == wanted, f"docs/faults.md, Odd requests, should be:\n{shown}"


def test_each_further_row_names_a_test_that_there_is() -> None:
    rows = _rows("Further faults")
    assert rows
    for row in rows:
        file, _, name = row[-1].strip("`").partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, row
