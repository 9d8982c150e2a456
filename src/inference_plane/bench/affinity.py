"""What a model's affinity saves: conversations with a real prefix cache behind the router, by `none`, `session`,
`prefix`.

The engines are two processes of llama.cpp with a real small model. Each keeps what it has computed in as many slots as
it serves at once, so a prompt that meets the engine of its earlier turns computes only what is new. All three models of
the catalogue are these two engines; each has documents of its own, so that none profits from another's turn.
"""
from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.box
import rich.table

from inference_plane import helm
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.processes import Processes, free_addresses, free_port
from inference_plane.onehost.router import Router, local_values

from .envoys import NAMESPACE
from .load import LoadError

KINDS = ("none", "session", "prefix")
ENGINES, SLOTS = 2, 8
CONVERSATIONS, TURNS = 10, 4
AT_ONCE = 2  # requests; each engine has one thread
REPLY_TOKENS = 8
TIMEOUT = 120.0  # seconds, of one request
_ENGINE_PORT = 8000  # what the chart says of every engine
_SYSTEM = "You help nurses with the paperwork of an insurer. Answer in one short sentence, from the document alone."
_WORDS = (
    "the patient was seen on a visit for review of care and treatment plan with therapy dose approved by the nurse "
    "after hospital stay pain scale notes claim form denied appeal letter signed doctor home equipment request under "
    "policy benefit limit weeks daily mobility improved weight blood pressure stable follow up required"
).split()
_QUESTIONS = (
    "Who signed it, and when?", "Was the request approved, and why?", "Which treatment is planned next?",
    "What has to be sent with the appeal?",
)


@dataclass(frozen=True)
class Answer:
    """One turn: tokens of the prompt that came from the cache and that were computed, seconds to the first token."""

    turn: int
    cached: int
    computed: int
    first_token: float


@dataclass(frozen=True)
class Row:
    """All turns of one kind of affinity. `cached_share` is of the prompts' tokens; times are milliseconds, medians and
    the ninth decile; `later` leaves each conversation's first turn out."""

    affinity: str
    requests: int
    prompt_tokens: int
    cached_share: float
    later_cached_share: float
    first_token_ms: float
    first_token_p90_ms: float
    later_first_token_ms: float


def row(kind: str, answers: Sequence[Answer]) -> Row:
    """Needs two answers at least, one of them of a later turn."""
    later = [answer for answer in answers if answer.turn]
    times = [answer.first_token * 1000 for answer in answers]
    return Row(
        kind, len(answers), sum(a.cached + a.computed for a in answers), _share(answers), _share(later),
        statistics.median(times), statistics.quantiles(times, n=10)[-1],
        statistics.median(a.first_token * 1000 for a in later))


def _share(answers: Sequence[Answer]) -> float:
    return sum(a.cached for a in answers) / sum(a.cached + a.computed for a in answers)


def document(seed: str, words: int = 180) -> str:
    """A text of its own for each seed, the same in each run."""
    draw = random.Random(seed)
    return f"Document {seed}: " + " ".join(draw.choice(_WORDS) for _ in range(words))


def measure(
    *, kinds: Sequence[str] = KINDS, conversations: int = CONVERSATIONS, turns: int = TURNS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """A row for each of `kinds`. Raises LoadError where an answer is no whole stream with llama.cpp's timings, and NotReady
    or TimeoutError where a process does not start."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-affinity-")))
        dns = stack.enter_context(DnsServer())
        processes = stack.enter_context(Processes())
        progress("starting the engines")
        addresses = free_addresses(ENGINES, _ENGINE_PORT)
        for address in addresses:
            processes.start(
                "model",
                [sys.executable, "-m", "inference_plane.onehost.model", "--host", address, "--port", str(_ENGINE_PORT),
                 "--slots", str(SLOTS), "--threads", "1", "--similarity", "0.5"],
                log_path=folder / f"{address}.log", ready=f"http://{address}:{_ENGINE_PORT}/health", timeout=120)
        for kind in KINDS:
            dns.set(f"{kind}.{NAMESPACE}.svc.cluster.local", addresses)
        local = local_values(dns_port=dns.port, bedrock_port=free_port())
        router = Router(
            processes, helm.template("router", values=_values() | local, namespace=NAMESPACE), folder / "router", {})
        router.wait_for_engines(dict.fromkeys(KINDS, ENGINES))
        found = []
        for kind in kinds:
            progress(f"affinity: {kind}")
            found.append(row(kind, _conversations(router.url, kind, conversations, turns)))
        return found


def _values() -> dict[str, object]:
    entry = {
        "source": "file:///models/smollm2-135m-instruct/v1/", "weightsGiB": 0.3, "accelerator": "cpu",
        "maxModelLen": 2048, "replicas": {"min": ENGINES}, "api": ["chat"],
    }
    return {"auth": {"mode": "none"}, "global": {
        "aws": {"region": "eu-central-1"}, "tls": {"mode": "none"}, "network": {"policies": False},
        "models": {kind: entry | {"affinity": kind} for kind in KINDS},
    }}


def _conversations(url: str, kind: str, conversations: int, turns: int) -> list[Answer]:
    """All conversations take their first turn, then all their second: those of others come in between."""
    talks = {
        f"{kind}-{number}": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": document(f"{kind}-{number}")},
            {"role": "assistant", "content": "I have read it."},
        ] for number in range(conversations)
    }
    answers = []
    order = random.Random(kind)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for turn in range(turns):
            for session, messages in talks.items():
                messages.append({"role": "user", "content": _QUESTIONS[turn]})
            sessions = order.sample(sorted(talks), len(talks))
            asked = {session: pool.submit(_ask, url, kind, session, talks[session], turn) for session in sessions}
            for session, future in asked.items():
                answer, text = future.result()
                talks[session].append({"role": "assistant", "content": text})
                answers.append(answer)
    return answers


def _ask(url: str, model: str, session: str, messages: Sequence[object], turn: int) -> tuple[Answer, str]:
    body = {
        "model": model, "messages": messages, "stream": True, "max_tokens": REPLY_TOKENS, "temperature": 0, "seed": 1}
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT)
    text, first, timings, started = "", None, None, time.monotonic()
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {
            "content-type": "application/json", "x-session-id": session})
        reply = connection.getresponse()
        if reply.status != 200:
            raise LoadError(f"{model}: {reply.status} {reply.read(300)!r}")
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            timings = event.get("timings", timings)
            for choice in event["choices"]:
                if piece := choice["delta"].get("content"):
                    first = first or time.monotonic() - started
                    text += piece
    if first is None or not timings:
        raise LoadError(f"{model}: a stream without text or without llama.cpp's timings: {text!r} {timings}")
    return Answer(turn, timings["cache_n"], timings["prompt_n"], first), text


def table(found: Sequence[Row], caption: str) -> rich.table.Table:
    """For people."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    shown.add_column("affinity")
    for heading in ("requests", "prompt tokens", "cached", "later turns", "first token", "ninth decile", "later turns"):
        shown.add_column(heading, justify="right")
    for one in found:
        shown.add_row(
            one.affinity, str(one.requests), f"{one.prompt_tokens:,}", f"{one.cached_share:.0%}",
            f"{one.later_cached_share:.0%}", f"{one.first_token_ms:,.0f} ms", f"{one.first_token_p90_ms:,.0f} ms",
            f"{one.later_first_token_ms:,.0f} ms")
    return shown
