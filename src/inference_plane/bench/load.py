"""A closed-loop load generator for one machine: a fixed number of connections, one request at a time on each."""
from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvloop

_PATIENCE = 60  # seconds for the answers under way at the end, and for a slow router's first ones
_CHUNKED_END = b"0\r\n\r\n"


class LoadError(Exception):
    """Something answered what the benchmark does not count: the message has its first bytes."""


@dataclass(frozen=True)
class Load:
    """What happened between two readings: `requests` answered in `seconds`, `cpu_seconds` used by the measured.

    `first_events` are the seconds from a request to the first event of its stream.
    """

    requests: int
    seconds: float
    cpu_seconds: float
    first_events: tuple[float, ...] = ()


class ReplyEnd:
    """Finds where a reply ends. A reply has a Content-Length or is chunked; requests are not pipelined."""

    def __init__(self) -> None:
        self._seen = b""
        self._missing: int | None = None

    def feed(self, data: bytes) -> bool:
        """Whether `data` ends the reply. Raises LoadError unless it is a 200."""
        if self._missing is None:
            data = self._seen + data if self._seen else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._seen = data
                return False
            if data[9:12] != b"200":
                raise LoadError(f"answered {data[:600].decode(errors='replace')!r}")
            start = data.find(b"content-length: ", 0, end)
            if start < 0:
                self._missing = -1
                self._seen = data[-5:]
            else:
                self._missing = int(data[start + 16:data.index(b"\r", start)]) - (len(data) - end - 4)
        elif self._missing < 0:
            self._seen = (self._seen + data)[-5:] if len(data) < 5 else data[-5:]
        else:
            self._missing -= len(data)
        if self._missing == 0 or (self._missing < 0 and self._seen == _CHUNKED_END):
            self._seen, self._missing = b"", None
            return True
        return False


class _Client(asyncio.Protocol):
    def __init__(self, run: _Run, first: int) -> None:
        self.run, self.next = run, first
        self.ends = ReplyEnd()
        self.waiting = False
        self.sent: float | None = None  # when, until the first event comes

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        if self.run.stopping:
            self.transport.close()
            return
        requests = self.run.requests
        self.sent = time.perf_counter()  # the loop's own clock counts milliseconds
        self.transport.write(requests[self.next % len(requests)])
        self.next += 1
        self.waiting = True

    def data_received(self, data: bytes) -> None:
        if self.sent is not None and b"data: " in data:
            self.run.first_events.append(time.perf_counter() - self.sent)
            self.sent = None
        try:
            if not self.ends.feed(data):
                return
        except LoadError as error:
            self.run.fail(error)
            return
        self.waiting = False
        self.run.answered += 1
        if self.run.pause and not self.run.stopping:
            self.run.loop.call_later(random.uniform(0, self.run.pause), self.send)
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting:
            self.run.fail(LoadError(f"closed a connection with a request under way: {error or 'end of file'}"))
        self.run.open -= 1
        if not self.run.open:
            self.run.closed.set()


class _Run:
    def __init__(self, requests: Sequence[bytes], pause: float) -> None:
        self.requests, self.pause = requests, pause
        self.loop = asyncio.get_running_loop()
        self.first_events: list[float] = []
        self.answered = self.open = 0
        self.stopping = False
        self.error: LoadError | None = None
        self.failed, self.closed = asyncio.Event(), asyncio.Event()

    def fail(self, error: LoadError) -> None:
        if self.error is None:
            self.error = error
        self.failed.set()

    async def lasting(self, seconds: float) -> None:
        """Waits, unless something fails before that."""
        try:
            await asyncio.wait_for(self.failed.wait(), seconds)
        except TimeoutError:
            return
        raise self.error  # type: ignore[misc]


def drive(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float, warm_up: float,
    cpu_seconds: Callable[[], float], pause: float = 0, host: str = "127.0.0.1",
) -> Load:
    """Sends `requests` in turn to a port of this machine for `warm_up` seconds unmeasured and `seconds` measured.

    `cpu_seconds` reads what the measured process has used so far. A connection waits up to `pause` seconds, by chance,
    before its next request. The window lasts longer where fewer requests than connections were answered in it.
    Requests under way at the end are waited for, so that none is aborted. Raises LoadError for an answer other than
    200, a closed connection or a silence of a minute.
    """
    return uvloop.run(_drive(port, requests, connections, seconds, warm_up, cpu_seconds, pause, host))


async def _drive(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, warm_up: float,
    cpu_seconds: Callable[[], float], pause: float, host: str,
) -> Load:
    loop = asyncio.get_running_loop()
    run = _Run(requests, pause)
    try:
        for number in range(connections):
            # Neighbours start at different models, so that a catalogue is used evenly from the start.
            await loop.create_connection(lambda first=number: _Client(run, first), host, port)
            run.open += 1
    except OSError as error:
        raise LoadError(f"took {run.open} of {connections} connections: {error}") from error
    await run.lasting(warm_up)
    run.first_events.clear()
    requests_before, cpu_before, began = run.answered, cpu_seconds(), loop.time()
    await run.lasting(seconds)
    # A slow router's streams outlast a window: it must hold as many ends as there are connections, for a fair share.
    # Where there are pauses, first events are wanted, and as many of them.
    def fewest() -> int:
        return min(run.answered - requests_before, len(run.first_events) if pause else connections)

    while fewest() < connections and loop.time() - began < _PATIENCE:
        await run.lasting(0.1)
    load = Load(
        run.answered - requests_before, loop.time() - began, cpu_seconds() - cpu_before, tuple(run.first_events))
    run.stopping = True
    try:
        await asyncio.wait_for(run.closed.wait(), _PATIENCE)
    except TimeoutError:
        raise LoadError(f"left {run.open} of {connections} connections without an answer for {_PATIENCE} s") from None
    if run.error:
        raise run.error
    if not load.requests:
        raise LoadError(f"answered no request within {load.seconds:g} s")
    return load
