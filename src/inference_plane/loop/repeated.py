"""What is done again and again beside a run, in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from inference_plane.cluster.client import Refused


@contextlib.contextmanager
def repeated(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Does `work` every so many seconds until the context ends; a time that the API server fails is passed over."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(Refused, OSError):
                work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
