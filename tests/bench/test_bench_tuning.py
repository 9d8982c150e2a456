"""The cases of the tuning bench: the chart's own words, one change each, and the same requests for all."""

import dataclasses
import json

import pytest

from inference_plane.bench import tuning
from inference_plane.commands import bench

DEFAULTS, ALONE = tuning.CASES[:2]


def test_each_case_changes_something_and_its_name_is_its_own():
    assert len({case.name for case in tuning.CASES}) == len(tuning.CASES)
    specs = {case.name: (tuning.scaled_object(case), case.tuning, case.node) for case in tuning.CASES}
    default = specs.pop(DEFAULTS.name)
    assert [name for name, found in specs.items() if found == default] == []


def test_a_fleet_that_reads_the_demand_sends_less_away():
    """The first half hour of the surge."""
    read, alone = (tuning.row("surge", case.name, tuning.run(case, "surge", 1800)) for case in (DEFAULTS, ALONE))
    assert read.bedrock < alone.bedrock - 0.05 and read.replica_hours > alone.replica_hours


def test_a_case_has_the_same_outcome_each_time():
    first, second = (tuning.row("bursts", "x", tuning.run(DEFAULTS, "bursts", 700)) for _ in range(2))
    assert first == second and first.bedrock > 0


@pytest.mark.parametrize("load", tuning.LOADS)
def test_a_load_has_its_quiet_and_its_busy_time(load):
    rates = [tuning.LOADS[load](float(second)) for second in range(tuning.SECONDS)]
    assert rates[0] == rates[-1200] == min(rates) and max(rates) >= 2.5 * min(rates)


def test_the_command_draws_and_prints(monkeypatch, tmp_path, capsys):
    result = tuning.run(DEFAULTS, "surge", 120)
    rows, drawn = [tuning.row("surge", DEFAULTS.name, result)], {DEFAULTS.name: result}
    monkeypatch.setattr(tuning, "measure", lambda **_: (rows, drawn))
    assert bench.main(["tuning", "--png", str(tmp_path / "t.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [dataclasses.asdict(row) for row in rows]
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
