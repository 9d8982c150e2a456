"""From what was seen of models that sleep to the steps of their way from zero and back; and what a run has of them."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from typing import Any

import pytest

from inference_plane.load import profiles, report, samples, thresholds
from inference_plane.load.drive import Outcome
from inference_plane.loop import catalogue
from inference_plane.loop.steps import BACK, WAKE, Claim, Glance, Model, asleep, document
from inference_plane.loop.times import Times

#: Monday, 2026-11-30 08:00 UTC.
BEGAN = 1796025600.0
TIMES = Times(boot=10, image=5, weights=6)
ZERO, ASKED = Model(demand=0.0), Model(demand=1.0)
SET = dataclasses.replace(ASKED, replicas=1)
PENDING = dataclasses.replace(SET, pods=1)
BOUND = dataclasses.replace(PENDING, bound=1, nodes=frozenset({"node-a"}))
STARTED = dataclasses.replace(BOUND, started=1)
READY = dataclasses.replace(STARTED, ready=1)
FOUND = dataclasses.replace(READY, found=1)
CALM = dataclasses.replace(FOUND, demand=0.0)
DRAINING = dataclasses.replace(CALM, replicas=0, found=0)
NODE = Claim(launched=True, ready=True, node="node-a")
HOST = dataclasses.replace(NODE, hosts=frozenset({"letters"}))

#: (seconds, the model, the NodeClaims): a whole way.
WAY: list[tuple[float, Model, dict[str, Claim]]] = [
    (0, ZERO, {}),
    (3, ASKED, {}),
    (9, SET, {}),
    (10, PENDING, {}),
    (11, PENDING, {"claim-a": Claim()}),
    (13, PENDING, {"claim-a": Claim(launched=True)}),
    (24, PENDING, {"claim-a": NODE}),
    (25, BOUND, {"claim-a": HOST}),
    (30, STARTED, {"claim-a": HOST}),
    (37, READY, {"claim-a": HOST}),
    (42, FOUND, {"claim-a": HOST}),
    (130, CALM, {"claim-a": HOST}),
    (200, DRAINING, {"claim-a": HOST}),
    (215, ZERO, {"claim-a": NODE}),
    (250, ZERO, {}),
]


def glances(way: list[tuple[float, Model, dict[str, Claim]]] = WAY, name: str = "letters") -> list[Glance]:
    return [Glance(BEGAN + at, {name: model}, claims, load=1.0 + at / 100) for at, model, claims in way]


def line(at: float, *, status: int = 200, backend: str = "fleet", model: str = "letters") -> dict[str, Any]:
    """The router's line of a request that came `at` seconds after the beginning."""
    time = f"2026-11-30T08:{int(at) // 60:02d}:{at % 60:06.3f}Z"
    known = {"time": time, "requested_model": model, "status": status, "backend": backend}
    return {**known, "first_byte_ms": 200, "duration_ms": 1500}


LINES = [line(2.25, status=503, backend="none"), line(2.5, model="other"), line(50), line(66.5)]


def way(made: dict[str, Any], which: str, field: str, name: str = "letters") -> list[Any]:
    return [step[field] for step in made["models"][name][which]]


def test_each_step_is_when_it_was_first_seen_and_how_much_later_than_those_before() -> None:
    made = document(glances(), LINES, BEGAN, TIMES)
    assert way(made, "wake", "step") == ["start", *(step.name for step in WAKE), "end"]
    assert way(made, "wake", "at") == pytest.approx([2.25, 3, 9, 10, 11, 13, 24, 25, 30, 37, 42, 50.2])
    assert way(made, "wake", "took") == pytest.approx([0, 0.75, 6, 1, 1, 2, 11, 1, 5, 7, 5, 8.2])
    assert way(made, "wake", "simulated") == [0, 0, 0, 0, 0, 0, 10, 0, 5, 6, 0, 0]
    assert way(made, "back", "step") == ["start", *(step.name for step in BACK)]
    assert way(made, "back", "at") == pytest.approx([68, 130, 200, 215, 250])
    assert way(made, "back", "took") == pytest.approx([0, 62, 70, 15, 35])
    assert made["late"] == 88 and made["load"] == {"least": 1.0, "most": 3.5}
    assert thresholds.every_step(made).kept


def test_bedrocks_answers_count_for_the_last_one_and_not_for_the_fleets_first() -> None:
    made = document(glances(), [line(2.25, backend="bedrock"), line(50), line(70, backend="bedrock")], BEGAN, TIMES)
    assert way(made, "wake", "at")[-1] == pytest.approx(50.2)
    assert way(made, "back", "at")[0] == pytest.approx(71.5)


def test_a_step_that_did_not_come_has_no_time_and_fails_the_run() -> None:
    """The node stays, and the engine is never asked."""
    made = document(glances(WAY[:-1]), [line(2.25, status=503, backend="none")], BEGAN, TIMES)
    assert way(made, "wake", "at")[-1] is None and way(made, "wake", "took")[-1] is None
    assert way(made, "back", "at") == [None] * 5  # nothing was answered, so there is no way back from it
    verdict = thresholds.every_step(made)
    assert not verdict.kept and str(verdict) == "steps from zero and back that did not come at most 0: 6"
    kept = document(glances(WAY[:-1]), LINES, BEGAN, TIMES)
    assert way(kept, "back", "at")[-1] is None and thresholds.every_step(kept).value == 1


