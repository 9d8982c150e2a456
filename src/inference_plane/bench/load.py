"""A closed-loop load generator for one machine: a fixed number of connections, one request at a time on each."""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvloop

_CHUNKED_END = b"0\r\n\r\n"


class LoadError(Exception):
    """Something answered what the benchmark does not count: the message has its first bytes."""


@dataclass(frozen=True)
class Load:
    """What happened between two readings: `requests` answered in `seconds`, `cpu_seconds` used by the measured."""

    requests: int
    seconds: float
    cpu_seconds: float


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

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        requests = self.run.requests
        self.transport.write(requests[self.next % len(requests)])
        self.next += 1
        self.waiting = True

    def data_received(self, data: bytes) -> None:
        try:
            if not self.ends.feed(data):
                return
        except LoadError as error:
            self.run.fail(error)
            return
        self.waiting = False
        self.run.answered += 1
        if self.run.stopping:
            self.transport.close()
        else:
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting:
            self.run.fail(LoadError(f"closed a connection with a request under way: {error or 'end of file'}"))
        self.run.open -= 1
        if not self.run.open:
            self.run.closed.set()


class _Run:
    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = requests
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
    cpu_seconds: Callable[[], float],
) -> Load:
    """Sends `requests` in turn to 127.0.0.1 for `warm_up` seconds unmeasured and `seconds` measured.

    `cpu_seconds` reads what the measured process has used so far. Requests under way at the end are waited for, so
    that none is aborted. Raises LoadError for an answer other than 200, a closed connection or a silence of 10 s.
    """
    return uvloop.run(_drive(port, requests, connections, seconds, warm_up, cpu_seconds))


async def _drive(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, warm_up: float,
    cpu_seconds: Callable[[], float],
) -> Load:
    loop = asyncio.get_running_loop()
    run = _Run(requests)
    try:
        for number in range(connections):
            # Neighbours start at different models, so that a catalogue is used evenly from the start.
            await loop.create_connection(lambda first=number: _Client(run, first), "127.0.0.1", port)
            run.open += 1
    except OSError as error:
        raise LoadError(f"took {run.open} of {connections} connections: {error}") from error
    await run.lasting(warm_up)
    requests_before, cpu_before, began = run.answered, cpu_seconds(), loop.time()
    await run.lasting(seconds)
    load = Load(run.answered - requests_before, loop.time() - began, cpu_seconds() - cpu_before)
    run.stopping = True
    try:
        await asyncio.wait_for(run.closed.wait(), 10)
    except TimeoutError:
        raise LoadError(f"left {run.open} of {connections} connections without an answer for 10 s") from None
    if run.error:
        raise run.error
    if not load.requests:
        raise LoadError(f"answered no request within {seconds:g} s")
    return load
