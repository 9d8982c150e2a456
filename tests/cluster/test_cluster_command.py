"""scripts/cluster: what is there after it, and what is not, however it ends."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from inference_plane.checkout import ROOT
from inference_plane.cluster import embedded, state
from inference_plane.cluster.client import Client
from inference_plane.helm import KUBERNETES_VERSION

COMMAND = ROOT / "scripts" / "cluster"
HANG_SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def built():
    """With the caches of this home, not of the tests' ones."""
    embedded.build()


@pytest.fixture
def home(tmp_path):
    """A home of its own, with a kubeconfig that must stay as it is."""
    kube = tmp_path / "home" / ".kube"
    kube.mkdir(parents=True)
    (kube / "config").write_text("mine")
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "state"
    yield folder
    state.end(folder)


def run(home, *words):
    environment = os.environ | {"HOME": str(home), "KUBECONFIG": str(home / ".kube" / "config")}
    return subprocess.run(
        [COMMAND, *map(str, words)], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


def processes(folder):
    """Pids of all processes that have the folder in their command line, keepers too."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "scripts/cluster" not in words:
            found.append(int(file.parent.name))
    return found


def gone(folder):
    deadline = time.monotonic() + 30
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(folder)


def test_up_status_and_down_touch_nothing_but_the_folder(home, folder):
    assert run(home, "status", "--state", folder).returncode == 1
    up = run(home, "up", "--state", folder, "--environment", "prod")
    assert up.returncode == 0, up.stderr
    assert re.search(r"^ready after [0-9.]+ s$", up.stdout, re.MULTILINE), up.stdout
    print(up.stdout)

    told = state.read(folder)
    assert f"export KUBECONFIG={told.kubeconfig}" in up.stdout
    assert pathlib.Path(told.kubeconfig).stat().st_mode & 0o077 == 0
    client = Client(pathlib.Path(told.kubeconfig))
    assert client.call("GET", "/version")["gitVersion"] == told.version == f"v{KUBERNETES_VERSION}"
    names = {node["metadata"]["name"] for node in client.list("v1", "Node")}
    assert names == {
        f"{kind}-{zone}" for kind in ("ordinary", "l4-batch", "l4-interactive", "l40s-interactive") for zone in "abc"
    }

    again = run(home, "up", "--state", folder)
    assert again.returncode == 0 and again.stdout.startswith("already up")
    assert state.read(folder).pid == told.pid
    assert run(home, "status", "--state", folder, "--env").stdout == f"export KUBECONFIG={told.kubeconfig}\n"

    down = run(home, "down", "--state", folder)
    assert (down.returncode, down.stdout) == (0, f"{folder}: ended and removed\n")
    assert not folder.exists() and gone(folder)
    assert run(home, "down", "--state", folder).stdout == f"{folder}: nothing there\n"
    assert [file.name for file in home.rglob("*") if file.is_file()] == ["config"]
    assert (home / ".kube" / "config").read_text() == "mine"


def test_two_at_once_know_nothing_of_each_other(home, folder, tmp_path):
    other = tmp_path / "other"
    try:
        assert run(home, "up", "--state", folder).returncode == 0
        assert run(home, "up", "--state", other).returncode == 0
        first, second = (Client(where / "kubeconfig") for where in (folder, other))
        first.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-here"}})
        assert second.get("v1", "Namespace", "only-here") is None
        assert run(home, "down", "--state", other).returncode == 0
        assert first.get("v1", "Namespace", "only-here")
    finally:
        state.end(other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["etcd and the API server", "CustomResourceDefinitions"])
def test_interrupted_it_leaves_nothing(home, folder, number, step):
    with subprocess.Popen([COMMAND, "up", "--state", folder], stdout=subprocess.PIPE) as up:
        told = b""
        while step.encode() not in told:
            told += os.read(up.stdout.fileno(), 4096) or pytest.fail(f"it ended after {told}")
        assert processes(folder)
        # Twice, as somebody does who does not believe it.
        up.send_signal(number)
        up.send_signal(number)
        assert up.wait(HANG_SECONDS) == 130
    assert not folder.exists() and gone(folder)


def test_a_keeper_that_is_killed_takes_everything_with_it(home, folder):
    assert run(home, "up", "--state", folder).returncode == 0
    told = state.read(folder)
    os.kill(told.pid, signal.SIGKILL)
    assert gone(folder)
    assert run(home, "status", "--state", folder).returncode == 1
    # What is left of it is in nobody's way.
    again = run(home, "up", "--state", folder)
    assert again.returncode == 0 and state.read(folder).pid != told.pid


def test_a_component_that_ends_by_itself_is_told_of(home, folder):
    assert run(home, "up", "--state", folder).returncode == 0
    os.kill(state.read(folder).processes["kube-scheduler"], signal.SIGKILL)
    assert gone(folder)
    status = run(home, "status", "--state", folder)
    assert status.returncode == 1
    assert "It ended by itself: kube-scheduler (pid " in status.stderr
    assert run(home, "down", "--state", folder).returncode == 0 and not folder.exists()


def test_a_folder_of_somebody_else_is_left_alone(home, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    for action in ("up", "down"):
        done = run(home, action, "--state", tmp_path / "mine")
        assert (tmp_path / "mine" / "letter").read_text() == "dear"
    assert "nothing there" in done.stdout
    up = run(home, "up", "--state", tmp_path / "mine")
    assert up.returncode == 1 and up.stderr.startswith(f"error: {tmp_path / 'mine'}: not empty, and no cluster's.")
