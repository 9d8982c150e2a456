"""How long a fleet takes to have all its requests again, once its engines are back. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

#: The plane's promise (docs/policy.md): the policy's hold and its way down, from 100 points.
WITHIN_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Return:
    """One time in which a share of a model's requests fell back. Seconds of the run.

    `engine` is when the last engine of that time came, None where none did. `ended` is when the share was 0 again, None
    where the run ended before; `seen` is the last look, then or before.
    """

    model: str
    began: float
    engine: float | None
    ended: float | None
    seen: float

    @property
    def seconds(self) -> float | None:
        """From the last engine to the end; None where one of the two was not."""
        return None if self.ended is None else self.at_least

    @property
    def at_least(self) -> float | None:
        """The same, or as long as it had taken when the run ended; None where no engine came."""
        return None if self.engine is None else self.seen - self.engine

    def __str__(self) -> str:
        until = "the end of the run" if self.ended is None else f"{self.ended:.0f} s"
        came = "no engine came" if self.engine is None else f"its last engine came at {self.engine:.0f} s"
        back = "" if self.seconds is None else f", all was the fleet's again {self.seconds:.0f} s later"
        return f"{self.model}: a share fell back from {self.began:.0f} s to {until}; {came}{back}"


def returns(fleet: Sequence[Mapping[str, Any]]) -> list[Return]:
    """Of what a target's control loops did (`watch.document`): each time in which a model's share was above 0."""
    return [
        found
        for name in (fleet[0]["models"] if fleet else ())
        for found in of_model(
            name, [(reading["at"], reading["models"][name]["share"], reading["models"][name]["ready"])
                   for reading in fleet])
    ]


def of_model(model: str, readings: Iterable[tuple[float, float, int]]) -> Iterator[Return]:
    """The same of one model: at which second it had which share, and how many engines that are ready."""
    at = 0.0
    began = engine = ready = None
    for at, share, now in readings:
        if share > 0:
            began = at if began is None else began
            engine = at if ready is not None and now > ready else engine
        elif began is not None:
            yield Return(model, began, engine, at, at)
            began = engine = None
        ready = now
    if began is not None:
        yield Return(model, began, engine, None, at)
