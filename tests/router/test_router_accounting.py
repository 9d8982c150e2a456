"""Every token of a mixed run, in four places."""

from __future__ import annotations

import dataclasses

import pytest

from inference_plane import accounting
from inference_plane.commands import campaign

REQUESTS = 250


@pytest.fixture(scope="module")
def result() -> accounting.Result:
    return accounting.run(REQUESTS, seed=1, budgets=False)


def test_lines_counters_and_the_report_agree(result: accounting.Result) -> None:
    assert result.differences == []
    assert result.engine_lines.prefilled == result.counters.prefilled > result.engine_lines.prompt > 500
    assert result.engine_lines.completion == result.counters.completion > 500


def test_the_run_met_what_it_is_about(result: accounting.Result) -> None:
    assert set(result.outcomes) == {"finished", "aborted", "refused", "error", "first-token-budget"}
    assert result.left > 30 and set(result.statuses) >= {0, 200, 400, 404}
    assert {source for source, tokens in result.report.sources.items() if tokens} >= {"engine", "reply", "stream"}
    assert {(key.team, key.cost_center) for key in result.report.uses} == {("care", "4710"), ("appeals", "4711")}
    assert result.router.completion < result.engine_lines.completion, "no client left"


def test_a_mix_follows_from_its_seed() -> None:
    assert list(accounting.asks(50, 3)) == list(accounting.asks(50, 3)) != list(accounting.asks(50, 4))


@pytest.mark.parametrize(("differences", "status"), [([], 0), (["tokens: 3 and 4"], 1)])
def test_the_command_s_status_is_the_verdict(
    result: accounting.Result,
    differences: list[str],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = dataclasses.replace(result, differences=differences)
    monkeypatch.setattr(accounting, "run", lambda *arguments, **more: changed)
    assert campaign.main(["accounting"]) == status
    out = capsys.readouterr().out
    assert f"{len(differences)} differences" in out and all(f"DIFFERENCE {d}" in out for d in differences)


def test_a_missing_engine_line_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the verdict can be bad: the engines' lines of one request are lost."""
    settle = accounting._settle

    def losing(bed: accounting.Bed) -> int:
        seen = settle(bed)
        next(e for e in accounting._engines(bed) if e.lines and e.surface.counters.prompt_tokens).lines.clear()
        return seen

    monkeypatch.setattr(accounting, "_settle", losing)
    found = accounting.run(40, seed=2, budgets=False).differences
    assert any(line.startswith("prompt tokens, engine lines and engine counters") for line in found)
