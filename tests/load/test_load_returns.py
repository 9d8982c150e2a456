"""When a fleet has all its requests again, of readings that were written by hand."""

from __future__ import annotations

from typing import Any

from inference_plane.load import thresholds
from inference_plane.load.returns import Return, returns


def fleet(*moments: tuple[float, int]) -> list[dict[str, Any]]:
    """One model, read each ten seconds: its share, and its ready engines."""
    models = [{"m": {"share": share, "ready": ready}} for share, ready in moments]
    return [{"at": 10.0 * number, "models": each} for number, each in enumerate(models)]


def test_a_share_that_falls_after_the_last_engine() -> None:
    found = returns(fleet((0, 1), (30, 1), (50, 2), (40, 3), (10, 3), (0, 3), (0, 4)))
    assert found == [Return("m", began=10.0, engine=30.0, ended=50.0, seen=50.0)]
    assert str(found[0]) == (
        "m: a share fell back from 10 s to 50 s; its last engine came at 30 s, all was the fleet's again 20 s later"
    )
    verdict = thresholds.returned(found)
    assert verdict and verdict.kept and verdict.value == 20.0


def test_the_longest_way_back_counts() -> None:
    found = returns(fleet((5, 1), (5, 2), (0, 2), (5, 3), *[(5, 3)] * 6, (0, 3)))
    assert [each.seconds for each in found] == [10.0, 70.0]
    verdict = thresholds.returned(found)
    assert verdict and not verdict.kept
    assert str(verdict) == "seconds from the last engine to all at the fleet at most 60: 70"


def test_without_an_engine_or_an_end_there_is_no_way_back() -> None:
    found = returns(fleet((0, 3), (5, 2), (0, 2), (5, 2), (5, 3)))
    assert [(each.engine, each.ended, each.seconds) for each in found] == [(None, 20.0, None), (40.0, None, None)]
    assert str(found[0]).endswith("to 20 s; no engine came") and "to the end of the run; its last" in str(found[1])
    assert thresholds.returned(found) is None
    assert returns([]) == []


def test_a_fleet_that_has_not_come_back_when_the_run_ends_counts_from_the_bound_on() -> None:
    verdicts = [thresholds.returned(returns(fleet((5, 1), (5, 2), *[(5, 2)] * looks))) for looks in (6, 7)]
    assert verdicts[0] is None
    assert verdicts[1] and not verdicts[1].kept and verdicts[1].value == 70.0
