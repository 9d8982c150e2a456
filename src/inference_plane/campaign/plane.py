"""The rendered router between quick stand-ins, all on loopback: for campaigns of many requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from inference_plane import helm
from inference_plane.onehost.bedrock import CredentialEndpoint
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.processes import Processes, free_addresses
from inference_plane.onehost.router import Router, local_values

from .backends import BEDROCK_MODES, ENGINE_MODES, Backend
from .wire import Message

T = TypeVar("T")

ENGINE_PORT = 8000
NAMESPACE = "inference"
START = 30.0  # seconds


def _model(residency: str, target: str | None = None, replicas: int = 1, **more: Any) -> dict[str, Any]:
    fallback = {"fallback": {"model": target, "retention": "none"}} if target else {}
    base = {"source": "s3://models/m/v1/", "weightsGiB": 15.3, "accelerator": "l40s", "maxModelLen": 16384}
    return {**base, "residency": residency, "replicas": {"min": replicas}, **fallback, **more}


#: A model of each kind; those without a fallback have no way out, whatever their residency.
MODELS: dict[str, dict[str, Any]] = {
    "intake": _model("cluster", servedNames=["org/intake:7b"]),
    "records": _model("cluster", access={"teams": ["care"]}),
    "notes": _model("anywhere"),
    "summary": _model(
        "region",
        "openai.gpt-oss-120b-1:0",
        replicas=2,
        servedNames=["org/summary:8b", "summary-latest"],
        firstTokenBudget="1s",
    ),
    "appeal": _model("region", "openai.gpt-oss-20b-1:0", access={"teams": ["appeals", "care"]}),
    "letters": _model("geography", "eu.mistral.pixtral-large-2502-v1:0"),
    "triage": _model("anywhere", "global.openai.gpt-oss-20b-1:0", firstTokenBudget="1s"),
}

TEAMS = {"care": {"costCenter": "4710", "claim": "inference-care"}, "appeals": {"costCenter": "4711"}, "desk": {}}


def values(issuer: Issuer) -> dict[str, Any]:
    """What the chart `router` takes for MODELS and TEAMS, with tokens of this issuer."""
    return {
        "auth": issuer.values(claims={"team": ["groups"], "residency": ["residency"]}),
        "global": {
            "aws": {"region": "eu-central-1"},
            "tls": {"mode": "none"},
            "residency": {"geography": "eu"},
            "network": {"policies": False},
            "teams": TEAMS,
            "models": MODELS,
        },
        "health": {"interval": "200ms", "timeout": "500ms", "unhealthyThreshold": 2, "ejectionTime": "300ms"},
        "dns": {"refreshRate": "200ms"},
    }


class Plane(contextlib.ExitStack):
    """A context manager that starts everything and ends everything; to be entered in the main thread.

    `folder` has what the router reads and writes. `change` is made to what Helm rendered before the router starts.
    `at_engine` is told of each request at an engine, with the model whose engine it is, and `at_bedrock` of each there;
    both run in the loop of `run`. Raises on entry what Helm, Processes and sockets raise.
    """

    def __init__(
        self,
        folder: Path,
        *,
        at_engine: Callable[[str, Message], None],
        at_bedrock: Callable[[Message], None],
        change: Callable[[helm.Render], helm.Render] = lambda render: render,
    ) -> None:
        super().__init__()
        self.folder, self.change = folder, change
        self.issuer = Issuer()
        self.bedrock = Backend(BEDROCK_MODES, at_bedrock)
        self.engines = {
            model: [
                Backend(ENGINE_MODES, lambda message, model=model: at_engine(model, message))
                for _ in range(entry["replicas"]["min"])
            ]
            for model, entry in MODELS.items()
        }

    def __enter__(self) -> Plane:
        super().__enter__()
        with contextlib.ExitStack() as started:
            self._start(started)
            self.push(started.pop_all())
        return self

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """What `work` returns, run in the loop that the stand-ins live in."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def scale(self, model: str, replicas: int) -> None:
        """DNS lists the first so many of a model's engines as ready."""
        addresses = [engine.host for engine in self.engines[model][:replicas]]
        self.dns.set(f"{model}.{NAMESPACE}.svc.cluster.local", addresses)

    async def heal(self) -> None:
        """All stand-ins listen, are listed and well; Envoy hears of it within its health interval."""
        self.bedrock.mode = "well"
        await self.bedrock.back()
        for model, engines in self.engines.items():
            for engine in engines:
                engine.mode = "well"
                await engine.back()
            self.scale(model, len(engines))

    def wait_for_engines(self) -> None:
        """Returns once Envoy finds every engine healthy. Raises TimeoutError."""
        self.router.wait_for_engines({model: len(engines) for model, engines in self.engines.items()}, START)

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.dns = stack.enter_context(DnsServer())
        self.processes = stack.enter_context(Processes())
        self._loop = uvloop.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="campaign", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(lambda: self._loop.call_soon_threadsafe(self._loop.stop))
        self.run(self.bedrock.listen("127.0.0.1"), START)
        for model, engines in self.engines.items():
            for engine, address in zip(engines, free_addresses(len(engines), ENGINE_PORT), strict=True):
                self.run(engine.listen(address, ENGINE_PORT), START)
            self.scale(model, len(engines))
        credentials = stack.enter_context(CredentialEndpoint(self.folder / "token"))
        local = local_values(dns_port=self.dns.port, bedrock_port=self.bedrock.port)
        given = values(self.issuer)
        merged = {**given, **{k: {**given.get(k, {}), **v} if isinstance(v, dict) else v for k, v in local.items()}}
        self.render = self.change(helm.template("router", values=merged, namespace=NAMESPACE))
        self.router = Router(self.processes, self.render, self.folder, credentials.env)
        self.port = int(self.router.url.rsplit(":", 1)[1])
        self.wait_for_engines()
