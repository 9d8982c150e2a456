"""Who acts on the marks of a profile: the plane on this machine, or a command of the user's."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Sequence

from inference_plane.onehost.processes import Process

from .targets import Plane, TargetError

#: Seconds until a lost engine has left DNS. A cluster takes some 50 s, until its node counts as unreachable
#: (node-monitor-grace-period); Envoy's health checks do not wait for that. Shortened.
UNREACHABLE = 10.0
#: Seconds from a loss to a new engine's start, and from that until it listens. Both shortened: on EKS a node, the image
#: and the weights take minutes.
BOOT, LOAD = 20.0, 5.0


class PlaneDriver:
    """Acts on the plane's engines. Engines stand in two zones: the first half of each model's, rounded down, in one."""

    def __init__(self, plane: Plane, wait: Callable[[float], None] = time.sleep) -> None:
        self._plane, self._wait = plane, wait
        self._acts: dict[str, Callable[[], None]] = {
            "rollout": self._rollout,
            "spot-reclaim": self._reclaim,
            "zone-loss": self._lose_zone,
            "empty": self._empty,
            "back": self._back,
        }
        self.marks: Sequence[str] = tuple(self._acts)

    def act(self, mark: str) -> None:
        self._acts[mark]()

    def _rollout(self) -> None:
        """Every engine is replaced, one by one: the new one is listed before the old one leaves (maxSurge 1)."""
        for model, pods in self._plane.pods.items():
            for address in list(pods):
                self._start(model)
                self._leave(model, address)

    def _reclaim(self) -> None:
        """The first engine of the largest fleet has two minutes left: it drains at once, and another comes later."""
        model = max(self._plane.pods, key=lambda name: len(self._plane.pods[name]))
        self._leave(model, next(iter(self._plane.pods[model])))
        self._wait(BOOT)
        self._start(model, LOAD)

    def _lose_zone(self) -> None:
        """Half of the engines are gone without a word; others come later."""
        gone = [
            (model, address) for model, pods in self._plane.pods.items() for address in list(pods)[: len(pods) // 2]
        ]
        for model, address in gone:
            self._plane.pods[model][address].kill()
        self._wait(UNREACHABLE)
        for model, address in gone:
            del self._plane.pods[model][address]
        self._plane.list_pods()
        self._wait(max(0.0, BOOT - UNREACHABLE))
        for model, _ in gone:
            self._start(model, LOAD)

    def _empty(self) -> None:
        """No engine is left, and none was cut: fleets scaled to zero."""
        ended: dict[str, Process] = {}
        for pods in self._plane.pods.values():
            ended |= pods
            pods.clear()
        self._plane.list_pods()
        self._plane.drain(ended)

    def _back(self) -> None:
        """As many engines as the chart says start again."""
        for model, engine in self._plane.engines.items():
            for _ in range(engine.replicas):
                self._start(model, LOAD)

    def _start(self, model: str, load_seconds: float = 0.0) -> None:
        address, process = self._plane.start_engine(self._plane.engines[model], load_seconds)
        self._plane.pods[model][address] = process
        self._plane.list_pods()

    def _leave(self, model: str, address: str) -> None:
        process = self._plane.pods[model].pop(address)
        self._plane.list_pods()
        self._plane.drain({address: process})


class CommandDriver:
    """`COMMAND marks` prints the marks that it knows, one a line; `COMMAND act MARK` does it and ends.

    Raises TargetError where the command cannot be run or fails.
    """

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        self.marks: Sequence[str] = self._run("marks").split()

    def act(self, mark: str) -> None:
        self._run("act", mark)

    def _run(self, *words: str) -> str:
        line = shlex.join([*self._command, *words])
        try:
            done = subprocess.run([*self._command, *words], capture_output=True, text=True, check=False)
        except OSError as error:
            raise TargetError(
                f"--driver: {line} cannot be run: {error.strerror}. Set a command that this machine has"
            ) from None
        if done.returncode:
            raise TargetError(
                f"--driver: {line} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}. A "
                "driver prints "
                "what it knows for `marks`, and returns 0 for `act MARK` when that is done"
            )
        return done.stdout
