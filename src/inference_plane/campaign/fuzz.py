"""Requests as no client library would send them, against a real Envoy, each judged by Python's own reading of it.

Mutated bodies, headers, paths and framing, the same for the same seed. What the oracle asserts is at `Fuzz`. It counts
a prompt as one that must stay under *any* reading of the body (the first `model`, the last, one in the path), of the
headers (any x-residency that tightens, once unfolded, in any spelling) and of the token.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
import random
import re
import time
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import bodies
from .breaks import broken
from .plane import MODELS, Plane
from .residency import HANG, Caller, callers, may_leave
from .wire import Connection, Message

CONNECTIONS = 64
GIVE_UP = 1.0  # seconds until a client leaves that sent only a part of a request
SEGMENT = 250  # requests, after which engines are full or well anew
EXAMPLES = 8
INJECTED = "injected-by-the-client"

_CHAT = "/v1/chat/completions"
_NAMES = [name for model, entry in MODELS.items() for name in (model, *entry.get("servedNames", []))]
_SERVED = {name: model for model, entry in MODELS.items() for name in (model, *entry.get("servedNames", []))}
_WORDS = [
    "cluster",
    "region",
    "geography",
    "anywhere",
    "ANYWHERE",
    "",
    "world",
    "any where",
    "anywhere,cluster",
    "\xe9",
]
#: Statuses that the router says of itself and that need no explanation.
_OWN = {200, 400, 401, 403, 404, 405, 408, 413, 426, 431}


@dataclass(frozen=True)
class Case:
    """Bytes to send on a connection of their own.

    `stays`: the prompt must not leave, under some reading. `partial`: the request is not all there, so no answer has to
    come. `framing`: 501 is an answer too. `head`: an answer has no body.
    """

    number: int
    kind: str
    data: bytes
    stays: bool
    partial: bool = False
    framing: bool = False
    head: bool = False


@dataclass
class Found:
    """What a run saw: answers by kind of case and status, failures by kind, and examples of each in words."""

    requests: int
    seconds: float = 0.0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    replies: int = 0
    lines: int = 0
    at_bedrock: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def fail(self, kind: str, what: str) -> None:
        self.failed[kind] += 1
        if self.failed[kind] <= EXAMPLES:
            self.problems.append(f"{kind}: {what}")


# --- readings --------------------------------------------------------------------------------------------------------


def models_of(path: str, body: bytes) -> tuple[set[str], bool]:
    """Every name that some reading of a request takes for its model; and whether its body is JSON, hence certain.

    Of a body that is not, whatever looks like a `model` at any depth.
    """
    try:
        read = json.loads(body, object_pairs_hook=_Pairs)
        named = {value for key, value in read.pairs if key == "model" and isinstance(value, str)}
        certain = True
    except (ValueError, RecursionError, AttributeError):
        named = {name.decode("latin-1") for name in re.findall(rb'"model"\s*:\s*"([^"]*)"', body)}
        certain = False
    bare = re.sub(r"^http://[^/]*", "", path).partition("?")[0].partition("#")[0].replace("\\", "/")
    clean = posixpath.normpath(re.sub("/+", "/", urllib.parse.unquote(bare)))
    if found := re.match(r"/+([^/]+)/v1/", clean):
        named.add(found[1])
    return named, certain


class _Pairs:
    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def said(head: bytes) -> str | None:
    """What a head says of residency, in the tightest reading; None where it says nothing.

    A name that `connection` lists is for the next hop alone (RFC 9110, section 7.6.1): the router is that hop, and its
    sender has withdrawn what it said.
    """
    unfolded = re.sub(rb"\r?\n[ \t]+", b" ", head)
    values, nominated = [], ""
    for line in re.split(rb"\r?\n", unfolded)[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"x-residency":
            values.append(value.strip(b" \t").decode("latin-1"))
        elif name.strip().lower() == b"connection":
            nominated += value.decode("latin-1").lower()
    if not values or "x-residency" in nominated:
        return None
    return values[0] if len(values) == 1 and values[0] in ("region", "geography", "anywhere") else "cluster"


def stays(path: str, head: bytes, body: bytes, caller: Caller) -> bool:
    """Whether some reading says that the prompt must not leave; of a body that is no JSON, whether all readings do."""
    (named, certain), word = models_of(path, body), said(head)
    let_go = [may_leave(MODELS[_SERVED[name]], _CHAT, caller, word) for name in named if name in _SERVED]
    return not (let_go and all(let_go) if certain else any(let_go))


# --- mutations -------------------------------------------------------------------------------------------------------

Headers = list[tuple[bytes, bytes]]


def _tricks(random_: random.Random) -> Headers:
    """One to three header lines that mean something to somebody, or should not."""
    word = random_.choice(_WORDS).encode("latin-1")
    injected = INJECTED.encode()
    choices: list[Headers] = [
        [(b"x-residency", word)],
        [(b"X-RESIDENCY", word), (b"x-residency", random_.choice(_WORDS).encode("latin-1"))],
        [(b"x-residency", word), (b"connection", b"x-residency")],
        [(b"x-residency", word), (b"connection", b"keep-alive, X-Residency")],
        [(b"x-residency", word + b"\r\n " + random_.choice([b"anywhere", b"cluster", b""]))],
        [(b"x-foo", b"a\r\n\tx-residency: " + word)],
        [(b"x_residency", word)],
        [(b"x-residency ", word)],
        [(b"x-residency", b"\t " + word + b" \t")],
        [(b"x-residency", word + b"\x00")],
        [(b"x-foo", b"a\nx-residency: " + word)],
        [(b"x-plane-model", b"triage"), (b"x-plane-team", injected), (b"X-Plane-Stream", b"plain")],
        [(b"x-plane-body-model", b"triage"), (b"x-plane-refused", b""), (b"x-plane-target", injected)],
        [(b"x-plane-started-ms", b"1"), (b"x-plane-first-token-budget", injected)],
        [
            (b"x-envoy-retry-on", injected),
            (b"x-envoy-max-retries", b"9"),
            (b"x-envoy-upstream-alt-stat-name", injected),
        ],
        [
            (b"x-envoy-original-path", injected),
            (b"X-Envoy-Expected-Rq-Timeout-Ms", b"1"),
            (b"x-envoy-attempt-count", injected),
        ],
        [(b"x-inference-backend", injected), (b"x-inference-model-version", injected)],
        [(b"connection", b"x-plane-model, x-request-id, content-type")],
        [(b"connection", b"authorization")],
        [(b"connection", b"content-length, transfer-encoding, host")],
        [(b"te", b"trailers"), (b"connection", b"te")],
        [(b"connection", b"upgrade"), (b"upgrade", random_.choice([b"websocket", b"h2c", b"foo/2"]))],
        [(b"expect", random_.choice([b"100-continue", b"200-ok"]))],
        [(b"content-encoding", random_.choice([b"gzip", b"identity", b"br", b"identity, gzip", b"GZIP"]))],
        [(b"content-encoding", b"identity"), (b"content-encoding", b"gzip")],
        [
            (
                b"content-type",
                random_.choice([b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data"]),
            )
        ],
        [
            (b"x-http-method-override", b"GET"),
            (b"x-original-url", b"/triage" + _CHAT.encode()),
            (b"x-rewrite-url", b"/"),
        ],
        [
            (b"x-forwarded-for", b"10.0.0.1, 127.0.0.1"),
            (b"x-forwarded-proto", b"https"),
            (b"x-forwarded-host", injected),
        ],
        [(b"x-request-id", injected), (b"forwarded", b"for=10.0.0.1"), (b"via", b"1.1 a")],
        [(b"authorization", b"Bearer x"), (b"cookie", injected)],
        [(b"x-a", b"a" * random_.choice([1000, 59_000, 61_000, 70_000]))],
        [(b"x-%d" % number, b"a") for number in range(random_.choice([80, 110]))],
        [(b"", b"empty")],
        [(b"x-a", bytes(random_.randrange(256) for _ in range(8)))],
        [(b":path", b"/triage" + _CHAT.encode()), (b"host", b"other")],
    ]
    return [pair for lines in random_.sample(choices, random_.choice([1, 1, 2, 3])) for pair in lines]


def _paths(random_: random.Random) -> str:
    name = random_.choice([*MODELS, "nobody", "v1", "org%2Fsummary:8b"])
    return random_.choice(
        [
            f"/{name}{_CHAT}",
            f"/{name}/{_CHAT}",
            f"//{name}{_CHAT}",
            f"/{name}/..{_CHAT}",
            f"/intake/../{name}{_CHAT}",
            f"/{name}/%2e%2e{_CHAT}",
            f"/{name}/.{_CHAT}",
            f"/{name};x=y{_CHAT}",
            f"{_CHAT};x",
            f"{_CHAT}/",
            f"{_CHAT}?model={name}",
            f"/{name}%2f{_CHAT}",
            f"/{name}%5c{_CHAT}",
            f"/{name}\\{_CHAT}",
            f"/%{ord(name[0]):02x}{name[1:]}{_CHAT}",
            f"/{name}{_CHAT}#x",
            f"/{name}{_CHAT}%23",
            f"/{name}{_CHAT}%00",
            f"/{name.upper()}{_CHAT}",
            f"http://evil{_CHAT}",
            f"http://evil/{name}{_CHAT}",
            f"/{name}/intake{_CHAT}",
            f"{_CHAT}%3fx",
            f"/v1/models/{name}",
            "/v1/models",
            "*",
            "/",
            f"/{name}/v1/v1/chat/completions",
            f"/v1/../{name}{_CHAT}",
            "/../../" + name + _CHAT,
            f"/{name}{_CHAT}?" + "q" * 300,
            f"/{name}/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/ready",
            "/metrics",
            "/quitquitquit",
        ]
    )


def _chunked(random_: random.Random, body: bytes) -> bytes:
    """A body in chunks as RFC 9112 allows them: any sizes, extensions, leading zeros, upper case, trailers."""
    parts, rest = [], body
    while rest:
        size = random_.choice([1, 7, len(rest), len(rest)])
        piece, rest = rest[:size], rest[size:]
        number = random_.choice([b"%x", b"%X", b"00%x"]) % len(piece)
        parts.append(number + random_.choice([b"", b"", b";a=b", b';a="b;c"']) + b"\r\n" + piece + b"\r\n")
    trailers = random_.choice(
        [
            b"",
            b"x-residency: cluster\r\n",
            b"x-plane-model: triage\r\nx-residency: anywhere\r\n",
            b"content-length: 3\r\n",
        ]
    )
    return b"".join(parts) + b"0\r\n" + trailers + b"\r\n"


#: Framing that RFC 9112 forbids, or that readers may take for two things. A body -> header lines, and what follows.
_FRAMES: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {
    "cl.te": lambda body: (b"content-length: %d\r\ntransfer-encoding: chunked\r\n" % len(body), b"0\r\n\r\n" + body),
    "te.cl": lambda body: (
        b"transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ),
    "te.te": lambda body: (
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ),
    "te unknown": lambda body: (b"transfer-encoding: xchunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
    "te tab": lambda body: (b"transfer-encoding:\tchunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
    "te space": lambda body: (
        b"transfer-encoding : chunked\r\ncontent-length: 4\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ),
    "te folded": lambda body: (
        b"transfer-encoding:\r\n chunked\r\ncontent-length: 4\r\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ),
    "te last": lambda body: (b"transfer-encoding: gzip, chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
    "cl twice": lambda body: (b"content-length: %d\r\ncontent-length: %d\r\n" % (len(body), len(body)), body),
    "cl differs": lambda body: (b"content-length: 4\r\ncontent-length: %d\r\n" % len(body), body),
    "cl list": lambda body: (b"content-length: %d, %d\r\n" % (len(body), len(body)), body),
    "cl plus": lambda body: (b"content-length: +%d\r\n" % len(body), body),
    "cl hex": lambda body: (b"content-length: 0x%x\r\n" % len(body), body),
    "cl negative": lambda body: (b"content-length: -1\r\n", body),
    "cl huge": lambda body: (b"content-length: 18446744073709551617\r\n", body),
    "cl short": lambda body: (b"content-length: %d\r\n" % (len(body) // 2), body),
    "none": lambda body: (b"", body),
    "chunk huge": lambda body: (b"transfer-encoding: chunked\r\n", b"ffffffffffffffffff\r\n" + body),
    "chunk word": lambda body: (b"transfer-encoding: chunked\r\n", b"zz\r\n" + body),
    "chunk minus": lambda body: (b"transfer-encoding: chunked\r\n", b"-1\r\n" + body),
    "chunk lf": lambda body: (b"transfer-encoding: chunked\r\n", b"%x\n%s\n0\n\n" % (len(body), body)),
    "chunk overlong": lambda body: (b"transfer-encoding: chunked\r\n", b"%x\r\n%sXX0\r\n\r\n" % (len(body), body)),
}
_PARTIAL: dict[str, Callable[[bytes], tuple[bytes, bytes]]] = {
    "cl long": lambda body: (b"content-length: %d\r\n" % (len(body) + 9), body),
    "chunk open": lambda body: (b"transfer-encoding: chunked\r\n", b"%x\r\n%s\r\n" % (len(body), body)),
    "chunk half": lambda body: (b"transfer-encoding: chunked\r\n", b"%x\r\n%s" % (len(body) + 9, body)),
}
_GARBAGE = [
    b"\x00\x01\x02\r\n\r\n",
    bytes.fromhex("16030100a5010000a1030300") + b"\r\n\r\n",
    b"GET /v1/models\r\n\r\n",
    b"\r\n" * 40 + b"x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/3.0\r\n\r\n",
    b"POST  /v1 HTTP/1.1\r\nhost: a\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\nhost: a\n\n",
    b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
    b"{}\r\n\r\n",
    b"CONNECT evil:443 HTTP/1.1\r\nhost: evil\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
]
#: How many of a hundred cases are of a kind.
_KINDS = {
    "body": 40,
    "header": 22,
    "path": 12,
    "method": 4,
    "frame": 10,
    "chunked": 6,
    "partial": 1,
    "pipeline": 3,
    "garbage": 2,
}
_METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW", "post", "CONNECT"]


def cases(seed: int, count: int, callers: Sequence[Caller]) -> Iterator[Case]:
    """The cases of a run; the same for the same seed and callers."""
    random_ = random.Random(seed)
    good = [caller for caller in callers if caller.team == "care"]
    for number in range(count):
        caller = random_.choice(good if random_.random() < 0.9 else callers)
        prompt = _marker(number)
        body = (
            bodies.valid(random_, _NAMES, prompt) if random_.random() < 0.3 else bodies.mutated(random_, _NAMES, prompt)
        )
        if random_.random() < 0.15:
            body = _with_another_model(random_, body)
        path, method, tricks = _CHAT, "POST", []
        (kind,) = random_.choices(list(_KINDS), list(_KINDS.values()))
        if random_.random() < 0.15:
            tricks.append((b"x-residency", random_.choice(_WORDS).encode("latin-1")))
        if kind == "header":
            tricks = _tricks(random_)
        elif kind == "path":
            path = _paths(random_)
        elif kind == "method":
            method = random_.choice(_METHODS)
        if kind == "garbage":
            yield Case(number, kind, random_.choice(_GARBAGE), True, partial=True, framing=True)
            continue
        lines = [(b"host", b"plane"), (b"authorization", f"Bearer {caller.token}".encode()), *tricks]
        random_.shuffle(lines)
        head = f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(b"%s: %s\r\n" % line for line in lines)
        frame, sent = b"content-length: %d\r\n" % len(body), body
        if kind in ("frame", "partial"):
            kinds = _FRAMES if kind == "frame" else _PARTIAL
            name = random_.choice(list(kinds))
            frame, sent = kinds[name](body)
            kind = f"{kind} {name}"
        elif kind == "chunked":
            frame, sent = b"transfer-encoding: chunked\r\n", _chunked(random_, body)
        data = head + frame + b"\r\n" + sent
        if kind == "pipeline":
            data += _bound(caller, bodies.valid(random_, _NAMES, _marker(number, "bound")))
        yield Case(
            number,
            kind,
            data,
            stays(path, head, body, caller),
            partial=kind.startswith("partial"),
            framing=kind.startswith("frame"),
            head=method == "HEAD",
        )


def _marker(number: int, bound: str = "") -> str:
    """A prompt's words. They carry a checksum, as a mutation may make one marker into another."""
    text = f"{number}{bound}"
    return f"<prompt-{text}-{zlib.crc32(text.encode()):08x}>"


