"""The answer that takes longer than every guard but the request's own timeout."""

from __future__ import annotations

import concurrent.futures

from router_harness import LONG_SECONDS, Reply


def test_an_answer_that_takes_a_minute_comes_from_the_fleet(long_answer: concurrent.futures.Future[Reply]) -> None:
    """Started when the session began (conftest), collected last: it costs no time of its own."""
    reply = long_answer.result(2 * LONG_SECONDS)
    assert (reply.status, reply.backend, reply.attempts, reply.error) == (200, "fleet", 1, ""), str(reply)
    assert reply.total >= LONG_SECONDS
