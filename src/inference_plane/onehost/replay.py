"""An engine without a model: replies captured from vLLM, replayed over the same surface, with faults on demand.

The text, the token counts and the finish reason of a reply come from the capture; a test may lengthen it, slow it down
and break it, for the whole engine (`behaviour`) or for one request. A request asks with the body field `x_test`, or
with `[[x_test {...}]]` in a message, which also survives a router that filters body fields. Both take the fields of
`Behaviour`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from .serving import ServerThread, load_middleware
from .surface import Behaviour, Piece, Received, Surface

_MARKER = re.compile(r"\[\[x_test (\{.*?\})\]\]")


class ReplayEngine:
    """A context manager: one replayed engine on a loopback address, in a thread of this process.

    `data` is a folder with vLLM's captured `chat.sse`. `middleware` is the file of the plane's middleware, or None.
    `version` is the weights', for the middleware's lines. `metrics_port` adds a port that serves only metrics; `tls` is
    what ServerThread takes of it. Set `behaviour` at any time; `stop` and `start` play a pod's death and return on the
    same address. Raises ValueError for a capture without tokens.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        metrics_port: int | None = None,
        served_model_name: str = "clinical-summary",
        max_num_seqs: int = 64,
        max_num_queued_reqs: int = 0,
        max_model_len: int = 1024,
        middleware: str | Path | None = None,
        version: str = "v1",
        **tls: Any,
    ) -> None:
        self.behaviour = Behaviour()
        self.surface = Surface(
            Replay.from_capture(Path(data) / "chat.sse"),
            served_model_name=served_model_name,
            max_num_seqs=max_num_seqs,
            max_num_queued_reqs=max_num_queued_reqs,
            max_model_len=max_model_len,
            behaviour=self.behaviour,
            knobs=knobs,
            record=True,
        )
        #: What the middleware writes to an engine's stdout: one JSON line a request.
        self.lines: list[str] = []
        facts = {"model": served_model_name, "model_version": version, "pod": host}
        options = {} if middleware is None else {"report": self.lines.append, "facts": facts}
        self._servers = [ServerThread(load_middleware(middleware, self.surface, **options), host, port, **tls)]
        if metrics_port is not None:
            self._servers.append(ServerThread(self.surface.metrics_only, host, metrics_port))

    @property
    def host(self) -> str:
        return self._servers[0].host

    @property
    def port(self) -> int:
        return self._servers[0].port

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def requests(self) -> list[Received]:
        """Every inference request so far, in the order of arrival."""
        return self.surface.requests

    def reset(self) -> None:
        """Forget the requests and their lines, and behave well again."""
        self.surface.requests.clear()
        self.lines.clear()
        self.behaviour.update(vars(Behaviour()))

    def start(self) -> None:
        """Listen (again), with an empty queue. Raises OSError where the address is taken."""
        self.surface.queue.clear()
        for server in self._servers:
            server.start()

    def stop(self) -> None:
        """Die: connections are cut and new ones refused."""
        for server in self._servers:
            server.stop()

    def __enter__(self) -> ReplayEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Replay:
    """Generates a captured reply: `texts` one token each, repeated where a longer reply is wanted."""

    def __init__(self, texts: list[str], prompt_tokens: int, finish_reason: str) -> None:
        self.texts, self.prompt_tokens, self.finish_reason = texts, prompt_tokens, finish_reason

    @classmethod
    def from_capture(cls, path: Path) -> Replay:
        """Read a captured stream. Raises ValueError where it has no token or no usage."""
        events = [json.loads(line[6:]) for line in path.read_text().splitlines() if line.startswith("data: {")]
        choices = [event["choices"][0] for event in events if event.get("choices")]
        texts = [choice["delta"]["content"] for choice in choices if "role" not in choice["delta"]]
        usage = [event["usage"] for event in events if event.get("usage")]
        if not texts or not usage:
            raise ValueError(f"{path}: not a captured chat stream, it has {len(texts)} tokens and {len(usage)} usages")
        return cls(texts, usage[-1]["prompt_tokens"], choices[-1]["finish_reason"])

    async def __call__(self, body: Mapping[str, Any], chat: bool, behaviour: Behaviour) -> AsyncGenerator[Piece, None]:
        wanted = behaviour.tokens or body.get("max_completion_tokens") or body.get("max_tokens") or len(self.texts)
        for number, text in enumerate(itertools.islice(itertools.cycle(self.texts), int(wanted)), start=1):
            yield Piece(text, self.prompt_tokens, number, self.finish_reason if number == wanted else None)


def knobs(body: Mapping[str, Any], marker: re.Pattern[str] = _MARKER) -> Mapping[str, Any]:
    """The behaviour that one request asks for. Raises ValueError for a marker that is not JSON."""
    for text in contents(body):
        if found := marker.search(text):
            return json.loads(found[1])
    return body.get("x_test") or {}


def contents(body: Mapping[str, Any]) -> list[str]:
    """Every text of a request's prompt: messages (also in parts) and `prompt`."""
    texts: list[str] = []
    for value in [*(message.get("content") for message in body.get("messages") or []), body.get("prompt")]:
        for part in value if isinstance(value, list) else [value]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
    return texts
