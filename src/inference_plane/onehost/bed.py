"""A test bed: the rendered router between replayed engines and the Bedrock stand-in, all on loopback.

The catalogue is an ordinary values file. Every fleet, a model's own and its canary's, gets as many engines as its
`replicas.min`; an engine is a pod of the fleet's headless Service, at an address of its own and on the port that the
chart says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT

from .bedrock import Bedrock, BedrockBehaviour, CredentialEndpoint
from .budgets import NAME as RATELIMIT
from .budgets import RateLimit, Store, has_budgets
from .dns import DnsServer
from .processes import Processes, free_addresses
from .replay import ReplayEngine
from .router import Router, fallback_models, local_values
from .serving import App, ServerThread, load_middleware

MIDDLEWARE = CHARTS / "vllm" / "files" / "plane_middleware.py"
CAPTURES = ROOT / "tests" / "data" / "vllm-0.32"
ENGINE_PORT = 8000


class Bed(contextlib.ExitStack):
    """A context manager that starts everything and ends everything.

    `values` is the catalogue and what else the chart takes; `engine` are arguments of every ReplayEngine. `apps[model]`
    is an ASGI application that serves a model in place of a replayed engine; `names` are further names that DNS knows,
    with their addresses. Where a team has a token budget, `ratelimit` counts it in `store`. While it runs,
    `engines[fleet]` are the pods; `scale` changes which of them DNS lists; `render` is what Envoy runs on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        files: Sequence[str | Path] = (),
        values: Mapping[str, Any] | None = None,
        namespace: str = "inference",
        apps: Mapping[str, App] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        **engine: Any,
    ) -> None:
        super().__init__()
        self.folder, self.files, self.namespace = folder, list(files), namespace
        self.values = dict(values or {})
        self.apps = dict(apps or {})
        self.names = dict(names or {})
        self.engine = {"max_num_seqs": 64, "max_num_queued_reqs": 0, **engine}
        self.engines: dict[str, list[ReplayEngine | ServerThread]] = {}

    def __enter__(self) -> Bed:
        super().__enter__()
        with contextlib.ExitStack() as started:
            self._start(started)
            self.push(started.pop_all())
        return self

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.dns = stack.enter_context(DnsServer())
        for name, addresses in self.names.items():
            self.dns.set(name, addresses)
        self.processes = stack.enter_context(Processes())
        self.bedrock = Bedrock(models=fallback_models(self.values), region=self.values["global"]["aws"]["region"])
        bedrock = stack.enter_context(ServerThread(self.bedrock))
        self._bedrock_port = bedrock.port
        self._credentials = stack.enter_context(CredentialEndpoint(self.folder / "token"))
        self.local = local_values(dns_port=self.dns.port, bedrock_port=bedrock.port)
        for fleet, model, count in _fleets(self.values["global"]["models"]):
            self.engines[fleet] = [
                stack.enter_context(self._engine(model, address)) for address in free_addresses(count, ENGINE_PORT)
            ]
            self.scale(fleet, count)
        self.render = self.rendered(self.values)
        if has_budgets(self.render):
            self.store = Store(self.processes, self.folder)
            self.ratelimit = RateLimit(self.processes, self.render, self.folder, self.store)
            self.dns.set(f"{RATELIMIT}.{self.namespace}.svc.cluster.local", [self.ratelimit.host])
        self.router = Router(self.processes, self.render, self.folder, self._credentials.env)
        self.url = self.router.url
        self.wait_for_engines()

    def reset(self) -> None:
        """Every engine and Amazon Bedrock behave well and have forgotten their requests; all pods are listed, healthy.

        Engines that a test stopped it must have started again. Raises TimeoutError as `wait_for_engines`.
        """
        for name, engines in self.engines.items():
            for engine in engines:
                if isinstance(engine, ReplayEngine):
                    engine.reset()
            self.scale(name, len(engines))
        self.bedrock.calls.clear()
        self.bedrock.behaviour.update(vars(BedrockBehaviour()))
        self.wait_for_engines()

    def wait_for_engines(self, wanted: Mapping[str, int] | None = None, timeout: float = 20.0) -> None:
        """`Router.wait_for_engines`; None is every engine of every fleet."""
        if wanted is None:
            wanted = {name: len(engines) for name, engines in self.engines.items()}
        self.router.wait_for_engines(wanted, timeout)

    def another_router(self, folder: Path) -> Router:
        """One more pod of the Deployment, on ports of its own, before the same engines."""
        local = local_values(dns_port=self.dns.port, bedrock_port=self._bedrock_port)
        return Router(self.processes, self.rendered(self.values, local), folder, self._credentials.env)

    def rendered(self, values: Mapping[str, Any], local: Mapping[str, Any] | None = None) -> helm.Render:
        """The router's chart with these values, on this bed."""
        own = {
            key: {**values.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in (local or self.local).items()
        }
        return helm.template("router", files=self.files, values={**values, **own}, namespace=self.namespace)

    def scale(self, fleet: str, replicas: int) -> None:
        """DNS lists the first so many of a fleet's engines as ready."""
        addresses = [engine.host for engine in self.engines[fleet][:replicas]]
        self.dns.set(f"{fleet}.{self.namespace}.svc.cluster.local", addresses)

    def _engine(self, model: str, address: str) -> ReplayEngine | ServerThread:
        if model in self.apps:
            return ServerThread(load_middleware(MIDDLEWARE, self.apps[model]), address, ENGINE_PORT)
        return ReplayEngine(
            CAPTURES, host=address, port=ENGINE_PORT, served_model_name=model, middleware=MIDDLEWARE, **self.engine
        )


def _fleets(models: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Name, model and engines of each fleet of a catalogue."""
    for model, entry in models.items():
        yield model, model, (entry.get("replicas") or {}).get("min", 1)
        if canary := entry.get("canary"):
            yield f"{model}-canary", model, (canary.get("replicas") or {}).get("min", 1)
