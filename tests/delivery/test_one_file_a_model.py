"""The example with one file a model: the same plane as one file, and no team can touch another's."""

import pathlib
import shutil
import sys

import pytest
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import argo  # noqa: E402

from inference_plane import argocd, helm  # noqa: E402
from inference_plane.checkout import ROOT  # noqa: E402
from inference_plane.commands import model_files  # noqa: E402
from inference_plane.manifests import check  # noqa: E402

EXAMPLE = ROOT / "examples" / "one-file-a-model"
PROD = EXAMPLE / "values" / "prod"
FILES = [PROD / "base.yaml", *sorted((PROD / "models").glob("*/*.yaml"))]


#: By trust-manager.
EXTERNAL = ["ConfigMap inference/payer-authorities"]


def merged():
    """The catalogue in one file, as somebody would have written it without the example."""
    values = yaml.safe_load(FILES[0].read_text())
    values["global"]["models"] = {
        name: entry
        for file in FILES[1:]
        for name, entry in yaml.safe_load(file.read_text())["global"]["models"].items()
    }
    return values


def test_the_files_together_are_the_one_file():
    rendered = helm.template("inference-plane", files=FILES)
    assert rendered.objects == helm.template("inference-plane", values=merged()).objects
    assert [str(finding) for finding in check(rendered.objects, external=EXTERNAL)] == []
    assert len(merged()["global"]["models"]) == len(FILES) - 1 >= 3


def test_the_applications_are_the_one_release_but_for_the_releases_names():
    """The router knows every model, each team's Application has the team's engines, and none is lost between them."""
    parts = [o for file, app in argo.applications() if file.startswith("examples/") for o in argocd.render(app)]
    whole = argocd.without_tests(helm.template("inference-plane", files=FILES).objects)
    engines = {
        o["metadata"]["name"] for o in whole if o["metadata"]["labels"].get("app.kubernetes.io/component") == "engine"
    }
    assert len(engines) > 3
    for kind in ("Deployment", "Service", "NetworkPolicy", "ServiceAccount", "PodDisruptionBudget", "ScaledObject"):
        names = lambda objects: sorted(o["metadata"]["name"] for o in objects if o["kind"] == kind)
        assert names(parts) == names(whole)


def test_the_order_of_the_files_does_not_matter():
    backwards = helm.template("inference-plane", files=[FILES[0], *reversed(FILES[1:])])
    assert backwards.objects == helm.template("inference-plane", files=FILES).objects


def test_every_team_has_code_owners():
    lines = [line.split() for line in (EXAMPLE / "CODEOWNERS").read_text().splitlines() if not line.startswith("#")]
    owned = [path for path, *owners in lines if owners]
    assert owned[0] == "/examples/one-file-a-model/", "the last line that matches decides, so the widest comes first"
    teams = {folder.name for folder in (PROD / "models").iterdir()}
    assert {pathlib.PurePath(path).name for path in owned[1:]} == teams == set(merged()["global"]["teams"])
    for path in owned:
        assert (ROOT / path[1:]).is_dir()


def test_the_example_s_files_pass(capsys):
    assert model_files.main([str(PROD / "models")]) == 0
    assert capsys.readouterr() == ("", "")


OWN = "global: {models: {records: {team: care, source: s3://payer-models/records/v3/}}}\n"

WRONG = {
    "another team's model beside it": (
        "care/records.yaml",
        "global: {models: {records: {team: care}, clinical-summary: {residency: anywhere}}}",
        "care/records.yaml: global.models has clinical-summary. The file is for records alone. "
        "Move it to clinical-summary.yaml of its team.",
    ),
    "another team": (
        "care/records.yaml",
        "global: {models: {records: {team: appeals}}}",
        "care/records.yaml: global.models.records.team is appeals. The folder is care's. Set team: care.",
    ),
    "no team": (
        "care/records.yaml",
        "global: {models: {records: {source: s3://payer-models/records/v3/}}}",
        "care/records.yaml: global.models.records.team is absent. The folder is care's. Set team: care.",
    ),
    "what all share": (
        "care/records.yaml",
        "global: {network: {policies: false}, models: {records: {team: care}}}",
        "care/records.yaml: global has network. A model's file changes nothing but its model. "
        "Move network to the base file.",
    ),
    "another chart's values": (
        "care/records.yaml",
        "global: {models: {records: {team: care}}}\nrouter: {replicas: 1}",
        "care/records.yaml: the file has router. A model's file changes nothing but its model. "
        "Move router to the base file.",
    ),
    "another name": (
        "care/notes.yaml",
        "global: {models: {notes: null}}",
        "care/notes.yaml: global.models.notes is absent or empty. The file's name is the model's. Rename one of them.",
    ),
    "an ending that no release reads": (
        "care/notes.yml", OWN, "care/notes.yml: no TEAM/MODEL.yaml. No release would read it. Move or delete it.",
    ),
    "too deep": (
        "care/more/notes.yaml", OWN,
        "care/more/notes.yaml: no TEAM/MODEL.yaml. No release would read it. Move or delete it.",
    ),
    "no models": (
        "care/records.yaml", "global: {}",
        "care/records.yaml: global has no models. It must hold global.models.records. Add it.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_reaches_farther_than_its_model_is_refused(wrong, tmp_path, capsys):
    file, text, message = WRONG[wrong]
    shutil.copytree(PROD / "models", tmp_path / "models")
    (tmp_path / "models" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "models" / file).write_text(text)
    assert model_files.main([str(tmp_path / "models")]) == 1
    assert capsys.readouterr().err.splitlines() == [message]


def test_a_key_that_stands_twice_is_refused(tmp_path, capsys):
    (tmp_path / "care").mkdir()
    (tmp_path / "care" / "records.yaml").write_text(OWN + OWN)
    assert model_files.main([str(tmp_path)]) == 1
    assert "the key global stands twice" in capsys.readouterr().err


def test_an_empty_folder_is_no_success(tmp_path, capsys):
    assert model_files.main([str(tmp_path)]) == 1
    assert "no TEAM/MODEL.yaml in it" in capsys.readouterr().err
