"""The suite: the plane's processes are really measured, and what grows or is not given back is a fault."""
import dataclasses
import json

import pytest

from inference_plane.bench import growth, memory, plane, reaction, soak
from inference_plane.checkout import VALUES
from inference_plane.commands import _environment, bench

MIB = 1 << 20


def sample(resident=100 * MIB, files=40, seconds=0.0, **gauges):
    gauges = {"http.plane.downstream_rq_active": 0, **gauges}
    return soak.Sample(seconds, {"envoy": resident}, {"envoy": files}, gauges)


def test_what_stays_flat_is_no_fault():
    assert soak.verdict([sample(resident=(100 + n % 3) * MIB) for n in range(30)], sample(), sample(files=50)) == []


def test_memory_that_grows_is_a_fault():
    (fault,) = soak.verdict([sample(resident=(100 + n) * MIB) for n in range(30)], sample(), sample())
    assert fault == "envoy: 114.5 MiB in the middle third, 124.5 in the last one"


def test_files_and_requests_that_are_not_given_back_are_faults():
    after = sample(files=80, **{"http.plane.downstream_rq_active": 2})
    found = soak.verdict([sample() for _ in range(3)], sample(), after)
    assert found == [
        "envoy: 40 more open files 10 s after the load than before it",
        "envoy: http.plane.downstream_rq_active is 2 after the load, 0 before it",
    ]


def test_too_few_samples_say_so():
    with pytest.raises(ValueError, match="2 samples are too few to tell whether anything grows: let it run longer"):
        soak.verdict([sample(), sample()], sample(), sample())


def test_a_short_soak_of_the_real_plane_answers_everybody(monkeypatch):
    monkeypatch.setattr(soak, "_SAMPLE_SECONDS", 2.0)
    monkeypatch.setattr(soak, "_FULL_EVERY", 6.0)
    found = soak.run(seconds=12, rate=20)
    assert found.faults == []
    assert set(found.answers) >= {200, 400, 401, 404}
    assert found.left > 0
    # The engine that was full for a while falls back.
    assert found.backends["fleet"] > found.backends["bedrock"] > 0
    assert json.loads(json.dumps(dataclasses.asdict(found)))["backends"] == found.backends
    assert {"envoy", "router-policy-0"} <= set(found.samples[0].resident)


def test_memory_of_the_real_plane():
    rows = {row.process: row for row in memory.measure(sizes=(2,), seconds=0.5)}
    assert {"envoy", "router-policy-0"} <= set(rows)
    for row in rows.values():
        assert MIB < row.rest <= row.peak and row.loaded <= row.peak, row


def test_the_real_plane_reacts_to_a_full_and_to_a_lost_engine_and_to_their_return(monkeypatch):
    def quick(*arguments, **options):
        values, tokens = everything_on(*arguments, **options)
        return {**values, "policy": {"tuning": {"holdSeconds": 1, "lowerSeconds": 0.2, "settleSeconds": 2}}}, tokens

    everything_on = plane.everything_on
    monkeypatch.setattr(plane, "everything_on", quick)
    rows = reaction.measure(rounds=1)
    assert [row.what for row in rows] == [reaction.FULL, reaction.FREE, reaction.GONE, reaction.BACK]
    assert all(0 < row.seconds[0] for row in rows) and {len(row.seconds) for row in rows} == {1}


def test_the_largest_catalogue_renders_and_one_more_is_refused():
    local = _environment.load(str(VALUES / "local.yaml"))
    # The limit of the router's files, made small: rows of a stand-in for `helm template`.
    asked = []

    def template(chart, *, values, namespace):
        asked.append(len(values["global"]["models"]))
        if asked[-1] > 11:
            raise growth.helm.HelmError("the router's clusters.json need 901 KiB of the 900")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth.helm, "template", template)
        assert growth.largest(local) == 11
    assert asked == [2, 4, 8, 16, 12, 10, 11]


def test_the_command_runs_the_parts_that_are_named_and_fails_with_the_soak(monkeypatch, capsys):
    row = reaction.Reaction(reaction.FULL, (0.9, 1.1))
    monkeypatch.setattr(reaction, "measure", lambda **_: [row])
    grown = soak.Soak(seconds=60.0, answers={200: 7}, samples=[sample()] * 3, faults=["envoy: grows"])
    monkeypatch.setattr(soak, "run", lambda **_: grown)
    assert bench.main(["suite", "reaction", "soak", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["reaction"][0]["seconds"] == [0.9, 1.1]
    assert document["soak"]["faults"] == ["envoy: grows"] and document["soak"]["answers"] == {"200": 7}
    assert "memory" not in document
    assert bench.main(["suite", "soak"]) == 1
    assert "FAULT envoy: grows" in capsys.readouterr().out


def test_what_was_measured_before_a_part_that_fails_is_shown(monkeypatch, capsys):
    def fail(**_):
        raise TimeoutError("Envoy has a share of 100 for model-001 after 300 s")

    monkeypatch.setattr(reaction, "measure", lambda **_: [reaction.Reaction(reaction.FULL, (0.9, 1.1))])
    monkeypatch.setattr(memory, "measure", fail)
    assert bench.main(["suite", "reaction", "memory", "soak", "--json"]) == 2
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["reaction"][0]["seconds"] == [0.9, 1.1] and set(document) == {"machine", "reaction"}
    assert "error: memory: Envoy has a share of 100 for model-001 after 300 s" in err


def test_an_unknown_part_is_one_error(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["suite", "speed"])
    assert ended.value.code == 2
    assert "no part speed: the parts are growth, reaction, memory, soak" in capsys.readouterr().err