def _marked(body: bytes) -> set[tuple[int, bool]]:
    """The markers of a body that are whole: the number, and whether it is of a request that is bound."""
    found = re.findall(rb"<prompt-(\d+)(bound)?-([0-9a-f]{8})>", body)
    return {(int(number), bool(bound)) for number, bound, sum_ in found if b"%08x" % zlib.crc32(number + bound) == sum_}


def _with_another_model(random_: random.Random, body: bytes) -> bytes:
    """A body with one more `model`: first, last or deeper, its key perhaps escaped."""
    key = random_.choice(['"model"', '"model"', '"model"', '"model"', '"\\u006dodel"', '"Model"', '"model "'])
    member = f"{key}:{json.dumps(random_.choice(_NAMES))}".encode()
    start, end = body.find(b"{") + 1, body.rfind(b"}")
    if start == 0 or end < start:
        return body
    place = random_.randrange(3)
    if place == 0:
        return body[:start] + member + b"," + body[start:]
    return body[:end] + b"," + (member if place == 1 else b'"metadata":{%s}' % member) + body[end:]


def _bound(caller: Caller, body: bytes) -> bytes:
    """A request that is kept in the cluster, to stand behind another one."""
    head = f"POST {_CHAT} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {caller.token}\r\nx-residency: cluster\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


