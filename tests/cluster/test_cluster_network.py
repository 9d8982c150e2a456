"""The network of pods that a whole cluster can stand in: what is there, what is not, and who cannot have one."""

import subprocess
import sys

import pytest

from inference_plane.cluster import network

INSIDE = """
import socket

server = socket.create_server(("0.0.0.0", 8001))
for address in ("10.244.0.7", "10.244.255.9", "127.0.0.1"):
    socket.create_connection((address, 8001), timeout=5)
    print(server.accept()[0].getsockname()[0])
try:
    socket.create_connection(("192.0.2.1", 443), timeout=5)
except OSError as error:
    print(error.strerror)
print([name for _, name in socket.if_nameindex()])
"""


def test_every_address_of_a_pod_is_here_and_nothing_else_is():
    try:
        command = network.inside([sys.executable, "-c", INSIDE])
    except network.Unavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    said = ["10.244.0.7", "10.244.255.9", "127.0.0.1", "Network is unreachable", "['lo']"]
    assert done.stdout.splitlines() == said


def test_a_command_that_fails_inside_fails():
    try:
        command = network.inside(["sh", "-c", "exit 7"])
    except network.Unavailable as error:
        pytest.skip(str(error))
    assert subprocess.run(command, check=False).returncode == 7


def test_whoever_cannot_have_one_is_told_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(network.Unavailable, match="no unshare and no ip on PATH: install util-linux and iproute2"):
        network._way.__wrapped__()
    for name, text in (("unshare", "echo 'unshare failed: Operation not permitted' >&2; exit 1"), ("ip", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(network.Unavailable, match="Operation not permitted.* Run as root, or let users make them"):
        network._way.__wrapped__()
