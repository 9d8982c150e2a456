"""The load generator: it counts whole answers, and refuses everything else."""
from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator

import pytest

from inference_plane.bench.load import LoadError, ReplyEnd, drive

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n{ } "
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\ndata\n\n\r\n0\r\n\r\n"
REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"


@pytest.mark.parametrize("reply", [JSON, STREAM], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_a_reply_ends_with_its_last_byte_however_it_is_cut(reply: bytes, size: int) -> None:
    ends = ReplyEnd()
    pieces = [reply[start:start + size] for start in range(0, len(reply), size)]
    for _ in range(2):  # a connection carries more than one
        assert [ends.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_an_answer_other_than_200_is_refused_with_its_text() -> None:
    with pytest.raises(LoadError, match=r"503 Service Unavailable.*no-capacity"):
        ReplyEnd().feed(b"HTTP/1.1 503 Service Unavailable\r\nx-plane-reason: no-capacity\r\ncontent-length: 0\r\n\r\n")


@pytest.fixture
def served() -> Iterator[Callable[[Callable[[int], bytes | None]], int]]:
    """Starts a server that answers its nth request with what a function says; None closes the connection."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever)

        def start(answer: Callable[[int], bytes | None]) -> int:
            numbers = itertools.count()

            class Server(asyncio.Protocol):
                def connection_made(self, transport: asyncio.Transport) -> None:
                    self.transport = transport

                def data_received(self, data: bytes) -> None:
                    for _ in range(data.count(b"POST")):
                        reply = answer(next(numbers))
                        if reply is None:
                            self.transport.close()
                        else:
                            self.transport.write(reply)

            server = loop.run_until_complete(loop.create_server(Server, "127.0.0.1", 0))
            thread.start()
            return server.sockets[0].getsockname()[1]

        yield start
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)


def test_requests_answered_are_counted_and_cpu_is_read_at_both_ends(served) -> None:
    answered = itertools.count()

    def answer(number: int) -> bytes:
        next(answered)
        return JSON

    readings = iter([10.0, 10.5])
    load = drive(
        served(answer), [REQUEST], connections=3, seconds=0.2, warm_up=0.05, cpu_seconds=lambda: next(readings))
    assert 0 < load.requests <= next(answered) - 3  # at least one on each connection was outside the window
    assert load.cpu_seconds == 0.5
    assert load.seconds >= 0.19


@pytest.mark.parametrize(("reply", "message"), [
    (JSON.replace(b"200 OK", b"429 Busy"), "answered .*429 Busy"),
    (None, "closed a connection with a request under way"),
])
def test_one_bad_answer_among_good_ones_fails_the_run(served, reply: bytes | None, message: str) -> None:
    port = served(lambda number: reply if number == 20 else JSON)
    with pytest.raises(LoadError, match=message):
        drive(port, [REQUEST], connections=2, seconds=5, warm_up=0, cpu_seconds=lambda: 0.0)


def test_nothing_that_listens_is_one_clear_error() -> None:
    with pytest.raises(LoadError, match="took 0 of 2 connections"):
        drive(1, [REQUEST], connections=2, seconds=1, warm_up=0, cpu_seconds=lambda: 0.0)


def test_first_events_are_timed_from_their_request_and_pauses_are_kept(served) -> None:
    event = STREAM.replace(b"6\r\ndata\n\n", b"8\r\ndata: 1\n")
    load = drive(
        served(lambda number: event), [REQUEST], connections=2, seconds=0.3, warm_up=0, cpu_seconds=lambda: 0.0,
        pause=0.02)
    assert len(load.first_events) >= 2
    assert all(0 < seconds < 5 for seconds in load.first_events)
