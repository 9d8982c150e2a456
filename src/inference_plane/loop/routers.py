"""All routers of the elastic plane at once, those that have left among them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from inference_plane.cluster.client import Client, Object
from inference_plane.cluster.diagnose import ready
from inference_plane.onehost.processes import Processes
from inference_plane.onehost.router import Witness

from .router_pods import FOLDER, SELECTOR

_POLL_SECONDS = 0.5


class Routers:
    """What the routers tell. `folder` is that in which the kubelet keeps them."""

    def __init__(self, client: Client, processes: Processes, namespace: str, folder: Path) -> None:
        self._client, self._processes, self._namespace = client, processes, namespace
        self._folder = folder / FOLDER

    def pods(self) -> list[Object]:
        """Those that there are, also those that leave."""
        return self._client.list("v1", "Pod", self._namespace, labelSelector=SELECTOR)

    def audit(self, kind: str = "end") -> list[dict[str, Any]]:
        """The audit lines of a type, of every router that there was."""
        return [line for folder in sorted(self._folder.iterdir()) for line in Witness(folder).audit(kind)]

    def wait_for_engines(self, wanted: Mapping[str, int], replicas: int, timeout: float) -> None:
        """Returns once so many routers are ready, and each finds so many engines of each fleet healthy.

        Raises TimeoutError after `timeout` seconds, and NotReady where a process ended meanwhile.
        """
        self._wait(
            f"{replicas} routers, each with healthy engines {dict(wanted)}", timeout,
            lambda each: each.engines_seen(wanted),
            lambda seen: len(seen) == replicas and all(each == wanted for each in seen))

    def wait_for_fleets(self, models: Collection[str], timeout: float) -> None:
        """Returns once of these models no share falls back at any router. Raises as `wait_for_engines`."""
        ended = {f"fallback.{name}": "0" for name in models}
        self._wait(
            f"no share of {', '.join(models)} that falls back at any router", timeout,
            lambda each: each.runtime("fallback."),
            lambda seen: all(ended.items() <= shares.items() for shares in seen))

    def found(self, models: Collection[str]) -> dict[str, int]:
        """How many engines of each model every router finds healthy. Raises OSError where one has just left."""
        names = [pod["metadata"]["name"] for pod in self.pods() if ready(pod)]
        seen = [Witness(self._folder / name).engines_seen(models) for name in names]
        return {name: max(0, min((each[name] for each in seen), default=0)) for name in models}

    def _wait(
        self, what: str, timeout: float, ask: Callable[[Witness], Any], good: Callable[[list[Any]], bool]
    ) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._processes.check()
            names = [pod["metadata"]["name"] for pod in self.pods() if ready(pod)]
            try:
                said: Any = {name: ask(Witness(self._folder / name)) for name in names}
                if said and good(list(said.values())):
                    return
            except OSError as error:  # one left while it was asked
                said = error
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}; routers say {said}")
            time.sleep(_POLL_SECONDS)