def test_what_was_before_the_first_request_is_none_of_its_steps() -> None:
    """A new Deployment's first replica came and went before anybody asked."""
    before = [(at - 300, model, {"claim-0": claim for claim in claims.values()}) for at, model, claims in WAY]
    assert document(glances(before + WAY), LINES, BEGAN, TIMES) == document(glances(), LINES, BEGAN, TIMES)


def test_another_models_node_is_gone_for_this_one_when_its_pod_is() -> None:
    """Both have a pod on one node; what this one waits for is not that the other one leaves."""
    other = dataclasses.replace(HOST, hosts=frozenset({"letters", "trial"}))
    shared = [(at, model, {name: other if c.hosts else c for name, c in claims.items()}) for at, model, claims in WAY]
    left = dataclasses.replace(NODE, hosts=frozenset({"trial"}))
    made = document(glances([*shared[:-2], (215, ZERO, {"claim-a": left})]), LINES, BEGAN, TIMES)
    assert way(made, "back", "at")[-2:] == pytest.approx([215, 215])


def test_a_node_that_was_there_before_takes_no_time() -> None:
    there = [(at, model, claims or {"claim-a": NODE}) for at, model, claims in WAY[:4]] + WAY[6:]
    made = document(glances(there), LINES, BEGAN, TIMES)
    assert way(made, "wake", "took")[4:7] == [0, 0, 0]


def test_the_report_has_a_row_a_step_and_both_models_beside_each_other() -> None:
    both = [dataclasses.replace(one, models={**one.models, "trial": one.models["letters"]}) for one in glances()]
    lines = [*LINES, line(5, model="trial", backend="bedrock")]
    outcome = Outcome([], samples.Generator(5, 3, [0.001], 0.5, {}), [], BEGAN)
    profile = profiles.load("from-zero")
    made = report.document(profile, "elastic", outcome, [], None, steps=document(both, lines, BEGAN, TIMES))
    said = report.text(made)
    assert "From zero and back, in seconds, late by at most 88.0; load average 1.0 to 3.5" in said
    rows = {row[0]: row[1:] for row in (re.split(r"\s{2,}", text.strip()) for text in said.splitlines()) if row}
    assert rows["step"] == ["simulated", "letters", "later by", "trial", "later by"]
    assert rows["KEDA sets a replica"] == ["9.0", "6.0", "9.0", "0.0"]  # seen at once with the other one's demand
    assert rows["the node is ready"] == ["10", "24.0", "11.0", "24.0", "11.0"]
    assert rows["first answer of the fleet"] == ["50.2", "8.2", "-", "-"]
    assert rows["from no replica to an answer"] == ["21", "48.0", "-"]
    assert rows["from the last answer to no node"] == ["182.0", "243.5"]
    assert html.escape("From zero and back") in report.page(made, "")
    assert json.loads(json.dumps(made))["steps"]["models"]["trial"]["wake"][-1]["at"] is None
    assert report.document(profile, "demo", outcome, [], None)["steps"] is None


@pytest.mark.parametrize(
    ("model", "claims", "rests"),
    [
        (ZERO, {}, True),
        (ZERO, {"claim-b": dataclasses.replace(NODE, hosts=frozenset({"awake"}))}, True),
        (ZERO, {"claim-a": NODE}, False),
        (ZERO, {"claim-a": Claim()}, False),
        (Model(demand=None), {}, False),  # nobody knows whether somebody asks
        (ASKED, {}, False),
        (DRAINING, {"claim-a": HOST}, False),
    ],
)
def test_at_rest_no_node_is_there_for_nobody(model: Model, claims: dict[str, Claim], rests: bool) -> None:
    assert asleep(Glance(BEGAN, {"letters": model}, claims)) is rests


def test_a_run_has_models_that_sleep_only_where_they_are_asked_for() -> None:
    def has(*asked: str) -> set[str]:
        return set(catalogue.models(catalogue.chosen(asked, TIMES)))

    awake = {"assistant", "records"}
    assert has("assistant") == has("records") == has("assistant", "records") == awake
    assert has("summary-trial", "appeal-letters") == {"summary-trial", "appeal-letters"}
    assert has("appeal-letters") == {"appeal-letters"}
    assert has("records", "summary-trial") == {*awake, "summary-trial"}
    with pytest.raises(LookupError) as refused:
        has("assistant", "other")
    assert str(refused.value) == (
        "--target elastic: has no model other, only appeal-letters, assistant, records, summary-trial. Every request "
        "for it would be a 404. Set --model other=NAME"
    )


def test_a_model_that_sleeps_says_how_long_it_takes_to_start() -> None:
    """By what is simulated and what the loops take; it stays awake longer than that."""
    values = catalogue.chosen(["summary-trial", "appeal-letters"], Times(boot=10, image=5, weights=5.5))
    assert {entry["startSeconds"] for entry in catalogue.models(values).values()} == {21 + catalogue.LOOPS}
    for engine in ("vllm", "kserve"):
        assert values[engine]["autoscaling"]["cooldownSeconds"] > 21 + catalogue.LOOPS
    assert catalogue.chosen(["assistant"], TIMES).keys() == catalogue.environment().keys()


def test_kserves_deployments_have_another_name() -> None:
    values = catalogue.chosen(["summary-trial", "appeal-letters", "records"], TIMES)
    assert catalogue.kserve(values) and not catalogue.kserve(catalogue.chosen(["summary-trial"], TIMES))
    assert catalogue.sleeping(values) == ["summary-trial", "appeal-letters"]
    assert catalogue.deployments(values) == {
        "assistant": "assistant", "records": "records", "summary-trial": "summary-trial",
        "appeal-letters": "appeal-letters-predictor",
    }  # fmt: skip
