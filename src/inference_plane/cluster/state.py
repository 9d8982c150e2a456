"""One cluster that outlives the command that started it: a folder, and a keeper process that holds it.

The keeper starts the processes and ends them, and the kernel ends them with it where it is killed. While it lives it
holds a lock in the folder, so whoever asks knows from the lock whether a cluster is there, and never signals a process
that only has the keeper's old number. When it ends, the folder goes too, unless there is something to read in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inference_plane.manifests import crds

DEFAULT = crds.CACHE / "cluster"
END_SECONDS = 180  # kind removes its containers one after the other


class ClusterError(RuntimeError):
    """A cluster cannot be started, or is not there."""


@dataclass
class State:
    """What the keeper writes down for others: `failed` is why the cluster ended, empty while it lives."""

    kind: str
    pid: int
    started: float
    ready: bool = False
    failed: str = ""
    kubeconfig: str = ""
    server: str = ""
    version: str = ""
    processes: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        new = folder / ".state.json"
        new.write_text(json.dumps(asdict(self), indent=2))
        os.replace(new, folder / "state.json")


def read(folder: Path) -> State | None:
    """The state of the cluster in a folder, or None where there is none, not even a dead one."""
    with contextlib.suppress(FileNotFoundError):
        return State(**json.loads((folder / "state.json").read_text()))
    return None


def alive(folder: Path) -> bool:
    """Whether a keeper holds the folder."""
    with contextlib.suppress(FileNotFoundError), open(folder / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start(folder: Path, arguments: list[str], say: Callable[[dict[str, Any]], None]) -> State:
    """Starts a keeper for `folder` and waits until its cluster is ready; `say` gets what the keeper tells meanwhile.

    Where anything goes wrong, or this process is interrupted, nothing of it stays.

    Raises:
        ClusterError: it does not come up, or the folder holds something else.
    """
    _claim(folder)
    keeper = subprocess.Popen(
        [sys.executable, "-m", "inference_plane.cluster.keeper", str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which then ends the keeper
    )
    problem = "its keeper was killed"
    try:
        for line in keeper.stdout:
            told = json.loads(line)
            if told.get("ready"):
                return read(folder)
            problem = told.get("failed", problem)
            say(told)
        keeper.wait()
        raise ClusterError(problem)
    except BaseException:
        with undisturbed():
            keeper.terminate()
            keeper.wait()
            if not alive(folder):  # else another command was quicker, and the folder is its cluster's
                shutil.rmtree(folder, ignore_errors=True)
        raise


def end(folder: Path) -> bool:
    """Ends the cluster of a folder and removes it; whether there was one, or the rest of one.

    Raises:
        ClusterError: it does not end.
    """
    state = read(folder)
    if state is None:
        return False
    if alive(folder):
        os.kill(state.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while alive(folder):
            if time.monotonic() > deadline:
                raise ClusterError(f"{folder}: process {state.pid} does not end. End it with kill -9 {state.pid}.")
            time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The lock of a folder, for its keeper.

    Raises:
        ClusterError: another keeper has it.
    """
    with open(folder / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"{folder}: another command starts a cluster there") from None
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not cut the cleaning short."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _claim(folder: Path) -> None:
    """An empty folder: the rest of a dead cluster is removed, anything else is left alone."""
    if read(folder) is not None and not alive(folder):
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ClusterError(f"{folder}: not empty, and no cluster's. Name another folder with --state.")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
