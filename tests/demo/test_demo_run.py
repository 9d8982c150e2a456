"""The demonstration as it is typed: what it starts is gone afterwards, however it ends; and it shows what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inference_plane import tools
from inference_plane.commands import demo as command
from inference_plane.demo import plane
from inference_plane.helm import Render
from inference_plane.onehost.processes import NotReady

#: What is not built is left to ./scripts/test, which builds it unless it is told not to.
COMMAND = [sys.executable, "-m", "inference_plane.commands.demo", "--fast"]
BUILT = tools.path("ratelimit").is_file()


@contextlib.contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command with its output in `folder`; the pids of what it started are ended whatever the test finds."""
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        running = subprocess.Popen(
            [*COMMAND, "--json", "--keep-logs", str(folder / "logs"), *arguments],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        pids: set[int] = set()
        try:
            yield running
        finally:
            pids |= children(running.pid)
            running.kill()
            running.wait()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children(parent: int) -> set[int]:
    """The pids that a process has started, and that live."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, fields = status.read_text().rsplit(")", 1)
            if int(fields.split()[1]) == parent and fields.split()[0] != "Z":
                found.add(int(name.split()[0]))
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"hang: {what}"
        time.sleep(0.05)


def says(folder: Path, text: str) -> Callable[[], bool]:
    return lambda: text in (folder / "err").read_text()


@pytest.mark.parametrize(
    ("when", "how", "status"),
    [
        ("the model loads", signal.SIGINT, 130),
        ("engines start", signal.SIGKILL, -signal.SIGKILL),
        ("1. a completion", signal.SIGTERM, 128 + signal.SIGTERM),
    ],
)
def test_whatever_ends_it_leaves_no_process_behind(
    tmp_path: Path, when: str, how: signal.Signals, status: int
) -> None:
    with demo(tmp_path) as running:
        wait(says(tmp_path, when), f"it never said {when!r}: {(tmp_path / 'err').read_text()}")
        wait(lambda: children(running.pid), "it started nothing")
        started = children(running.pid)
        running.send_signal(how)
        assert running.wait(60) == status
        wait(lambda: not any(map(lives, started)), f"{started} outlived it", 20)
    assert (tmp_path / "out").read_text() == ""


def test_what_cannot_be_built_is_said_and_the_rest_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(name: str) -> Path:
        raise tools.ToolError(f"{name}: no route to host. Set GOPROXY to a module proxy that this machine reaches.")

    monkeypatch.setattr(tools, "path", lambda name: tmp_path / name)
    monkeypatch.setattr(tools, "build", fail)
    console = command._console(as_json=False)
    assert not command._can_count(console, build=True)
    out = capsys.readouterr().out
    assert "is built from its Go module, for token budgets, once: a minute" in out
    assert "not shown: token budgets. ratelimit: no route to host. Set GOPROXY" in out
    assert not command._can_count(console, build=False)
    assert capsys.readouterr().out == "not shown: token budgets. --fast builds nothing\n"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_plane_that_does_not_come_up_says_why_and_exits_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: plane.Plane) -> None:
        raise NotReady("model-fleet ended with status 1\n  end of its log")

    monkeypatch.setattr(plane.Plane, "__enter__", fail)
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert "error: model-fleet ended with status 1\n  end of its log\n" in err
    assert "--keep-logs DIR keeps the logs" in err
    assert bool(out) == (not arguments)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(plane.Missing, match=r"not installed: helm, envoy\. They come with requirements\.lock"):
        plane.require()


def test_an_engine_without_a_needed_flag_is_named() -> None:
    render = Render(
        """
kind: Deployment
metadata: {name: assistant, labels: {app.kubernetes.io/component: engine}}
spec: {template: {spec: {containers: [{args: [serve, --port=8000, --max-model-len=2048, --max-num-seqs=4]}]}}}
"""
    )
    with pytest.raises(LookupError, match="Deployment/assistant starts vLLM without --max-num-queued-reqs"):
        plane.engines(render)
    with pytest.raises(LookupError, match="no ConfigMap of the render holds plane_middleware.py"):
        plane.middleware(render)


@pytest.mark.slow
def test_every_scene_is_as_expected_and_the_plane_stays_up(tmp_path: Path) -> None:
    with demo(tmp_path, "--serve") as running:
        wait(lambda: says(tmp_path, "the plane is up")() or running.poll() is not None, "it never came up", 300)
        assert running.poll() is None, (tmp_path / "err").read_text()
        found = json.loads((tmp_path / "out").read_text())
        assert found["ok"], [row for row in found["rows"] if not row["ok"]]
        shown = {row["scene"] for row in found["rows"]}
        assert shown > {"a completion", "saturation: all are answered"}
        assert ("its budget is spent: 429" in shown) == BUILT
        assert ("not shown: token budgets" in (tmp_path / "err").read_text()) != BUILT
        line = (tmp_path / "err").read_text().split("curl -N ")[1]
        url, body = line.split()[0], line.split(" -d '")[1].split("'")[0]
        token = line.split("-H 'authorization: ")[1].split("'")[0]
        headers = {"content-type": "application/json", "authorization": token}
        request = urllib.request.Request(url, body.encode(), headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            assert reply.headers["x-inference-backend"] == "fleet"
            assert reply.read().endswith(b"data: [DONE]\n\n")
        started = children(running.pid)
        assert len(started) == 6 + 2 * BUILT, "two models, three engines, Envoy; ratelimit and Redis"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 0
        wait(lambda: not any(map(lives, started)), f"{started} outlived it", 20)
