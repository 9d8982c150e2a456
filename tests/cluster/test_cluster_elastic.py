"""The elastic plane as `scripts/load` starts it: load through the real control loops to engines on nodes that came."""

import json
import subprocess
import sys

import pytest

from inference_plane import checkout
from inference_plane.cluster import network

QUICK = ("--boot-seconds", "3", "--image-seconds", "2", "--weights-seconds", "2")


def load(tmp_path, *arguments):
    """What the command says, and its report."""
    try:
        network.inside(["true"])
    except network.Unavailable as error:
        pytest.skip(str(error))
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "inference_plane.commands", "load", *arguments, *QUICK, "--target", "elastic"]
        + ["--json", report, "--keep-logs", tmp_path / "logs"],
        cwd=checkout.ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(report.read_text())


PROFILE = """
description: More than one engine takes, for long enough that another comes.
seed: 1
users: 120
curve:
  - {phase: busy, for: 75s, rate: 7}
  - {phase: rollout, for: 60s, rate: 1}
  - {phase: routers, for: 50s, rate: 3}
requests:
  chat:
    weight: 1
    model: assistant
    tenants: {care: 1}
    prompt: {median: 100, p95: 300, least: 20, most: 800}
    output: {median: 90, p95: 200, least: 20, most: 300}
  record:
    weight: 0.1
    model: records
    tenants: {care: 1}
    restricted: true
    prompt: {median: 100, p95: 300, least: 20, most: 800}
    output: {median: 20, p95: 60, least: 5, most: 100}
retry: {times: 3, atMost: 10s}
slo: {ttft: 5s}
events:
  - {at: 80s, mark: rollout}
  - {at: 140s, mark: router-rollout}
thresholds:
  - {measure: failed, atMost: 0}
  - {measure: lost, atMost: 0}
  - {measure: left, atMost: 0}
  - {measure: late, atMost: 0.2}
"""


def test_a_busy_fleet_grows_on_nodes_that_come_and_it_and_its_routers_are_rolled_without_a_loss(tmp_path):
    file = tmp_path / "busy.yaml"
    file.write_text(PROFILE)
    made = load(tmp_path, str(file))
    fleet = [reading["models"]["assistant"] for reading in made["fleet"]]
    assert fleet[0]["ready"] == 2
    # KEDA asked for more, and they came: a pod of the plane's own on a node that Karpenter launched.
    assert max(one["replicas"] for one in fleet) > 2 and max(one["ready"] for one in fleet) > 2
    assert max(reading["nodes"].get("on-demand", 0) for reading in made["fleet"]) >= 1
    # From the first moment two replicas never shared a node, though four would have had room on one.
    assert made["fleet"][0]["nodes"]["on-demand"] >= 2
    assert [event["mark"] for event in made["events"]] == ["rollout", "router-rollout"]
    # There were never fewer routers than the chart says, and those that left and those that came have all answered.
    assert min(reading["routers"] for reading in made["fleet"]) == 2
    lines = [len((folder / "audit.jsonl").read_text()) for folder in (tmp_path / "logs" / "routers").iterdir()]
    assert len(lines) == 4 and all(lines)
    # Both versions have answered, and every answer is in the routers' own lines.
    assert made["router"]["compared"] > 0 and not any(made["router"]["differences"].values())


SLEEPING = """
description: Two models that sleep are asked for, and left alone.
seed: 4
users: 40
curve:
  - {phase: asleep, for: 3s, rate: 0}
  - {phase: first, for: 10s, rate: 1}
  - {phase: waking, for: 20s, rate: 0.3}
requests:
  summary:
    model: summary-trial
    tenants: {care: 1}
    prompt: 100
    output: 20
  confidential:
    model: summary-trial
    tenants: {care: 1}
    residency: {cluster: 1}
    restricted: true
    prompt: 100
    output: 20
  letter:
    model: appeal-letters
    tenants: {appeals: 1}
    restricted: true
    prompt: 100
    output: 20
retry: {times: 6, atMost: 5m}
timeout: 15m
slo: {ttft: 10m}
thresholds:
  - {measure: failed, atMost: 0}
  - {measure: lost, atMost: 0}
  - {measure: left, atMost: 0}
  - {measure: withoutRetryAfter, atMost: 0}
  - {measure: late, atMost: 1}
  - {measure: fallback, atLeast: 1, where: {request: [summary], phase: [first]}}
"""


def test_models_of_both_engines_wake_for_who_asks_and_sleep_again(tmp_path):
    file = tmp_path / "sleeping.yaml"
    file.write_text(SLEEPING)
    made = load(tmp_path, str(file))
    first, last = made["fleet"][0], made["fleet"][-1]
    for moment in (first, last):
        assert {(one["replicas"], one["ready"]) for one in moment["models"].values()} == {(0, 0)}
    # That the nodes are gone at the end the steps below say: they end the run, within the second of the last moment.
    assert first["claims"] == 0 and not first["nodes"]
    # Each was served by an engine of its own on a node that came for it; whoever was sent away has come again.
    by_model = made["measures"]["by_model"]
    assert set(by_model) == set(first["models"]) == {"summary-trial", "appeal-letters"}
    assert set(by_model["appeal-letters"]["backends"]) == {"fleet"}
    assert set(by_model["summary-trial"]["backends"]) == {"fleet", "bedrock"}
    for name, measured in by_model.items():
        assert max(reading["models"][name]["ready"] for reading in made["fleet"]) >= 1
        assert measured["retried_and_answered"] == measured["retried"] > 0
    # And every step of it was seen, in its order.
    assert set(made["steps"]["models"]) == set(by_model)
    for ways in made["steps"]["models"].values():
        moments = [step["at"] for way in ("wake", "back") for step in ways[way]]
        assert None not in moments
    assert made["router"]["compared"] > 0 and not any(made["router"]["differences"].values())
