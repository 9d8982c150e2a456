"""A router leaves as its pod does: first the process that drains gets SIGTERM, Envoy when that has ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from router_harness import CHAT, HANG, Client, Reply, catalogue, chat_body, model, wait_until

from inference_plane.onehost.bed import Bed
from inference_plane.onehost.processes import Process
from inference_plane.onehost.router import Router

LIMIT, STALENESS = 12, 1.0
BED = {
    "values": catalogue(
        {"intake": model("intake", "cluster", replicas=2)}, drainSeconds=LIMIT, endpointStalenessSeconds=1
    )
}
SLOW = {"token_delay": 0.25, "tokens": 12}  # three seconds of a stream


class Leaving(contextlib.ExitStack):
    """A context manager: one router of its own, whose end a test plays."""

    def __init__(self, bed: Bed, folder: Path, *more: str) -> None:
        super().__init__()
        self.router: Router = self.enter_context(bed.another_router(folder))
        self.router.wait_for_engines({"intake": 2})
        self.drain: Process = self.router.start_drain(*more)
        self.client = Client(self.router.url)
        self.callback(self.client.close)
        self.callback(self.drain.kill)  # one that drains would stay for longer than the test's end waits

    def sigterm(self) -> None:
        self.drain.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: "drain begins" in self.drain.log_path.read_text(), "the drain's first line")

    def end(self) -> dict[str, Any]:
        """Wait for the drain, end Envoy as the kubelet then does, and return what the drain said last."""
        self.drain.popen.wait(HANG)
        if self.router.process.running:
            self.router.process.popen.send_signal(signal.SIGTERM)
            self.router.process.popen.wait(HANG)
        return json.loads(self.drain.log_path.read_text().splitlines()[-1])

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"{self.router.status_url}{path}", timeout=HANG) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            return error.code

    def running(self, requests: int) -> None:
        name = "http.plane.downstream_rq_active"
        wait_until(lambda: self.router.stats([name])[name] == requests, f"{requests} running requests")


@pytest.fixture
def leaving(bed: Bed, tmp_path: Path) -> Iterator[Leaving]:
    with Leaving(bed, tmp_path) as one:
        yield one


def whole(reply: Reply) -> bool:
    return reply.status == 200 and not reply.error and reply.events[-1] == "[DONE]"


def test_a_stream_under_way_ends_whole_and_the_router_leaves_long_before_its_limit(leaving: Leaving) -> None:
    stream = leaving.client.start(CHAT, chat_body("intake", stream=True, x_test=SLOW))
    leaving.running(1)
    assert leaving.status("/ready") == 200
    leaving.sigterm()
    wait_until(lambda: leaving.status("/ready") == 503, "a router that is not ready")
    assert leaving.status("/alive") == 200  # so that the kubelet does not start it anew
    late = leaving.client.chat("intake")
    assert (late.status, late.headers["connection"]) == (200, "close")
    assert leaving.drain.running
    said = leaving.end()
    reply = stream.result(HANG)
    assert whole(reply) and len(reply.events) > SLOW["tokens"], str(reply)
    assert (said["outcome"], said["requests_cut"], leaving.drain.returncode) == ("drained", 0, 0)
    assert said["seconds"] < LIMIT - 3
    assert [(line["status"], line["flags"]) for line in leaving.router.audit()] == [(200, "-"), (200, "-")]


def test_a_connection_that_is_kept_alive_is_told_to_close_and_closes_after_its_answer(leaving: Leaving) -> None:
    connection = http.client.HTTPConnection(*leaving.router.url.removeprefix("http://").split(":"), timeout=HANG)
    body, headers = json.dumps(chat_body("intake")), {"content-type": "application/json"}

    def ask() -> http.client.HTTPResponse:
        connection.request("POST", CHAT, body, headers)
        reply = connection.getresponse()
        assert reply.status == 200 and b"chat.completion" in reply.read()
        return reply

    assert ask().headers["connection"] is None
    kept = connection.sock
    assert isinstance(kept, socket.socket)
    leaving.sigterm()
    wait_until(lambda: leaving.status("/ready") == 503, "a router that is not ready")
    assert ask().headers["connection"] == "close"
    assert connection.sock is None  # http.client has let go of it, as the header says
    said = leaving.end()
    assert said["outcome"] == "drained" and said["seconds"] < LIMIT - 3


def test_an_idle_connection_does_not_hold_a_router(leaving: Leaving) -> None:
    with socket.create_connection(("127.0.0.1", int(leaving.router.url.rpartition(":")[2]))):
        leaving.sigterm()
        said = leaving.end()
    assert said["outcome"] == "drained" and STALENESS < said["seconds"] < LIMIT - 3


def test_no_request_is_lost_while_another_router_takes_over(bed: Bed, leaving: Leaving) -> None:
    """Clients ask routers that are listed, where a router that is not ready is listed a moment longer."""
    listed = [leaving.router.url, bed.url]
    replies: list[Reply | BaseException] = []
    client = leaving.client

    def ask(seconds: float) -> None:
        body = chat_body("intake", stream=True, x_test={"token_delay": seconds / 4, "tokens": 4})
        routers = [random.choice(listed) for _ in range(20)]
        started = [client.run(client.request(url + CHAT, body, (), "POST", HANG)) for url in routers]
        replies.extend(future.exception(HANG) or future.result() for future in started)

    client.url = ""  # each request names its router
    ask(0.2)
    leaving.sigterm()
    for _ in range(4):
        ask(0.1)  # within the staleness some still go to the one that leaves
    before = len([line for line in leaving.router.audit() if line["status"] == 200])
    listed.remove(leaving.router.url)
    while leaving.drain.running:
        ask(0.2)
    said = leaving.end()
    lost = [reply for reply in replies if isinstance(reply, BaseException) or not whole(reply)]
    print(f"{len(replies)} streams, {before} of them by the router that left, within {said['seconds']} s")
    assert not lost, lost[:3]
    assert before > 10 and (said["outcome"], said["requests_cut"]) == ("drained", 0)


def test_at_the_limit_it_says_how_many_requests_are_cut(bed: Bed, tmp_path: Path) -> None:
    endless = chat_body("intake", stream=True, x_test={"token_delay": 0.5, "tokens": 60})
    with Leaving(bed, tmp_path, "--limit", "2") as one:
        streams = [one.client.start(CHAT, endless) for _ in range(3)]
        one.running(3)
        one.sigterm()
        said = one.end()
        assert (said["outcome"], said["requests_cut"], one.drain.returncode) == ("limit", 3, 0)
        assert said["seconds"] >= 2
        replies = [stream.result(HANG) for stream in streams]
        assert all(reply.status == 200 and reply.error for reply in replies), "cut streams look cut"
        lines = one.router.audit()
        assert [line["details"].partition("(")[0] for line in lines] == ["downstream_local_disconnect"] * 3, lines


def test_a_second_signal_ends_it_at_once(bed: Bed, leaving: Leaving) -> None:
    stream = leaving.client.start(CHAT, chat_body("intake", stream=True, x_test={"token_delay": 0.5, "tokens": 60}))
    leaving.running(1)
    leaving.sigterm()
    leaving.drain.popen.send_signal(signal.SIGTERM)
    said = leaving.end()
    assert (said["outcome"], said["requests_cut"]) == ("second signal", 1)
    assert stream.result(HANG).error


def test_an_envoy_that_died_is_not_waited_for(leaving: Leaving) -> None:
    leaving.router.process.kill()
    leaving.sigterm()
    said = leaving.end()
    assert (said["outcome"], leaving.drain.returncode) == ("envoy gone", 1)
    assert "nobody listens on run/admin.sock" in said["problem"] and said["seconds"] < LIMIT - 3


def test_an_envoy_that_dies_while_it_drains_is_not_waited_for(leaving: Leaving) -> None:
    leaving.client.start(CHAT, chat_body("intake", stream=True, x_test={"token_delay": 0.5, "tokens": 60}))
    leaving.running(1)
    leaving.sigterm()
    wait_until(lambda: leaving.status("/ready") == 503, "a router that is not ready")
    leaving.router.process.kill()
    said = leaving.end()
    assert (said["outcome"], said["requests_cut"]) == ("envoy gone", 1)


def test_without_the_socket_it_says_so_and_fails(bed: Bed, tmp_path: Path) -> None:
    with Leaving(bed, tmp_path, "--admin", "run/elsewhere.sock") as one:
        one.sigterm()
        said = one.end()
        assert (said["outcome"], one.drain.returncode) == ("envoy gone", 1)
        assert "nobody listens on run/elsewhere.sock: No such file or directory" in said["problem"]


def test_an_envoy_that_does_not_answer_may_still_serve_and_gets_its_time(leaving: Leaving) -> None:
    """A main thread that hangs: stopped, so that the kernel still takes connections for it."""
    leaving.router.process.popen.send_signal(signal.SIGSTOP)
    leaving.sigterm()
    leaving.drain.popen.wait(2 * HANG)
    leaving.router.process.popen.send_signal(signal.SIGCONT)
    said = leaving.end()
    assert (said["outcome"], leaving.drain.returncode) == ("limit", 1)
    assert said["problem"].startswith("no proper answer on run/admin.sock: TimeoutError") and said["seconds"] >= LIMIT
