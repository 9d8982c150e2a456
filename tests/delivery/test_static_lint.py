"""What chart-testing checks without Helm: Chart.yaml by Yamale, style by yamllint, with the files of ct.yaml."""

import pathlib
import subprocess

import pytest
import yaml

from inference_plane.checkout import CHARTS, ROOT

CT = yaml.safe_load((ROOT / "ct.yaml").read_text())
CHART_FILES = sorted(CHARTS.glob("*/Chart.yaml"))


def yamale(chart):
    command = ["yamale", "--schema", str(ROOT / CT["chart-yaml-schema"]), str(chart)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_chart_yaml_has_the_schema_s_form():
    for chart in CHART_FILES:
        done = yamale(chart)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"maintainer": []}, "maintainer: Unexpected element"),
        ({"type": "libary"}, "type: 'libary' not in"),
        ({"version": "1.0"}, "version: '1.0' is not a semantic version"),
        ({"annotations": {"artifacthub.io/prerelease": True}}, "'True' is not a str"),
        (
            {"dependencies": [{"name": "redis", "version": "1.0.0", "repository": "https://x"}]},
            "is not a sibling chart",
        ),
    ],
)
def test_the_schema_refuses(change, said, tmp_path):
    broken = tmp_path / "Chart.yaml"
    broken.write_text(yaml.safe_dump(yaml.safe_load(CHART_FILES[0].read_text()) | change))
    done = yamale(broken)
    assert done.returncode == 1 and said in done.stdout, done.stdout


def test_yamllint_finds_nothing():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.yaml", "*.yml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    # Templates are no YAML before they are rendered; tests and CRDs have their own forms; a query stands on one line.
    left_out = ("/templates/", "/files/dashboards/", "tests/", "src/")
    files = [f for f in listed if not any(part in f for part in left_out) and (ROOT / f).exists()]
    assert {"ct.yaml", "values/local.yaml", "charts/vllm/Chart.yaml", "charts/vllm/values.yaml"} <= set(files)
    command = ["yamllint", "--strict", "--config-file", CT["lint-conf"], *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_what_kind_installs_needs_no_accelerator():
    """The pull request's job deletes the other ci files, because ct takes all of a chart."""
    files = sorted(CHARTS.glob("*/ci/kind-*-values.yaml"))
    assert {file.parts[-3] for file in files} == {"router", "vllm"}
    from inference_plane import helm

    for file in files:
        render = helm.template(file.parts[-3], files=[file])
        assert {o["apiVersion"].partition("/")[0] for o in render.objects} <= {
            "v1",
            "apps",
            "networking.k8s.io",
            "policy",
        }
        for deployment in render.of_kind("Deployment"):
            pod = deployment["spec"]["template"]["spec"]
            assert "nodeSelector" not in pod and not pod.get("affinity")
            limits = [container["resources"]["limits"] for container in pod["containers"]]
            assert all(set(limit) <= {"cpu", "memory", "ephemeral-storage"} for limit in limits)
            assert pathlib.PurePath(pod["containers"][0]["image"]).name
