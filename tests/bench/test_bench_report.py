"""Medians and ratios."""
from __future__ import annotations

import io
import json

import pytest
import rich.console

from inference_plane.bench import report
from inference_plane.bench.load import Load


def _loads(*microseconds: float) -> list[Load]:
    return [Load(requests=1_000, seconds=0.1, cpu_seconds=cost / 1000) for cost in microseconds]


READINGS = {
    ("1 KB", "bare"): _loads(50, 100, 40),
    ("1 KB", "router"): _loads(100, 120, 80),
    ("stream", "bare"): _loads(10, 10, 10),
    ("stream", "router"): _loads(15, 15, 15),
}


def test_a_ratio_compares_readings_of_one_round() -> None:
    rows = {(row.case, row.subject): row for row in report.rows(READINGS, "bare")}
    router = rows["1 KB", "router"]
    assert (router.cpu_us, router.cpu_us_min, router.cpu_us_max) == pytest.approx((100, 80, 120))
    # 100/50, 120/100, 80/40: the round in which the machine was busy does not become a good ratio.
    assert (router.ratio, router.ratio_min, router.ratio_max) == pytest.approx((2.0, 1.2, 2.0))
    assert rows["1 KB", "bare"].ratio == 1
    assert router.requests_per_second == pytest.approx(10_000)
    assert rows["stream", "router"].busy == pytest.approx(0.15)


def test_a_table_marks_what_did_not_saturate() -> None:
    rows = report.rows(READINGS, "bare")
    console = rich.console.Console(width=140, file=io.StringIO())
    console.print(report.table(rows, "a machine"))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "a machine" in lines[-1]
    (stream,) = [line for line in lines if "router" in line and "15.0" in line]
    assert stream.rstrip().endswith("0.15 *")
    (full,) = [line for line in lines if "router" in line and "100.0" in line]
    assert full.rstrip().endswith("1.00")


def test_the_document_is_json_with_machine_settings_and_rows() -> None:
    document = json.loads(json.dumps(report.document(report.rows(READINGS, "bare"), {"cpus": 2}, {"rounds": 3})))
    assert document["machine"] == {"cpus": 2}
    assert document["settings"] == {"rounds": 3}
    assert len(document["rows"]) == len(READINGS)


def test_a_router_s_first_events_are_compared_with_those_straight_from_the_engine() -> None:
    def load(*milliseconds: float) -> Load:
        return Load(requests=3, seconds=1, cpu_seconds=0.1, first_events=tuple(one / 1e3 for one in milliseconds))

    readings = {"straight": [load(1, 1, 2), load(2, 2, 2)], "router": [load(2, 2, 9), load(3, 3, 4)]}
    straight, router = report.first_tokens(readings, "straight")
    assert (straight.added_p50_ms, straight.added_p99_ms, straight.ratio_p50) == (0, 0, 1)
    # 2 - 1 and 3 - 2: a round is compared with itself.
    assert (router.p50_ms, router.added_p50_ms, router.ratio_p50) == pytest.approx((2.5, 1, 1.75))
    assert router.samples == 6
    assert router.p99_ms > 4


def test_nothing_is_said_of_first_events_where_none_were_measured() -> None:
    assert report.first_tokens({}, "straight") == []
