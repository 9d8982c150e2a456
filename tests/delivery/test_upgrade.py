"""What UPGRADING.md promises of `helm upgrade`: what is replaced, and what is not."""

import subprocess

import pytest

from inference_plane import helm, packages
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.environments import cases

CASES = [case for case in cases() if case.chart == "inference-plane" or case.name.startswith("karpenter-nodepools/ci/")]


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """The charts with nothing changed but their version."""
    root = tmp_path_factory.mktemp("raised")
    packages.export(ROOT, root, dirty=True)
    version = packages.version(CHARTS)
    files = [str(file) for file in root.glob("charts/*/Chart.yaml")]
    subprocess.run(["sed", "-i", f"s/{version}/{version}-next/", *files], check=True)
    assert packages.version(root / "charts") == f"{version}-next"
    return root / "charts"


def replaced(before, after):
    """Names of the objects whose spec or data differ: what makes a controller replace pods or nodes."""
    content = lambda o: {key: value for key, value in o.items() if key != "metadata"}
    objects = {(o["kind"], o["metadata"]["name"]): o for o in after}
    assert set(objects) == {(o["kind"], o["metadata"]["name"]) for o in before}
    return {
        (o["kind"], o["metadata"]["name"])
        for o in before
        if content(o) != content(objects[o["kind"], o["metadata"]["name"]])
    }


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_new_version_alone_rolls_no_engine_and_drifts_no_node(case, raised):
    before = helm.template(case.chart, values=case.values).objects
    after = helm.template(raised / case.chart, values=case.values).objects
    # These carry the version; an engine takes minutes to load, and holds an accelerator twice meanwhile.
    ours = ("router", "router-policy", "router-ratelimit", "router-valkey")
    assert replaced(before, after) <= {("Deployment", name) for name in ours}


@pytest.mark.parametrize("case", cases(), ids=[case.name for case in cases()])
def test_selectors_hold_nothing_that_an_upgrade_changes(case):
    """A Deployment's selector cannot be changed: an upgrade would fail until somebody deletes it."""
    for workload in helm.template(case.chart, values=case.values).objects:
        if workload["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            selector = workload["spec"]["selector"]
            assert set(selector) == {"matchLabels"}
            assert set(selector["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/component"}


def test_no_chart_brings_definitions_that_helm_would_never_upgrade():
    assert not list(CHARTS.glob("*/crds"))
