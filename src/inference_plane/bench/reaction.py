"""How soon the share that falls back follows the fleet: real Envoy and policy service, with the chart's own pace."""
from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import rich.box
import rich.table

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.replay import ReplayEngine

from . import messages, plane

_MODEL = "model-001"  # the catalogue's first that falls back
_SLOTS, _QUEUED = 2, 2
_ASKED = 12  # at once, of which the engine takes _SLOTS + _QUEUED
_FULL_SECONDS = 600.0  # longer than any wait here; the engine is told otherwise when it is over
_PATIENCE = 300.0
_POLL = 0.02

#: What is timed, from what happened to what the router does then.
FULL, FREE, GONE, BACK = (
    "the engine is full: a share falls back",
    "it has room again: all go to the fleet",
    "no engine answers: all fall back",
    "an engine answers: all go to the fleet",
)


@dataclass(frozen=True)
class Reaction:
    """Seconds of every round from what happened until Envoy had the share."""

    what: str
    seconds: tuple[float, ...]


def measure(*, rounds: int = 3, progress: Callable[[str], None] = lambda line: None) -> list[Reaction]:
    """One row for each of what is timed. Raises NotReady or TimeoutError where something does not come.

    Each way there and back has a plane of its own: one that falls back again soon holds its share for twice as long.
    """
    times: dict[str, list[float]] = {what: [] for what in (FULL, FREE, GONE, BACK)}

    def timed(bed: Bed, what: str, act: Callable[[], object], wanted: Callable[[int], bool]) -> None:
        progress(f"round {len(times[what]) + 1} of {rounds}: {what}")
        began = time.monotonic()
        act()
        _until(bed, wanted)
        times[what].append(time.monotonic() - began)

    for _ in range(rounds):
        with _calm() as (bed, engine, token), _Crowd(bed, token) as crowd:
            engine.behaviour.update({"first_token_delay": _FULL_SECONDS})
            timed(bed, FULL, crowd.come, lambda share: share > 0)
            # Those that wait are cut, as clients do that give up; the engine has room at once.
            timed(bed, FREE, crowd.leave, lambda share: share == 0)
        with _calm() as (bed, engine, _):
            timed(bed, GONE, engine.stop, lambda share: share == 100)
            timed(bed, BACK, engine.start, lambda share: share == 0)
    return [Reaction(what, tuple(seconds)) for what, seconds in times.items()]


@contextlib.contextmanager
def _calm() -> Iterator[tuple[Bed, ReplayEngine, str]]:
    """A plane whose requests all go to the fleet, the engine of its model, and a token."""
    with plane.started(2, max_num_seqs=_SLOTS, max_num_queued_reqs=_SLOTS + _QUEUED) as (bed, tokens):
        (engine,) = bed.engines[_MODEL]
        _until(bed, lambda share: share == 0)
        yield bed, engine, tokens[0]


class _Crowd:
    """A context manager: more clients than the engine takes, each with one stream."""

    def __init__(self, bed: Bed, token: str) -> None:
        self._url, self._token = f"{bed.url}{messages.PATH}", token
        self._pool = ThreadPoolExecutor(_ASKED)
        self._gone = threading.Event()

    def come(self) -> None:
        for _ in range(_ASKED):
            self._pool.submit(self._ask)

    def leave(self) -> None:
        self._gone.set()

    def __enter__(self) -> _Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        self._pool.shutdown()

    def _ask(self) -> None:
        """Asks again and again, as a crowd does, until it is time to leave; a try that gets no answer is cut then."""
        body = json.dumps({"model": _MODEL, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4})
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._token}"}
        while not self._gone.is_set():
            request = urllib.request.Request(self._url, body.encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=2):
                    pass
            except OSError:  # no answer yet, or one that turns it away: both are what a full engine is
                pass
            self._gone.wait(0.2)


def _until(bed: Bed, wanted: Callable[[int], bool]) -> None:
    """Returns once Envoy's share is as wanted."""
    key, deadline = f"fallback.{_MODEL}", time.monotonic() + _PATIENCE
    while not wanted(share := int(bed.router.runtime(key).get(key, -1))):
        bed.processes.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"Envoy has a share of {share} for {_MODEL} after {_PATIENCE:g} s")
        time.sleep(_POLL)


def table(found: Sequence[Reaction]) -> rich.table.Table:
    drawn = rich.table.Table(
        box=rich.box.SIMPLE, title="reaction", title_justify="left", caption_justify="left",
        caption="Seconds until Envoy's runtime has the share, with the chart's default tuning.")
    drawn.add_column("what")
    for heading in ("least", "median", "most"):
        drawn.add_column(heading, justify="right")
    for row in found:
        figures = (min(row.seconds), statistics.median(row.seconds), max(row.seconds))
        drawn.add_row(row.what, *(f"{figure:.1f} s" for figure in figures))
    return drawn