# --- the run ---------------------------------------------------------------------------------------------------------


class Fuzz:
    """One run against a plane of its own. `said` is told how far it is, about ten times. It asserts:

    - no prompt that must stay is at Amazon Bedrock, by its content and by the request's id;
    - each request has an answer, or the connection is closed; none hangs;
    - each answer has exactly one audit line, which is JSON in UTF-8, and there is no line too many;
    - Envoy lives, and says nothing of itself that is not in `_OWN` (501 of a transfer-encoding that it does not know);
    - what the engine reads as the model (Python's json, as vLLM) is the model whose engine it is;
    - no value that a client sent under a name of the plane's reaches an engine or Bedrock.
    """

    def __init__(self, requests: int, seed: int, said: Callable[[str], None], break_: str = "") -> None:
        self.requests, self.seed, self._said, self._break = requests, seed, said, break_
        self.found = Found(requests)
        self._ids: dict[str, tuple[Case, int]] = {}  # the case, and the how many-eth answer on its connection
        self._anonymous = self._gave_up = 0
        self._stay: set[int] = set()
        self._arrived: list[Message] = []

    def run(self, folder: Path) -> Found:
        """Raises what Plane raises, and ValueError for a break that the chart no longer fits."""
        change = {"change": broken(self._break)} if self._break else {}
        with Plane(folder, at_engine=self._at_engine, at_bedrock=self._arrived.append, **change) as plane:
            started = time.monotonic()
            plane.run(self._drive(plane))
            self.found.seconds = time.monotonic() - started
            self._audit(plane)
            self._leaks()
        return self.found

    async def _drive(self, plane: Plane) -> None:
        everybody = callers(plane)
        coming, modes = cases(self.seed, self.requests, everybody), random.Random(f"{self.seed} modes")
        probe = f"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {everybody[0].token}\r\n"
        last = probe.encode() + b"connection: close\r\n\r\n"
        shown = max(1, self.requests // 10)

        async def client() -> None:
            for case in coming:
                if case.number % SEGMENT == 0:
                    for engine in (engine for engines in plane.engines.values() for engine in engines):
                        engine.mode = modes.choice(["full", "full", "well"])
                if case.number % shown == 0 and case.number:
                    self._said(f"{case.number:,} of {self.requests:,}, failures {self.found.failed.total()}")
                await self._send(plane, case, last)

        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))

    async def _send(self, plane: Plane, case: Case, last: bytes) -> None:
        if case.stays:
            self._stay.add(case.number)
        connection = await Connection.open(plane.port, head=case.head)
        reply = await connection.ask(case.data, GIVE_UP if case.partial else HANG)
        if reply is None and not connection.closed:
            self._gave_up += 1
            if not case.partial:
                self._fail("hang", case, connection.problem)
        elif reply is not None and case.kind.startswith(("frame", "pipeline", "chunked")) and not connection.ending:
            connection.transport.write(last)
            if not await connection.finish(HANG):
                self._fail("hang", case, "after its first answer")
        connection.close()
        for place, answer in enumerate(connection.replies):
            self._judge(case, place, answer)

    def _judge(self, case: Case, place: int, reply: Message) -> None:
        backend = reply.text("x-inference-backend")
        self.found.replies += 1
        self.found.outcomes[case.kind.partition(" ")[0], f"{reply.status} {backend}".strip()] += 1
        if not backend and reply.status not in _OWN and not (case.framing and reply.status == 501):
            self._fail("status", case, f"{reply.status} {reply.body[:200]!r}")
        # What is no proper request is refused before Envoy makes an id of its own.
        id_ = reply.text("x-request-id")
        if id_ in ("", INJECTED) and not backend and reply.status in (400, 426, 431, 501):
            self._anonymous += 1
        else:
            if id_ in self._ids or id_ in ("", INJECTED):
                self._fail("request id", case, repr(id_))
            self._ids[id_] = case, place

    def _at_engine(self, model: str, message: Message) -> None:
        try:
            read = json.loads(message.body)
        except (ValueError, RecursionError):
            read = None
        named = read.get("model") if isinstance(read, dict) else None
        if named is not None and (not isinstance(named, str) or _SERVED.get(named) != model):
            self.found.fail("misread", f"an engine of {model} reads {named!r} in {message.body[:300]!r}")
        self._injected(message, f"an engine of {model}")

    def _injected(self, message: Message, where: str) -> None:
        for name, value in message.headers:
            if INJECTED.encode() in value and name.startswith(
                (b"x-plane-", b"x-envoy-", b"x-inference-", b"x-request-id")
            ):
                self.found.fail("injected", f"{where} got {name!r}: {value!r}")

    def _leaks(self) -> None:
        self.found.at_bedrock = len(self._arrived)
        for message in self._arrived:
            self._injected(message, "Bedrock")
            case, place = self._ids.get(message.text("x-request-id"), (None, 0))
            marked = _marked(message.body)
            if (case and (case.stays or place)) or any(bound or number in self._stay for number, bound in marked):
                self.found.fail("leak", f"{message.body[:300]!r} of {case.data[:1500] if case else None!r}")

    def _audit(self, plane: Plane) -> None:
        deadline = time.monotonic() + 10
        while len(lines := plane.router.audit()) < self.found.replies and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(0.5)  # two flushes of Envoy's: a line too many would be here now
        lines = plane.router.audit()
        self.found.lines = len(lines)
        try:
            plane.router.audit_path.read_bytes().decode()
        except UnicodeDecodeError as error:
            self.found.fail("audit", f"not UTF-8: {error}")
        if not plane.router.process.running:
            self.found.fail("crash", plane.router.process.log_tail(5))
        counted = Counter(line["request_id"] for line in lines)
        for id_, (case, _) in self._ids.items():
            if counted[id_] != 1:
                self._fail("audit", case, f"{counted[id_]} lines")
        others = len(lines) - len(self._ids)
        if not self._anonymous <= others <= self._anonymous + self._gave_up:
            self.found.fail(
                "audit",
                f"{others} further lines for {self._anonymous} answers without an id and "
                f"{self._gave_up} requests that the client gave up",
            )

    def _fail(self, kind: str, case: Case, what: str) -> None:
        self.found.fail(kind, f"{what}: case {case.number} ({case.kind}): {case.data[:1500]!r}")
