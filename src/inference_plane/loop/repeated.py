"""What is done again and again beside a run, in a thread."""

from __future__ import annotations

import collections
import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from inference_plane.cluster.client import Refused

Seen = TypeVar("Seen")
#: What a look or an act may meet while processes come and go, also in the middle of an answer.
PASSING = (Refused, OSError, http.client.HTTPException, ValueError)


@contextlib.contextmanager
def repeated(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Does `work` every so many seconds until the context ends; a time that fails is passed over."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(*PASSING):
                work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Looks(Generic[Seen]):
    """A context manager that looks every so many seconds: `seen` grows by what was seen, `problems` count why not."""

    def __init__(self, seconds: float, look: Callable[[], Seen]) -> None:
        self.seen: list[Seen] = []
        self.problems: collections.Counter[str] = collections.Counter()
        self._look, self._repeated = look, repeated(seconds, self._again)

    def __enter__(self) -> Self:
        self._repeated.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._repeated.__exit__(None, None, None)

    def _again(self) -> None:
        try:
            self.seen.append(self._look())
        except PASSING as error:
            self.problems[str(error)] += 1
