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
    """What the routers tell, of which `replicas` are wanted. `folder` is that in which the kubelet keeps them."""

    def __init__(self, client: Client, processes: Processes, namespace: str, folder: Path, replicas: int) -> None:
        self._client, self._processes, self._namespace = client, processes, namespace
        self._folder, self._replicas = folder / FOLDER, replicas

    def pods(self) -> list[Object]:
        """Those that there are, also those that leave."""
        return self._client.list("v1", "Pod", self._namespace, labelSelector=SELECTOR)

    def audit(self, kind: str = "end") -> list[dict[str, Any]]:
        """The audit lines of a type, of every router that there was."""
        return [line for folder in sorted(self._folder.iterdir()) for line in Witness(folder).audit(kind)]

    def wait_for_engines(self, wanted: Mapping[str, int], timeout: float) -> None:
        """Returns once all routers are ready, and each finds so many engines of each fleet healthy.

        Raises TimeoutError after `timeout` seconds, and NotReady where a process ended meanwhile.
        """
        self._wait(f"healthy engines {dict(wanted)}", timeout, lambda each: each.engines_seen(wanted), wanted)

    def wait_for_shares(self, wanted: Mapping[str, str], timeout: float) -> None:
        """Returns once all routers are ready, and each has these shares. Raises as `wait_for_engines`."""
        self._wait(
            f"shares {dict(wanted)}", timeout,
            lambda each: {key: each.runtime("fallback.").get(key) for key in wanted}, wanted)

    def found(self, models: Collection[str]) -> dict[str, int]:
        """How many engines of each model every router finds healthy. Raises OSError where one has just left."""
        said = self._ask(lambda each: each.engines_seen(models)).values()
        return {name: max(0, min((each[name] for each in said), default=0)) for name in models}

    def _wait(self, what: str, timeout: float, ask: Callable[[Witness], Any], wanted: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self._processes.check()
            try:
                said: Any = self._ask(ask)
                if len(said) == self._replicas and all(each == wanted for each in said.values()):
                    return
            except OSError as error:  # one left while it was asked
                said = error
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {self._replicas} routers with {what}; they say {said}")
            time.sleep(_POLL_SECONDS)

    def _ask(self, ask: Callable[[Witness], Any]) -> dict[str, Any]:
        """What every ready router says, by its pod's name."""
        names = [pod["metadata"]["name"] for pod in self.pods() if ready(pod)]
        return {name: ask(Witness(self._folder / name)) for name in names}
