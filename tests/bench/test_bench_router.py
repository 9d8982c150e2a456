"""The benchmark itself: one very short run through real Envoys, and that each thing taken out is really there."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from inference_plane import helm
from inference_plane.bench import costs, envoys, messages, report, router
from inference_plane.commands import bench
from inference_plane.onehost.router import xds_files


def test_cpu_time_of_a_process_grows_with_its_work() -> None:
    before = envoys.cpu_seconds(os.getpid())
    own = time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert envoys.cpu_seconds(os.getpid()) - before >= 0.04


def test_half_of_a_catalogue_has_fallbacks_and_budgets() -> None:
    models = envoys.catalogue(10)["global"]["models"].values()
    assert len(models) == 10
    assert sum("fallback" in model and "firstTokenBudget" in model for model in models) == 5


@pytest.mark.parametrize("name", costs.WITHOUT)
def test_what_is_taken_out_is_in_the_chart(name: str) -> None:
    render = helm.template("router", values=envoys.catalogue(2), namespace=envoys.NAMESPACE)
    changed = costs.changed(render, costs.WITHOUT[name])

    def files(of: helm.Render) -> list[object]:
        data = of.find("ConfigMap", "router-bootstrap")["data"] | xds_files(of)
        return [json.loads(data[file]) for file in ("bootstrap.json", "routes.json", "clusters.json")]

    assert files(changed) != files(render)
    assert files(costs.changed(render, lambda files: None)) == files(render)


def test_a_short_run_measures_every_subject_and_leaves_nothing_running() -> None:
    cases = [messages.CASES[0], messages.CASES[-1]]
    before = _children()
    readings = router.measure(seconds=0.2, rounds=1, cases=cases, sizes=(2,), without=["audit log"])
    subjects = {"bare Envoy", "router, 2 models", "without audit log"}
    assert set(readings) == {(case.name, subject) for case in cases for subject in subjects}
    assert all(load.requests > 0 and load.cpu_seconds > 0 for loads in readings.values() for load in loads)
    assert all(row.ratio > 0 for row in report.rows(readings, router.BASELINE))
    assert _children() == before


def _children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_an_answer_other_than_the_engine_s_is_refused_with_who_and_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PATH", "/v1/embeddings")  # which a chat model of the chart does not serve
    with pytest.raises(router.LoadError, match=r"router, 1 models, 1 KB: it answered model-000 with 404"):
        router.measure(seconds=0.1, rounds=1, cases=messages.CASES[:1], sizes=(1,))


def test_the_command_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load = router.Load(requests=10, seconds=1, cpu_seconds=0.001)
    monkeypatch.setattr(router, "measure", lambda **_: {("1 KB", "bare Envoy"): [load]})
    assert bench.main(["router", "--json", "--seconds", "0.5"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["envoy"].count(".") == 2
    assert document["rows"][0]["cpu_us"] == pytest.approx(100)


def test_the_command_says_in_one_error_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**_: object) -> None:
        raise router.LoadError("router, 10 models, 1 KB: it answered 503")

    monkeypatch.setattr(router, "measure", refused)
    assert bench.main(["router"]) == 2
    assert capsys.readouterr().err.strip().endswith("error: router, 10 models, 1 KB: it answered 503")


@pytest.mark.parametrize("argv", [["router", "--seconds", "0"], ["router", "--rounds", "1000"], ["nothing"]])
def test_the_command_is_bounded(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(argv)
