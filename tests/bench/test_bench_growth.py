"""The figures of growth are those of real renders."""
import base64
import gzip
import json

import pytest
import yaml

from inference_plane.bench import growth
from inference_plane.checkout import VALUES
from inference_plane.commands import bench

LOCAL = yaml.safe_load((VALUES / "local.yaml").read_text())
PROD = yaml.safe_load((VALUES / "prod.yaml").read_text())


def test_each_model_has_a_name_and_a_source_of_its_own():
    environment = {"global": {"models": {"a": {"source": "s3://b/a/v1/", "fallback": None}}}}
    models = growth.grown(environment, 2)["global"]["models"]
    assert {name: entry["source"] for name, entry in models.items()} == {
        "model-000": "s3://b/a-0/v1/", "model-001": "s3://b/a-1/v1/"}


def test_a_teams_budget_follows_the_first_model_of_its_entry():
    environment = {"global": {
        "models": {"a": {"source": "s3://b/a/v1/"}, "b": {"source": "s3://b/b/v1/"}},
        "teams": {"care": {"models": {"b": {"tokensPerMinute": 7}}}, "appeals": {}}}}
    budgets = {size: growth.grown(environment, size)["global"]["teams"]["care"]["models"] for size in (1, 4)}
    assert budgets == {1: {}, 4: {"model-001": {"tokensPerMinute": 7}}}


@pytest.mark.parametrize("environment", [LOCAL, PROD], ids=["local", "prod"])
def test_more_models_make_more_of_everything(environment):
    small, large = growth.measure(environment, sizes=(1, 6), rounds=1)
    assert (small.models, large.models) == (1, 6)
    for figure in ("objects", "manifest_bytes", "release_bytes", "router_bytes"):
        assert 0 < getattr(small, figure) < getattr(large, figure), figure
    assert large.release_bytes < large.manifest_bytes


def test_a_release_is_counted_as_helm_stores_it():
    release = {"name": "plane", "manifest": "kind: Pod\n" * 1000}
    stored = base64.b64encode(gzip.compress(json.dumps(release, separators=(",", ":")).encode(), 9))
    assert growth.release_bytes(release) == len(stored)


def test_the_command_prints_json(monkeypatch, capsys):
    row = growth.Growth(models=10, seconds=0.5, objects=80, manifest_bytes=9, release_bytes=7, router_bytes=5)
    monkeypatch.setattr(growth, "measure", lambda *_, **__: [row])
    assert bench.main(["growth", "local", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["release_bytes"] == 7


def test_an_unknown_environment_is_one_error(capsys):
    assert bench.main(["growth", "nowhere"]) == 2
    assert "no environment or values file 'nowhere'" in capsys.readouterr().err
