"""Tokens by who asked, from the audit lines of routers and engines: who called is in the router's, what it cost in the
engines'. docs/metering.md says what the lines are and when each is written.

A request is everything with one request id: a `start`, a `bedrock` line where its prompt left, an `engine` line for
each try, and an `end`. The engines' own counts go before what the router saw of a reply; where neither has any, the
tokens are estimated from bytes, and said to be.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]

#: Envoy's flags of a try whose prompt cannot have arrived.
NOT_SENT = ("UpstreamConnectionFailure", "UpstreamOverflow")

TYPES = ("start", "bedrock", "end", "engine")

#: Of a prompt, by the rule of thumb that OpenAI and AWS give for English text; a JSON body has a little more.
BYTES_PER_TOKEN = 4
#: Of a stream: one event of OpenAI's form with one token, as Amazon Bedrock's stand-in sends it.
BYTES_PER_EVENT = 250


@dataclass(frozen=True)
class Key:
    """What tokens are added up by; None where nobody knows."""

    team: str | None
    cost_center: str | None
    model: str | None
    model_version: str | None
    backend: str | None


@dataclass
class Use:
    """Tokens of one key. `estimated_tokens` are those of prompt and completion that nobody counted."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    estimated_tokens: int = 0

    def add(self, other: Use) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Request:
    """The lines of one request id."""

    start: Line | None = None
    bedrock: Line | None = None
    end: Line | None = None
    tries: list[Line] = field(default_factory=list)

    @property
    def router(self) -> Line:
        """What the router says of it: the end where there is one."""
        return self.end or self.start or {}


@dataclass
class Report:
    """What lines add up to.

    `lost` are requests that were started and have no end, by the last place that is known of them: `router`, `fleet`,
    `bedrock`. `without_engine` are answers of the fleet that no engine line tells of, `without_router` engine lines of
    requests that no router line tells of. `unknown` are tries whose engine could not say what they cost.
    """

    uses: dict[Key, Use] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    without_engine: int = 0
    without_router: int = 0
    unknown: int = 0

    def total(self) -> Use:
        """Of all keys together."""
        whole = Use()
        for use in self.uses.values():
            whole.add(use)
        return whole


@dataclass
class Lines:
    """Lines as they are read; `unreadable` were cut, as the last one of a killed process may be."""

    requests: dict[str, Request] = field(default_factory=dict)
    strays: list[Line] = field(default_factory=list)
    unreadable: int = 0

    def read(self, texts: Iterable[str]) -> None:
        """Take what is an audit line, whatever a log collector wrote before it, and skip the rest."""
        for text in texts:
            brace = text.find('{"')
            if brace < 0 or '"type":' not in text:
                continue
            try:
                line = json.loads(text[brace:])
            except ValueError:
                self.unreadable += 1
                continue
            if isinstance(line, dict) and line.get("type") in TYPES:
                self.add(line)

    def add(self, line: Line) -> None:
        if not line.get("request_id"):  # asked of an engine directly, or refused before it had an id
            self.strays.append(line)
            return
        request = self.requests.setdefault(line["request_id"], Request())
        if line["type"] == "engine":
            request.tries.append(line)
        else:
            setattr(request, line["type"], line)


def report(lines: Lines) -> Report:
    """Every token of the lines under one key."""
    made = Report()
    for request in lines.requests.values():
        if request.start and not request.end:
            made.lost["bedrock" if request.bedrock else "fleet" if request.tries else "router"] += 1
        for key, use, source in _parts(request):
            made.uses.setdefault(key, Use()).add(use)
            made.sources[source] += use.prompt_tokens + use.completion_tokens
        made.without_engine += _without_engine(request)
        made.without_router += 0 if request.router else len(request.tries)
        made.unknown += sum(line["prompt_tokens"] is None for line in request.tries)
    for line in lines.strays:
        if line["type"] == "end":
            made.uses.setdefault(_key(line, line, None), Use()).add(Use(requests=1))
        elif line["type"] == "engine":
            made.uses.setdefault(_key({}, line, "fleet"), Use()).add(_counted(line))
            made.without_router += 1
    return made


def _parts(request: Request) -> Iterator[tuple[Key, Use, str]]:
    """What each place took part with; the request itself is counted at the last one."""
    end, router = request.end or {}, request.router
    backend = "bedrock" if request.bedrock else end.get("backend") or ("fleet" if request.tries else None)
    for line in request.tries:
        yield _key(router, line, "fleet"), _counted(line), line["usage_source"] or "unknown"
    if backend == "bedrock":
        yield (_key(router, request.bedrock or end, "bedrock"), *_at_bedrock(request))
    elif _without_engine(request):
        yield (_key(router, end, "fleet"), *_seen(end, request.start))
    elif request.tries:
        last = max(request.tries, key=lambda line: (line["attempt"] or 0, line["time"]))
        yield _key(router, last, "fleet"), Use(requests=1 if router else 0), "none"
    else:
        yield _key(router, end, backend), Use(requests=1), "none"


def _key(router: Line, place: Line, backend: str | None) -> Key:
    model = place.get("model") or router.get("model") or router.get("requested_model")
    version = place.get("model_version") or router.get("model_version")
    return Key(router.get("team"), router.get("cost_center"), model, version, backend)


def _counted(line: Line) -> Use:
    """Of an engine's line; nothing where it could not say."""
    return Use(0, line["prompt_tokens"] or 0, line["completion_tokens"] or 0, line["cached_tokens"] or 0)


def _at_bedrock(request: Request) -> tuple[Use, str]:
    """An error costs nothing. A reply without a usage, or none because somebody left, is estimated."""
    end, sent = request.end, request.bedrock
    if end is None:
        return _estimate(sent["request_bytes"] if sent else 0, 0)
    refused = end["status"] >= 400 and end["details"] == "via_upstream"
    unsent = not end["upstream"] or any(flag in end["flags"] for flag in NOT_SENT)
    return (Use(requests=1), "none") if refused or unsent else _seen(end, sent)


def _seen(end: Line, sent: Line | None) -> tuple[Use, str]:
    """Of a reply that went through the router: by its usage, or else by its bytes."""
    streamed = (end["content_type"] or "").startswith("text/event-stream")
    if end["prompt_tokens"] is not None:
        use = Use(1, end["prompt_tokens"], end["completion_tokens"] or 0, end["cached_tokens"] or 0)
        return use, "stream" if streamed else "reply"
    received = end["response_bytes"] if end["status"] == 200 else 0
    tokens = received // (BYTES_PER_EVENT if streamed else BYTES_PER_TOKEN)
    return _estimate((sent or end)["request_bytes"], tokens)


def _estimate(prompt_bytes: int, completion: int) -> tuple[Use, str]:
    prompt = prompt_bytes // BYTES_PER_TOKEN
    return Use(1, prompt, completion, 0, prompt + completion), "estimate"


def _without_engine(request: Request) -> bool:
    """Whether the fleet has answered, or begun to, and no line of that engine tells what it cost."""
    end = request.end or {}
    answered = end.get("backend") == "fleet" and end["status"] == 200
    return answered and end["attempts"] not in {line["attempt"] for line in request.tries}


FIELDS = [field.name for field in (*dataclasses.fields(Key), *dataclasses.fields(Use))]


def rows(made: Report) -> list[dict[str, Any]]:
    """One a key, in the order of team, model, version and backend."""
    ordered = sorted(made.uses.items(), key=lambda item: tuple(value or "" for value in vars(item[0]).values()))
    return [{**vars(key), **vars(use)} for key, use in ordered]
