"""The load generator's own error, from what both sides say of the same answers."""

from __future__ import annotations

from typing import Any

import pytest

from inference_plane.bench import generator
from inference_plane.load.samples import ANSWERED, CANCELLED, Sample


def sample(number: int, **more: Any) -> Sample:
    given = {"first": 0.101, "total": 0.125, "gaps": [0.011, 0.010], "outcome": ANSWERED, "request_id": f"id-{number}"}
    return Sample(
        number=number, phase="p", request="r", model="m", tenant="", residency="", restricted=False, stream=True, turn=1,
        due=0.0, **{**given, **more},
    )  # fmt: skip


def test_errors_are_of_the_same_request_and_the_same_gap() -> None:
    known = {f"id-{n}": {"written": [0.1, 0.11, 0.12]} for n in range(3)}
    samples = [sample(0), sample(1, first=0.103), sample(2, outcome=CANCELLED)]
    ttft, itl, e2e = generator.compare(samples, known, {"ttft": {"median_ms": 100}})
    assert (ttft.samples, itl.samples, e2e.samples) == (2, 4, 2)
    assert ttft.error_p50 == pytest.approx(2) and ttft.error_max == pytest.approx(3) == ttft.error_p99
    assert (ttft.known_p50, ttft.locust_p50, itl.locust_p50) == (pytest.approx(100), 100, None)
    assert itl.error_max == pytest.approx(1) and e2e.error_p50 == pytest.approx(5)


def test_a_token_that_is_missing_is_no_error_of_time() -> None:
    with pytest.raises(ValueError, match="zip"):
        generator.compare([sample(0, gaps=[0.01])], {"id-0": {"written": [0.1, 0.11, 0.12]}}, {})


def test_delays_are_known_in_advance_and_within_their_bounds() -> None:
    found = [generator.delay(number) for number in range(200)]
    assert found == [generator.delay(number) for number in range(200)] and len(set(found)) == 200
    assert generator.FIRST[0] <= min(found) and max(found) <= generator.FIRST[1]
