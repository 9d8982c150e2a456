"""Child processes that never outlive their parent.

Three ways out are covered. A normal end or an exception stops the children in reverse order: SIGTERM, then SIGKILL
after a grace. SIGINT, SIGTERM and SIGHUP become exceptions in the main thread, also while a child is starting, so the
same path is taken. And where the parent is killed with SIGKILL, the kernel ends the children: each of them asks for
that with PR_SET_PDEATHSIG before it becomes the wanted program. Processes that a child starts itself are beyond this.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

Ready = Callable[[], bool] | str | None

# The child asks for its own death before exec. `preexec_fn` would run Python after fork in a process with threads,
# which can deadlock; a program of its own cannot. The mask is cleared because the parent forks with signals blocked,
# and the parent is compared because it may have died before prctl.
_LAUNCHER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(1, signal.SIGKILL, 0, 0, 0):
    sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent ended before the child started")
signal.pthread_sigmask(signal.SIG_SETMASK, [])
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOG_TAIL_LINES = 25


class NotReady(RuntimeError):
    """A child ended or stayed silent before it was ready; the message carries the end of its log."""


@dataclass
class Process:
    """One child. `argv` is the wanted program, without the launcher; the pid is its own."""

    name: str
    argv: Sequence[str]
    log_path: Path
    popen: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number where a signal ended it, or None while it runs."""
        return self.popen.poll()

    @property
    def running(self) -> bool:
        return self.returncode is None

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of the log."""
        with open(self.log_path, "rb") as log:
            log.seek(max(0, os.path.getsize(self.log_path) - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """End it at once with SIGKILL, as a lost pod ends, and wait until it is gone."""
        self.popen.kill()
        self.popen.wait()


class Processes:
    """A context manager that starts children and ends every one of them.

    Enter it and call `start` in the main thread: only there may signals be handled, and the kernel's parent death
    signal follows the *thread* that started a child. One `Processes` may stand inside another. `grace` is how many
    seconds a child has between SIGTERM and SIGKILL.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self._children: list[Process] = []
        self._previous: dict[signal.Signals, object] = {}
        self._guarded = 0
        self._pending: int | None = None

    def __enter__(self) -> Processes:
        _require_main_thread("Processes")
        for number in _ENDING:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._guard(deliver=kind is None):
            self._stop(self._children)
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def start(
        self,
        name: str,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        ready: Ready = None,
        *,
        cwd: str | os.PathLike[str] | None = None,
        output_path: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> Process:
        """Start a program and wait until it is ready.

        `env` is the whole environment (None: the parent's). Output goes to `log_path`, by default
        `<cwd or .>/<name>.log`; with `output_path` standard output goes there, and only standard error to the log.
        `ready` is a URL that must answer 200, a callable that must return True (an OSError counts as not yet), or
        None. Raises NotReady after `timeout` seconds, or as soon as the program ends.
        """
        _require_main_thread("Processes.start")
        words = [os.fspath(word) for word in argv]
        log = Path(log_path) if log_path is not None else Path(cwd or ".") / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._guard(deliver=True):
            with open(log, "wb") as errors, open(output_path or os.devnull, "wb") as output:
                popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *words],
                    stdin=subprocess.DEVNULL,
                    stdout=output if output_path else errors,
                    stderr=errors,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,  # the terminal's Ctrl-C reaches the parent alone, which ends all in order
                )
            process = Process(name, words, log, popen)
            self._children.append(process)
        try:
            self._wait(process, ready, timeout)
        except BaseException:
            self.stop(process)
            raise
        return process

    def stop(self, process: Process) -> None:
        """End one child: SIGTERM, then SIGKILL after the grace. Ending one that has ended is no error."""
        with self._guard(deliver=True):
            self._stop([process])

    def check(self) -> None:
        """Raise NotReady for the first child that ended by itself."""
        for process in self._children:
            if not process.running:
                raise NotReady(_report(process, f"ended with status {process.returncode}"))

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._children))

    def _wait(self, process: Process, ready: Ready, timeout: float) -> None:
        if ready is None:
            return
        deadline = time.monotonic() + timeout
        while not _is_ready(ready):
            if not process.running:
                raise NotReady(
                    _report(process, f"ended with status {process.returncode} before it was ready{_at(ready)}")
                )
            if time.monotonic() > deadline:
                raise NotReady(_report(process, f"is not ready after {timeout:g} s{_at(ready)}"))
            time.sleep(0.05)
        if not process.running:  # somebody else answers on that port
            raise NotReady(
                _report(process, f"ended with status {process.returncode}, yet something answers{_at(ready)}")
            )

    def _stop(self, children: Sequence[Process]) -> None:
        """Reverse order, each one gone before the next: a router stops before the engines that it calls."""
        for process in reversed(list(children)):
            if process.running:
                process.popen.terminate()
                try:
                    process.popen.wait(self.grace)
                except subprocess.TimeoutExpired:
                    process.kill()
            if process in self._children:
                self._children.remove(process)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._guarded:
            self._pending = number
        else:
            _raise_for(number)

    @contextlib.contextmanager
    def _guard(self, deliver: bool) -> Iterator[None]:
        """Hold signals back while a child is between fork and the list, or between SIGTERM and its end."""
        self._guarded += 1
        try:
            yield
        finally:
            self._guarded -= 1
            if deliver and not self._guarded and self._pending is not None:
                number, self._pending = self._pending, None
                _raise_for(number)


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free on `host` now.

    Taken below the kernel's range for outgoing connections, so that no client socket takes it meanwhile.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        if _can_bind(host, port):
            return port
    raise RuntimeError(f"no free TCP port on {host} between 20000 and 32000: end what listens there")


def free_addresses(count: int, port: int) -> list[str]:
    """`count` loopback addresses (127.18.0.0/16) on which `port` is free now: one a pod, all on the pods' real port.

    Raises RuntimeError where something listens on that port on every address.
    """
    found: list[str] = []
    for number in random.SystemRandom().sample(range(0x0100, 0xFF00), 40 + count):
        address = f"127.18.{number >> 8}.{(number & 0xFF) or 1}"
        if address not in found and _can_bind(address, port):
            found.append(address)
        if len(found) == count:
            return found
    raise RuntimeError(
        f"port {port} is taken on the addresses of 127.18.0.0/16: end the process that listens on "
        f"0.0.0.0:{port} (ss -ltnp 'sport = :{port}'), or give the pods another port"
    )


def answers(url: str, timeout: float = 1.0) -> bool:
    """Whether a GET of a loopback URL answers 200 within `timeout` seconds. Proxy settings are not used."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _is_ready(ready: Callable[[], bool] | str) -> bool:
    if isinstance(ready, str):
        return answers(ready)
    try:
        return bool(ready())
    except OSError:
        return False


def _can_bind(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def _raise_for(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _require_main_thread(what: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"{what} works in the main thread only: signals are handled there, and children started by "
            "another thread end with that thread"
        )


def _at(ready: Ready) -> str:
    return f" ({ready})" if isinstance(ready, str) else ""


def _report(process: Process, what: str) -> str:
    tail = process.log_tail() or "(empty)"
    head = f"{process.name} (pid {process.pid}) {what}"
    return f"{head}\n  command: {' '.join(process.argv)}\n  end of {process.log_path}:\n{tail}"
