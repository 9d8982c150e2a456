"""chart-testing's `ct install`, by this repository's ct.yaml, of every chart that has values for kind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from kind_harness import suites

from inference_plane import tools
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.cluster import pod_images

CI = sorted(CHARTS.glob("*/ci/*-values.yaml"))


def runs(file):
    return file.name.startswith("kind-")


def test_ct_installs_what_kind_can_run(cluster, tmp_path):
    # ct takes every ci file of a chart, and has no way to choose.
    shutil.copytree(CHARTS, tmp_path / "charts", symlinks=True)
    shutil.copytree(ROOT / ".github" / "lint", tmp_path / ".github" / "lint")
    shutil.copy(ROOT / "ct.yaml", tmp_path)
    for file in (tmp_path / "charts").glob("*/ci/*-values.yaml"):
        if not runs(file):
            file.unlink()
    images = tmp_path / "images.json"
    images.write_text(json.dumps(pod_images.values(registry=not cluster.built)))
    charts = sorted({f"charts/{file.parts[-3]}" for file in CI if runs(file)})
    # With Helm and kubectl of this environment, and a kubeconfig that is this cluster's.
    environment = os.environ | {"KUBECONFIG": str(cluster.kind.kubeconfig)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        [
            tools.build("ct"), "install", "--config", "ct.yaml", "--charts", ",".join(charts),
            f"--helm-extra-set-args=--values={images}",
        ],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    for file in filter(runs, CI):
        assert f"charts/{file.parts[-3]}/ci/{file.name}" in said, f"{file} was not installed:\n{said[-3000:]}"
    told = suites(said)
    assert len({name for name, _ in told}) >= len(charts) and {phase for _, phase in told} == {"Succeeded"}, told


def test_the_guide_says_of_each_other_file_why_not():
    guide = (ROOT / "docs" / "clusters.md").read_text()
    named = [f"`{file.parts[-3]}/ci/{file.name}`" for file in CI if not runs(file)]
    assert not [name for name in named if name not in guide]
