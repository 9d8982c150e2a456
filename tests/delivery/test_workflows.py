"""The workflows: least privilege, pinned actions, commands that exist. `tests/lint` runs actionlint over them."""

import re

import pytest
import yaml

from inference_plane.checkout import ROOT
from inference_plane.cluster import pod_images

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))

#: Who may write, and why: a release is the one thing that publishes.
WRITES = {"release.yaml": {"contents": "write", "packages": "write", "id-token": "write"}}
#: Which jobs beside it report into code scanning, and nothing else.
REPORTS = {("pull-request.yaml", "policies"): {"contents": "read", "security-events": "write"}}


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def file(request):
    return request.param


@pytest.fixture
def workflow(file):
    return yaml.safe_load(file.read_text())


def test_a_workflow_may_read_and_only_a_release_may_write(file, workflow):
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions", {}) == WRITES.get(file.name, REPORTS.get((file.name, name), {}))
        assert job["timeout-minutes"] <= 60


def test_actions_are_pinned_by_commit_with_their_version(file):
    uses = re.findall(r"uses: (.*)", file.read_text())
    assert uses
    for line in uses:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line


def test_an_action_is_pinned_once():
    pins = {}
    for file in FILES:
        for action, pin in re.findall(r"uses: ([^@]+)@(.*)", file.read_text()):
            assert pins.setdefault(action, pin) == pin


def test_a_stranger_s_commit_runs_without_this_repository_s_rights(workflow):
    """`pull_request_target` and `workflow_run` run in the name of main, with its secrets and caches."""
    # PyYAML reads the key `on` as a boolean.
    assert set(workflow[True]) <= {"pull_request", "push"}


def test_everything_is_tested_before_it_is_merged_or_pushed(file, workflow):
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    pushes = [number for number, run in enumerate(steps) if '" push ' in run]
    assert bool(pushes) is (file.name in WRITES)
    assert steps.index("./.ci/run") < min(pushes, default=len(steps))


def test_a_chart_is_signed_by_its_digest():
    """Whoever moves a tag between push and signature would have another chart signed."""
    signed = re.findall(r"cosign sign .*", (ROOT / ".github" / "workflows" / "release.yaml").read_text())
    assert signed and all(line.endswith('@$digest"') for line in signed)


def test_credentials_of_the_checkout_do_not_stay(workflow):
    for job in workflow["jobs"].values():
        (checkout,) = (s for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@"))
        assert checkout["with"]["persist-credentials"] is False


def test_scripts_that_are_called_exist(file):
    for script in re.findall(r"\./((?:scripts|\.ci)/[\w-]+)", file.read_text()):
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_no_expression_stands_in_a_shell_script(workflow):
    """What somebody else writes, such as a branch's name, would run as a command there."""
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")


def test_the_cluster_gets_the_images_that_nobody_publishes_by_the_names_of_the_values():
    """The plane's own is named by the charts, in code too; the engine's by those who use it."""
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "pull-request.yaml").read_text())["jobs"]["kind"]
    assert "./scripts/test kind" in [step.get("run") for step in job["steps"]]
    for file in ("values/local.yaml", "charts/vllm/ci/kind-cpu-values.yaml"):
        image = yaml.safe_load((ROOT / file).read_text())["global"]["images"]["vllm-cpu"]
        assert f"{image['repository']}:{image['tag']}" == pod_images.ENGINE

