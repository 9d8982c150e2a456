"""What the service answers: Envoy's runtime discovery, demand, metrics, health, and the state for the other replica."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

RUNTIME = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
#: The name of the rtds_layer in Envoy's bootstrap, which it asks for.
RESOURCE = "policy"
#: Envoy 1.40 tells of all its extensions in each request, which is 77 KB.
_REQUEST_BYTES = 1024 * 1024


class Answers(Protocol):
    """What the running service knows; None stands for "not known"."""

    def shares(self) -> Mapping[str, int] | None: ...
    def demand(self, model: str) -> float | None: ...
    def models(self) -> Mapping[str, Any]: ...
    def state(self) -> Mapping[str, Any] | None: ...
    def not_ready(self) -> str | None: ...
    def not_live(self) -> str | None: ...
    def metrics(self) -> bytes: ...


def discovery(shares: Mapping[str, int]) -> dict[str, Any]:
    """A DiscoveryResponse. The version follows from the content, so that replicas that agree say the same one."""
    layer = {f"fallback.{model}": share for model, share in sorted(shares.items())}
    version = hashlib.sha256(json.dumps(layer).encode()).hexdigest()[:16]
    resource = {"@type": RUNTIME, "name": RESOURCE, "layer": layer}
    return {"version_info": version, "type_url": RUNTIME, "resources": [resource]}


def application(answers: Answers) -> web.Application:
    """What routers and the other replica ask, and nobody else."""

    async def runtime(request: web.Request) -> web.Response:
        try:
            asked = json.loads(await request.read())
            names = asked.get("resource_names") or [RESOURCE]
            version = asked.get("version_info")
        except (ValueError, AttributeError):
            return web.Response(status=400, text="the body is no DiscoveryRequest in JSON\n")
        if names != [RESOURCE]:
            return web.Response(status=404, text=f"no resource {names}: the one here is {RESOURCE!r}\n")
        shares = answers.shares()
        if shares is None:
            # The routers keep what they have.
            return web.Response(status=503, text="no state yet\n")
        response = discovery(shares)
        if version == response["version_info"]:
            return web.Response(status=304)
        return web.json_response(response)

    async def state(_: web.Request) -> web.Response:
        value = answers.state()
        return web.Response(status=503, text="no state yet\n") if value is None else web.json_response(value)

    app = web.Application(client_max_size=_REQUEST_BYTES)
    app.add_routes([web.post("/v3/discovery:runtime", runtime), web.get("/v1/state", state)])
    return app


def status(answers: Answers) -> web.Application:
    """What the kubelet, Prometheus and autoscalers ask; nothing of it reaches a router."""

    async def demand(request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in answers.models():
            return web.Response(status=404, text=f"no model {model!r} in the configuration\n")
        value = answers.demand(model)
        if value is None:
            # An autoscaler must not take "unknown" for "none".
            return web.Response(status=503, text=f"the demand of {model!r} is not known now\n")
        return web.json_response({"model": model, "demand": round(value, 3)})

    async def metrics(_: web.Request) -> web.Response:
        content = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=answers.metrics(), headers=content)

    def health(reason: Any) -> Any:
        async def answer(_: web.Request) -> web.Response:
            why = reason()
            return web.Response(status=503 if why else 200, text=f"{why or 'ok'}\n")

        return answer

    app = web.Application()
    app.add_routes(
        [
            web.get("/demand/{model}", demand),
            web.get("/metrics", metrics),
            web.get("/ready", health(answers.not_ready)),
            web.get("/live", health(answers.not_live)),
        ]
    )
    return app
