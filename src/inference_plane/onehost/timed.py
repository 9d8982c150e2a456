"""An engine that keeps vLLM's time without a GPU: its surface (`surface`), its queue, and a model of its steps.

    python -m inference_plane.onehost.timed --host 127.18.0.11 --port 8000 --metrics-port 8001
        --served-model-name NAME --max-num-seqs 64 --max-num-queued-reqs 192 --max-model-len 16384 --middleware FILE

Real: HTTP, streams, aborts, admission and queueing, token by token, the plane's middleware. A model: how long a step
takes. Words instead of tokens, and nothing is understood. As in vLLM's V1 scheduler, one step gives each running
sequence one token, and what is left of `max_num_batched_tokens` goes to prompts in the order of arrival (chunked
prefill); a sequence has its first token at the end of the step that ends its prompt. A step takes

    step_seconds + sequence_seconds x (sequences that decode) + (prompt tokens in it) / prefill_tokens_per_second

and what of a prompt is in the prefix cache, in whole blocks, takes no time. Left out: the KV cache as a limit
(preemption, waiting for blocks; set --max-num-seqs to what fits), speculative decoding, and the time that the API
server itself takes.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .engine import serve_until_terminated
from .replay import contents
from .serving import ServerThread, control_app, load_middleware
from .surface import Behaviour, Piece, Surface

#: Tokens of a block of vLLM's KV cache, of which the prefix cache keeps whole ones (its default).
BLOCK = 16


@dataclass(frozen=True)
class Speed:
    """How fast an engine is. The defaults are about those of Qwen2.5-7B in bf16 on an RTX A6000 of 48 GB.

    `step_seconds` and `sequence_seconds` are fitted to a published sweep in vLLM 0.23 (time per output token 21.9 ms
    with 1 stream, 22.3 with 8, 27.5 with 64, 36.0 with 128):
    https://ld-singh.github.io/ai-factory-ops-lab/portfolio-lab/06-validation-reports/inference-benchmark-report/
    `prefill_tokens_per_second` is an estimate: 2 FLOP a parameter (7.6 B) and token, at half of the 154.8 TFLOP/s that
    NVIDIA states for dense bf16. `max_num_batched_tokens` is vLLM's own default. `cached_tokens` is what the prefix
    cache holds: 0.9 x 48 GB without 15.2 GB of weights and 2 GB more, at 56 KiB a token (28 layers x 4 KV heads x 128
    x 2 x 2).
    """

    step_seconds: float = 0.0217
    sequence_seconds: float = 0.0001
    prefill_tokens_per_second: float = 5000.0
    max_num_batched_tokens: int = 2048
    cached_tokens: int = 450_000


class PrefixCache:
    """Which blocks of prompts were computed before; the least recently used go first. Pure."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens // BLOCK
        self._blocks: OrderedDict[int, None] = OrderedDict()
        self.queries = self.hits = 0

    def take(self, words: list[str]) -> int:
        """How many tokens at the beginning of a prompt are cached; all of it is from now on. Never the whole prompt."""
        chain, found, missed = 0, 0, False
        for start in range(0, len(words) - BLOCK + 1, BLOCK):
            chain = hash((chain, *words[start : start + BLOCK]))
            if chain in self._blocks and not missed:
                found += BLOCK
            else:
                missed = True
            self._blocks[chain] = None
            self._blocks.move_to_end(chain)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        found = min(found, len(words) - 1)
        self.queries += len(words)
        self.hits += found
        return found


@dataclass(eq=False)
class Sequence:
    """One running sequence: tokens of its prompt yet to compute, and how many it is to generate."""

    prefill: int
    wanted: int
    made: int = 0
    told: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Step:
    """One step: who gets a token, how many prompt tokens it computes, and how long it takes in seconds."""

    tokens: list[Sequence]
    prefilled: int
    seconds: float


def step(running: list[Sequence], speed: Speed) -> Step:
    """The next step of these sequences, in the order of arrival; takes what it computes from their prompts."""
    tokens = [each for each in running if not each.prefill]
    decoding, left, prefilled = len(tokens), speed.max_num_batched_tokens - len(tokens), 0
    for each in running:
        if each.prefill and left > 0:
            chunk = min(each.prefill, left)
            each.prefill -= chunk
            left -= chunk
            prefilled += chunk
            if not each.prefill:
                tokens.append(each)
    seconds = speed.step_seconds + speed.sequence_seconds * decoding + prefilled / speed.prefill_tokens_per_second
    return Step(tokens, prefilled, seconds)


