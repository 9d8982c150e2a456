"""The benchmark itself: one very short run through real Envoys, and that each thing taken out is really there."""
from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from inference_plane import helm
from inference_plane.bench import costs, envoys, messages, peers, report, router
from inference_plane.commands import bench
from inference_plane.onehost.budgets import has_budgets
from inference_plane.onehost.issuer import Issuer
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


def test_with_a_budget_each_request_is_counted() -> None:
    values, tokens = envoys.everything_on(envoys.catalogue(2), Issuer(), callers=3, budget=1000)
    render = helm.template("router", values=values, namespace=envoys.NAMESPACE)
    assert has_budgets(render) and len(set(tokens)) == 3
    without, _ = envoys.everything_on(envoys.catalogue(2), Issuer())
    assert not has_budgets(helm.template("router", values=without, namespace=envoys.NAMESPACE))


def test_a_short_run_measures_every_subject_and_leaves_nothing_running() -> None:
    cases = [messages.CASES[0], messages.CASES[-1], messages.FIRST_TOKEN]
    before = _children()
    readings = router.measure(seconds=0.2, rounds=1, cases=cases, sizes=(2,), without=["audit log"])
    subjects = {"bare Envoy", "router, 2 models", "router, 2 models, tokens", "without audit log"}
    wanted = {(case.name, subject) for case in cases for subject in subjects}
    assert set(readings) == wanted | {(messages.FIRST_TOKEN.name, router.STRAIGHT)}
    timed = [load for (case, _), loads in readings.items() for load in loads if case == messages.FIRST_TOKEN.name]
    assert all(len(load.first_events) >= messages.FIRST_TOKEN.connections for load in timed)
    assert all(load.requests > 0 and load.cpu_seconds > 0 for loads in readings.values() for load in loads)
    straight = readings.pop((messages.FIRST_TOKEN.name, router.STRAIGHT))
    assert all(row.ratio > 0 for row in report.rows(readings, router.BASELINE))
    assert straight[0].first_events
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


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_pinned_with_hashes(peer: peers.Peer) -> None:
    name, version = peer.name.lower().split()
    pins = (peers.PINS / peer.pins).read_text()
    requirements = [line for line in pins.splitlines() if "==" in line and not line.startswith("#")]
    assert any(line.replace("[proxy]", "").startswith(f"{name}=={version} ") for line in requirements)
    assert pins.count("\n    --hash=sha256:") >= len(requirements)


def test_a_peer_is_installed_once_and_again_when_its_pins_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PINS", tmp_path)
    (tmp_path / "nothing.txt").write_text("# nothing\n")
    peer = peers.Peer("nothing 1", "nothing.txt", peers.PEERS[0].start, sizes=False)
    said: list[str] = []
    first = peers.installed(peer, said.append, tmp_path)
    assert (first / "python").exists()
    assert peers.installed(peer, said.append, tmp_path) == first
    (tmp_path / "nothing.txt").write_text("# still nothing\n")
    assert peers.installed(peer, said.append, tmp_path) != first
    assert said == ["installing nothing 1 from nothing.txt: a minute, once"] * 2


def test_a_peer_that_cannot_be_installed_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PINS", tmp_path)
    (tmp_path / "bad.txt").write_text("not a requirement\n")
    bad = peers.Peer("bad 1", "bad.txt", peers.PEERS[0].start, sizes=False)
    monkeypatch.setattr(peers, "PEERS", (bad,))
    monkeypatch.setattr(peers.installed, "__defaults__", (tmp_path,))
    assert bench._peers(lambda line: None) == []
    assert "left out: bad 1 cannot be installed: " in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["router", "--seconds", "0"], ["router", "--rounds", "1000"], ["nothing"]])
def test_the_command_is_bounded(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(argv)
