"""What became of each request: written by the process that sends, read by the one that judges. JSON lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Self

ANSWERED, FAILED, CANCELLED, UNSENT = "answered", "failed", "cancelled", "unsent"


@dataclasses.dataclass
class Sample:
    """One request. Times are in seconds: `due` and `sent` from the run's beginning, all others from sending.

    `due` is when it was to go out; a later turn of a conversation is due when the turn before has ended, where that is
    later than planned. `first` is the first token, `total` the end, both of the try that answered, waits included.
    `gaps` are the times between events with tokens. `error` is the kind of a failure, "" for none. `waits` are the
    Retry-After that were waited for, `refusals` how often it was refused with 429 or 503, `silent` how many of these
    had no Retry-After.
    """

    number: int
    phase: str
    request: str
    model: str
    tenant: str
    residency: str
    restricted: bool
    stream: bool
    turn: int
    due: float
    sent: float | None = None
    first: float | None = None
    total: float | None = None
    outcome: str = UNSENT
    error: str = ""
    status: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    gaps: list[float] = dataclasses.field(default_factory=list)
    backend: str = ""
    version: str = ""
    attempts: int | None = None
    reason: str = ""
    request_id: str = ""
    refusals: int = 0
    silent: int = 0
    waits: list[float] = dataclasses.field(default_factory=list)

    @property
    def late(self) -> float:
        """Seconds that the generator itself was late; 0 where it was never sent."""
        return max(0.0, self.sent - self.due) if self.sent is not None else 0.0

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None where there are fewer than two, or no stream."""
        if self.first is None or self.total is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        return (self.total - self.first) / (self.completion_tokens - 1)

    def line(self) -> str:
        """As one line of JSON, times to the microsecond."""
        return json.dumps({name: _rounded(value) for name, value in vars(self).items()}, separators=(",", ":"))

    @classmethod
    def read(cls, line: str) -> Self:
        return cls(**json.loads(line))


@dataclasses.dataclass
class Generator:
    """How the generator itself did: `busy` is the most requests under way at once, `lags` are seconds by which its loop
    was late, sampled all the time; no moment of a sample is more exact than that. `stats` are locust's own figures."""

    users: int
    busy: int
    lags: list[float]
    cpu: float
    stats: dict[str, Any]


def read(lines: Iterable[str]) -> list[Sample]:
    """All samples, in the order in which they were due."""
    return sorted((Sample.read(line) for line in lines), key=lambda sample: sample.number)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    return [round(each, 6) for each in value] if isinstance(value, list) else value