class Timed:
    """Generates words at an engine's pace, for `Surface` and `Bedrock`."""

    def __init__(self, speed: Speed) -> None:
        self.speed, self.cache = speed, PrefixCache(speed.cached_tokens)
        self._running: list[Sequence] = []
        self._loop: asyncio.Task[None] | None = None

    async def __call__(self, body: Mapping[str, Any], chat: bool, behaviour: Behaviour) -> AsyncGenerator[Piece, None]:
        words = " ".join(contents(body)).split() or ["-"]
        cached = self.cache.take(words)
        wanted = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        sequence = Sequence(len(words) - cached, wanted)
        self._running.append(sequence)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._steps())
        try:
            told = 0
            while told < wanted:
                await sequence.told.wait()
                sequence.told.clear()
                while told < sequence.made:
                    told += 1
                    text = f" {words[told % len(words)]}"
                    yield Piece(text, len(words), told, "length" if told == wanted else None, cached)
        finally:
            if sequence in self._running:
                self._running.remove(sequence)

    async def _steps(self) -> None:
        """One step after the other while anything runs, by their own clock: late timers do not add up."""
        clock = time.monotonic()
        while self._running:
            now = step(self._running, self.speed)
            clock = max(clock + now.seconds, time.monotonic() - now.seconds)
            await asyncio.sleep(max(0.0, clock - time.monotonic()))
            for sequence in now.tokens:
                sequence.made += 1
                sequence.told.set()
                if sequence.made == sequence.wanted and sequence in self._running:
                    self._running.remove(sequence)


class TimedEngine:
    """A context manager: one engine on a loopback address, in threads of this process; `stop` and `start` at any time.

    Each start is a new engine, with nothing in its queue and its cache. `load_seconds` pass until it listens, as vLLM
    listens once its weights are there and its graphs are captured. `middleware` is the file of the plane's middleware,
    `options` are what that takes. Raises OSError where an address is taken, and ValueError for a file that is none.
    """

    def __init__(
        self,
        *,
        served_model_name: str,
        speed: Speed = Speed(),
        host: str = "127.0.0.1",
        port: int = 0,
        metrics_port: int | None = None,
        max_num_seqs: int = 64,
        max_num_queued_reqs: int = 0,
        max_model_len: int = 16384,
        middleware: str | Path | None = None,
        load_seconds: float = 0.0,
        **options: Any,
    ) -> None:
        self.behaviour = Behaviour()
        self.host, self.port, self._metrics_port = host, port, metrics_port
        self._speed, self._load_seconds = speed, load_seconds
        self._middleware, self._options = middleware, options
        self._limits = {
            "served_model_name": served_model_name,
            "max_num_seqs": max_num_seqs,
            "max_num_queued_reqs": max_num_queued_reqs,
            "max_model_len": max_model_len,
        }
        self._servers: list[ServerThread] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Listen, after `load_seconds`."""
        time.sleep(self._load_seconds)
        self.surface = Surface(Timed(self._speed), behaviour=self.behaviour, **self._limits)
        app = load_middleware(self._middleware, self.surface, **self._options)
        server = ServerThread(app, self.host, self.port)
        self._servers = [server]
        if self._metrics_port is not None:
            # First, because the other one's /health says that the engine is ready.
            self._servers.insert(0, ServerThread(self.surface.metrics_only, self.host, self._metrics_port))
        for each in self._servers:
            each.start()
        self.port = server.port

    def stop(self) -> None:
        """Die: connections are cut and new ones refused."""
        for server in reversed(self._servers):
            server.stop()
        self._servers = []

    def __enter__(self) -> TimedEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main(arguments: list[str] | None = None) -> None:
    """Serve one engine until SIGTERM, which aborts what runs, as vLLM's `--shutdown-timeout 0` does."""
    parser = argparse.ArgumentParser(prog="python -m inference_plane.onehost.timed", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, help="a port that serves only /metrics")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-queued-reqs", type=int, default=0, help="running plus waiting; 0: no limit")
    parser.add_argument("--max-model-len", type=int, default=16384)
    parser.add_argument("--middleware", help="a Python file with the class PlaneMiddleware")
    parser.add_argument(
        "--load-seconds", type=float, default=0.0, help="until it listens: weights, compilation, graphs"
    )
    parser.add_argument("--control-port", type=int, help="GET the state, POST changes of behaviour")
    for name, value in vars(Speed()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    control = options.pop("control_port")
    speed = Speed(**{name: options.pop(name) for name in vars(Speed())})
    engine = TimedEngine(speed=speed, **options)
    servers: list[Any] = [engine]
    if control is not None:
        servers.append(
            ServerThread(control_app(lambda: engine.surface.state(), engine.behaviour.update), "127.0.0.1", control)
        )
    serve_until_terminated(*servers)


if __name__ == "__main__":
    main()
