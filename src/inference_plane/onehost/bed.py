"""A test bed: the rendered router between replayed engines and the Bedrock stand-in, all on loopback.

The catalogue is an ordinary values file. Every fleet, a model's own and its canary's, gets as many engines as its
`replicas.min`; an engine is a pod of the fleet's headless Service, at an address of its own and on the port that the
chart says.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT

from .bedrock import Bedrock, BedrockBehaviour, CredentialEndpoint
from .budgets import NAME as RATELIMIT
from .budgets import RateLimit, Store, TlsFront, has_budgets
from .dns import DnsServer
from .issuer import Authority
from .kubernetes import KubeStandIn
from .policy import NAME as POLICY
from .policy import Policy
from .processes import Processes, free_addresses
from .replay import ReplayEngine
from .router import Router, fallback_models, local_values
from .secrets import mount
from .serving import App, ServerThread, load_middleware

MIDDLEWARE = CHARTS / "vllm" / "files" / "plane_middleware.py"
CERTIFICATE = CHARTS / "vllm" / "files" / "certificate.py"
CAPTURES = ROOT / "tests" / "data" / "vllm-0.32"
ENGINE_PORT = 8000


class Bed(contextlib.ExitStack):
    """A context manager that starts everything and ends everything.

    `values` is the catalogue and what else the chart takes; `engine` are arguments of every ReplayEngine. `apps[model]`
    is an ASGI application that serves a model in place of a replayed engine; `names` are further names that DNS knows,
    with their addresses. Where a team has a token budget, `ratelimit` counts it in `store`. With `tls` that authority
    vouches for the router and for each fleet, and `secret` gives one of them another certificate. `policies` is how many
    replicas of the policy service run; engines then need a `metrics_port`, 8001 as the chart has it. While it runs,
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
        tls: Authority | None = None,
        policies: int = 0,
        **engine: Any,
    ) -> None:
        super().__init__()
        self.folder, self.files, self.namespace = folder, list(files), namespace
        self.values = dict(values or {})
        self.apps = dict(apps or {})
        self.names = dict(names or {})
        self.tls = tls
        self._replicas = policies
        self.policies: list[Policy] = []
        if tls:
            self.values["global"] = {**self.values["global"], "tls": {"mode": "secrets"}}
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
        for fleet, model, version, count in _fleets(self.values["global"]["models"]):
            tls = self._certificate(fleet) if self.tls else {}
            self.engines[fleet] = [
                stack.enter_context(self._engine(model, version, address, tls))
                for address in free_addresses(count, ENGINE_PORT)
            ]
            self.scale(fleet, count)
        self.render = self.rendered(self.values)
        if has_budgets(self.render):
            self.store = Store(self.processes, self.folder)
            port, secret = self.store.port, None
            if self.tls:
                front = TlsFront(self.folder / "secrets" / "store", port, self.tls.secret("localhost"))
                self.front = stack.enter_context(front)
                port, secret = self.front.port, self.tls.secret(self.host(RATELIMIT))
            self.ratelimit = RateLimit(self.processes, self.render, self.folder, port, secret)
            self.dns.set(self.host(RATELIMIT), [self.ratelimit.host])
        if self._replicas:
            kubernetes = stack.enter_context(KubeStandIn())
            secret = self.tls.secret(self.host(POLICY)) if self.tls else None
            self.policies = [
                Policy(self.processes, self.render, self.folder, kubernetes, f"{POLICY}-{number}", secret)
                for number in range(self._replicas)
            ]
            self.dns.set(self.host(POLICY), [policy.host for policy in self.policies])
            self.policies[0].lists({fleet: [e.host for e in engines] for fleet, engines in self.engines.items()})
        self.router = self._router(self.processes, self.render, self.folder)
        self.url = self.router.url
        self.wait_for_engines()

    def replace_router(self) -> Router:
        """Ends the router, unless it has ended, and starts another on the same files and ports. Returns the old one.

        The new one's log is another file, beside the old one's. Raises as `Router` and `wait_for_engines`.
        """
        old = self.router
        self.processes.stop(old.process)
        folder = self.folder / f"router-after-{old.process.pid}"
        self.router = self._router(self.processes, self.render, folder)
        self.wait_for_engines()
        return old

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

    @contextlib.contextmanager
    def another_router(
        self, folder: Path, log_path: Path | None = None, volumes: Mapping[str, Mapping[str, str]] | None = None
    ) -> Iterator[Router]:
        """One more pod of the Deployment, on ports of its own, before the same engines; it may end before the bed.

        `log_path`: as of `Router`; `volumes`: its Secrets, where they are not those of the bed.
        """
        local = local_values(dns_port=self.dns.port, bedrock_port=self._bedrock_port)
        with Processes() as processes:
            yield self._router(processes, self.rendered(self.values, local), folder, log_path, volumes)

    def host(self, service: str) -> str:
        """The name of a Service, `router` or a fleet."""
        return f"{service}.{self.namespace}.svc.cluster.local"

    def secret(self, service: str, data: Mapping[str, str]) -> None:
        """Gives a Service's pods another Secret, as the kubelet puts it there. `ca.crt` counts for the router alone."""
        pair = {name: data[name] for name in ("tls.crt", "tls.key")}
        if service != "router":
            return mount(self.folder / "secrets" / service, pair)
        mount(self.folder / "certificate", pair)
        mount(self.folder / "ca", {"ca.crt": data["ca.crt"]})

    def rendered(self, values: Mapping[str, Any], local: Mapping[str, Any] | None = None) -> helm.Render:
        """The router's chart with these values, on this bed."""
        own = {
            key: {**values.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in (local or self.local).items()
        }
        return helm.template("router", files=self.files, values={**values, **own}, namespace=self.namespace)

    def scale(self, fleet: str, replicas: int) -> None:
        """DNS lists the first so many of a fleet's engines as ready."""
        self.dns.set(self.host(fleet), [engine.host for engine in self.engines[fleet][:replicas]])

    def _router(
        self,
        processes: Processes,
        render: helm.Render,
        folder: Path,
        log_path: Path | None = None,
        volumes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Router:
        if self.tls and volumes is None:
            secret = self.tls.secret(self.host("router"))
            volumes = {
                "certificate": {name: secret[name] for name in ("tls.crt", "tls.key")},
                "ca": {"ca.crt": secret["ca.crt"]},
            }
        return Router(processes, render, folder, self._credentials.env, log_path, volumes)

    def _certificate(self, fleet: str) -> dict[str, Any]:
        """The TLS of a fleet's engines: files that the sidecar of their pods keeps up with the Secret."""
        target = self.folder / "tls" / fleet
        target.mkdir(parents=True)
        self.secret(fleet, self.tls.secret(self.host(fleet)))
        self.processes.start(
            f"certificate-{fleet}",
            [sys.executable, str(CERTIFICATE), f"--source={self.folder / 'secrets' / fleet}", f"--target={target}",
             "--seconds=0.1"],
            env={},
            log_path=self.folder / f"certificate-{fleet}.log",
            ready=lambda: (target / "tls.key").exists() and (target / "tls.key").stat().st_size > 0,
        )
        return {"certfile": str(target / "tls.crt"), "keyfile": str(target / "tls.key"), "refresh": True}

    def _engine(self, model: str, version: str, address: str, tls: Mapping[str, Any]) -> ReplayEngine | ServerThread:
        if model in self.apps:
            app = load_middleware(MIDDLEWARE, self.apps[model], report=lambda line: None)
            return ServerThread(app, address, ENGINE_PORT, **tls)
        return ReplayEngine(
            CAPTURES,
            host=address,
            port=ENGINE_PORT,
            served_model_name=model,
            middleware=MIDDLEWARE,
            version=version,
            **self.engine,
            **tls,
        )


def _fleets(models: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """Name, model, version and engines of each fleet of a catalogue; one that may sleep is awake, with one engine."""
    for model, entry in models.items():
        yield model, model, _version(entry), max(1, (entry.get("replicas") or {}).get("min", 1))
        if canary := entry.get("canary"):
            version = _version({**entry, **canary})
            yield f"{model}-canary", model, version, (canary.get("replicas") or {}).get("min", 1)


def _version(entry: Mapping[str, Any]) -> str:
    """As the charts name the weights: the last part of their source's prefix."""
    return entry["source"].rstrip("/").rsplit("/", 1)[-1]
