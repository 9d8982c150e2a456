"""Children never outlive their parent, and a child that does not come up says why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_plane.onehost.processes import NotReady, Processes, free_addresses, free_port

SERVER = [
    sys.executable,
    "-c",
    """
import http.server, sys
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
""",
]
SLEEPER = [sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('stubborn', flush=True)
time.sleep(600)
""",
]

# Starts two children and prints their pids; the second never becomes ready where the second argument says so.
PARENT = """
import sys
from pathlib import Path
from inference_plane.onehost.processes import Processes
folder, hang = Path(sys.argv[1]), sys.argv[2] == "hang"
sleeper = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
with Processes(grace=2) as processes:
    for name in ("first", "second"):
        log = folder / f"{name}.log"
        ready = (lambda: False) if hang and name == "second" else (lambda log=log: bool(log.read_text().strip()))
        processes.start(name, sleeper, log_path=log, ready=ready)
    print("up", flush=True)
    import time; time.sleep(600)
"""


def _wait(condition, what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"hang: {what}"
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _pids(folder: Path) -> list[int]:
    return [int((folder / f"{name}.log").read_text()) for name in ("first", "second")]


def _written(folder: Path) -> bool:
    return all(
        (folder / f"{name}.log").is_file() and (folder / f"{name}.log").read_text().endswith("\n")
        for name in ("first", "second")
    )


def test_a_child_is_ready_by_url_and_gone_afterwards(tmp_path: Path) -> None:
    port = free_port()
    with Processes() as processes:
        child = processes.start(
            "web", [*SERVER, str(port)], log_path=tmp_path / "web.log", ready=f"http://127.0.0.1:{port}/"
        )
        assert child.running
        assert (
            Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(sys.executable.encode() + b"\0-c\0\nimport http")
        )
    assert child.returncode == -signal.SIGTERM


def test_children_stop_in_reverse_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    with Processes() as processes:
        for name in ("engine", "router"):
            child = processes.start(name, SLEEPER, log_path=tmp_path / name)
            terminate = child.popen.terminate
            monkeypatch.setattr(child.popen, "terminate", lambda name=name, end=terminate: (order.append(name), end()))
    assert order == ["router", "engine"]


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "stubborn.log"
    with Processes(grace=0.1) as processes:
        child = processes.start("stubborn", STUBBORN, log_path=log, ready=lambda: "stubborn" in log.read_text())
    assert child.returncode == -signal.SIGKILL


def test_the_error_of_a_failed_start_says_what_where_and_why(tmp_path: Path) -> None:
    with Processes() as processes:
        with pytest.raises(NotReady) as raised:
            processes.start(
                "engine",
                [sys.executable, "-c", "raise SystemExit('no such model')"],
                log_path=tmp_path / "engine.log",
                ready="http://127.0.0.1:9/health",
            )
        assert list(processes) == []
    message = str(raised.value)
    for part in (
        "engine (pid",
        "status 1 before it was ready",
        "http://127.0.0.1:9/health",
        str(tmp_path / "engine.log"),
        "no such model",
    ):
        assert part in message


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with Processes() as processes, pytest.raises(NotReady, match=r"/no/such/program: No such file or directory"):
        processes.start("x", ["/no/such/program"], log_path=tmp_path / "x.log", ready=lambda: False)


def test_silence_ends_in_an_error_and_ends_the_child(tmp_path: Path) -> None:
    with Processes() as processes:
        with pytest.raises(NotReady, match=r"is not ready after 0\.2 s"):
            processes.start("mute", SLEEPER, log_path=tmp_path / "mute.log", ready=lambda: False, timeout=0.2)
        assert list(processes) == []


def test_check_finds_a_child_that_ended_by_itself(tmp_path: Path) -> None:
    with Processes() as processes:
        child = processes.start("engine", SLEEPER, log_path=tmp_path / "engine.log")
        processes.check()
        child.kill()
        with pytest.raises(NotReady, match="engine .* ended with status -9"):
            processes.check()


@pytest.mark.parametrize("mode", ["up", "hang"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_to_the_parent_leaves_a_child(tmp_path: Path, number: signal.Signals, mode: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), mode],
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(lambda: _written(tmp_path), "the children never started")
        pids = _pids(tmp_path)
        assert not any(_gone(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(20)
        _wait(lambda: all(_gone(pid) for pid in pids), f"children survived {number.name}")
    finally:
        parent.kill()
        parent.wait()
    assert parent.returncode in {-number, 128 + number}


def test_a_signal_while_stopping_waits_until_all_are_gone(tmp_path: Path) -> None:
    log = tmp_path / "stubborn.log"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Processes(grace=0.3) as processes:
        child = processes.start("stubborn", STUBBORN, log_path=log, ready=lambda: "stubborn" in log.read_text())
        ends = child.popen.terminate
        child.popen.terminate = lambda: (ends(), os.kill(os.getpid(), signal.SIGINT))
    assert child.returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is before


def test_free_ports_and_addresses_can_be_bound() -> None:
    port = free_port()
    addresses = free_addresses(3, port)
    assert len(set(addresses)) == 3
    for address in addresses:
        with socket.create_server((address, port)):
            pass
