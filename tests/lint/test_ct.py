"""chart-testing and actionlint themselves, built from their Go modules on first use."""

import shutil
import subprocess

import pytest

from inference_plane import packages, tools
from inference_plane.checkout import CHARTS, ROOT


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What a pull request's job has: the repository's files as they are, without what git ignores."""
    root = tmp_path_factory.mktemp("clone")
    packages.export(ROOT, root, dirty=True)
    for name in ("ct.yaml", ".github"):
        source = ROOT / name
        shutil.copytree(source, root / name) if source.is_dir() else shutil.copy(source, root / name)
    return root


def ct(root, *arguments):
    return subprocess.run(
        [str(tools.build("ct")), *arguments, "--config", "ct.yaml"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_ct_lints_every_chart_with_every_ci_file(repository):
    done = ct(repository, "lint", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    for chart in CHARTS.glob("*/Chart.yaml"):
        assert f'✔︎ {chart.parent.name} => (version: "' in done.stdout
    for file in CHARTS.glob("*/ci/*-values.yaml"):
        assert f'Linting chart with values file "{file.relative_to(ROOT)}"' in done.stdout
    # Nothing was fetched or built beside the links.
    assert not list(repository.glob("charts/*/charts/*.tgz"))


LINTED = 'Linting chart with values file "charts/vllm/ci/'


@pytest.mark.parametrize(
    ("file", "text", "linted"),
    [
        # Yamale and yamllint come before Helm, which stops at the first file that it refuses.
        ("Chart.yaml", "maintainer: me\n", ()),
        ("ci/minimal-values.yaml", "replicas:   3\n", ()),
        ("ci/minimal-values.yaml", "replicaz: 3\n", ("batch", "gpu-fleet", "kind-cpu", "minimal")),
    ],
    ids=["yamale", "yamllint", "helm"],
)
def test_ct_fails_where_a_tool_of_its_finds_something(file, text, linted, repository):
    """Judged by ct's own lines: it does not wait for the last ones of the tools that it runs."""
    broken = repository / "charts" / "vllm" / file
    before = broken.read_text()
    try:
        broken.write_text(before + text)
        done = ct(repository, "lint", "--charts", "charts/vllm")
    finally:
        broken.write_text(before)
    assert done.returncode == 1 and "✖︎ vllm => " in done.stdout, done.stdout + done.stderr
    seen = [line.removeprefix(LINTED).partition("-values")[0] for line in done.stdout.splitlines() if LINTED in line]
    assert tuple(seen) == linted


def test_actionlint_finds_nothing_in_the_workflows():
    files = [str(file) for file in (ROOT / ".github" / "workflows").glob("*.yaml")]
    done = subprocess.run(
        [str(tools.build("actionlint")), "-no-color", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == "" and done.returncode == 0


def test_actionlint_finds_what_is_wrong(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - run: echo ${{ secret.X }}\n"
    )
    done = subprocess.run(
        [str(tools.build("actionlint")), str(wrong)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and 'undefined variable "secret"' in done.stdout


def test_a_tool_that_cannot_be_built_says_what_to_do(tmp_path, monkeypatch):
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(
        tools.ToolError, match="ct: `go build .*/ct` failed: no route to host. Set GOPROXY to a module proxy"
    ):
        tools.build("ct", cache=tmp_path / "cache")
