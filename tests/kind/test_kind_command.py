"""scripts/cluster up kind: a second cluster beside the first, and what is left however it ends."""

import os
import signal
import subprocess

import pytest

from inference_plane.checkout import ROOT
from inference_plane.cluster import docker, kind, state

COMMAND = ROOT / "scripts" / "cluster"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "state"
    yield folder
    state.end(folder)


def containers(cluster, folder):
    label = f"label=io.x-k8s.kind.cluster={kind.name(folder)}"
    return cluster.kind.engine.run("ps", "--all", "--quiet", "--filter", label).split()


def test_two_are_up_at_once_and_a_killed_one_is_removed(cluster, folder):
    done = subprocess.run([COMMAND, "up", "kind", "--state", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready after" in done.stdout and f"export KUBECONFIG={folder}/kubeconfig" in done.stdout
    found = state.read(folder)
    assert found.server != cluster.client.server and len(containers(cluster, folder)) == 3
    os.kill(found.pid, signal.SIGKILL)
    cluster.wait("the keeper's end", lambda: not state.alive(folder), 60)
    subprocess.run([COMMAND, "down", "--state", folder], check=True, capture_output=True)
    assert not folder.exists() and not containers(cluster, folder)
    assert len(cluster.kind.nodes()) == 3


def test_an_interrupted_one_leaves_nothing(cluster, folder):
    command = [COMMAND, "up", "kind", "--state", folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        cluster.wait("the first node", lambda: process.poll() is not None or containers(cluster, folder), 120)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=180)[0]
    assert process.returncode == 130, said
    assert "interrupted: everything is ended and removed" in said
    assert not folder.exists() and not containers(cluster, folder)


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker.problem().startswith(
        "kind runs nodes as containers, and there is no `docker` on PATH. Install Docker"
    )
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    said = docker.problem()
    assert "no Docker engine answers to `docker version`" in said
    assert "dockerd, runc, iptables not on PATH (on Debian `apt-get install docker.io iptables`)" in said
