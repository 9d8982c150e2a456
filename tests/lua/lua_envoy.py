"""A small real Envoy around the two filters: listener -> route.lua -> fleet or Bedrock cluster on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from lua_harness import source

T = "type.googleapis.com/envoy.extensions"
LIMIT = 16 * 1024 * 1024


@dataclass
class Upstream:
    """A recording HTTP server; `reply` is sent to every request."""

    name: str
    port: int = 0
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200
    content_type: str = "application/json"
    reply: bytes = b"{}"
    reply_headers: dict[str, str] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            body = await request.read()
        except ConnectionResetError:
            body = b"(cut off)"
        self.seen.append((request.path_qs, headers, body))
        return web.Response(
            status=self.status, body=self.reply, headers={"content-type": self.content_type, **self.reply_headers}
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def endpoint(port: int) -> dict:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


def lua(path: Path) -> dict:
    return {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": f"{T}.filters.http.lua.v3.Lua",
            "default_source_code": {"filename": str(path)},
            "clear_route_cache": False,
        },
    }


# Upstream filters change the one header map of a request, so an access log does not find the headers that bedrock.lua
# removed in %REQ()%; metadata written before the router stays.
AUDIT_METADATA = {
    "name": "envoy.filters.http.header_to_metadata",
    "typed_config": {
        "@type": f"{T}.filters.http.header_to_metadata.v3.Config",
        "request_rules": [
            {"header": name, "on_header_present": {"metadata_namespace": "plane", "key": name}}
            for name in ("x-request-id", "x-plane-model")
        ],
    },
}


def header(key: str, value: str) -> dict:
    return {"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}


def upstream_filters(folder: Path) -> list[dict]:
    """The filter chain of a Bedrock cluster."""
    return [
        {
            "name": "envoy.filters.http.header_mutation",
            "typed_config": {
                "@type": f"{T}.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {
                    "request_mutations": [
                        header("x-plane-authority", "bedrock-runtime.eu-central-1.amazonaws.com"),
                        header("x-plane-target", "openai.gpt-oss-120b-1:0"),
                        header("x-plane-target-keys", "seed"),
                    ]
                },
            },
        },
        lua(folder / "bedrock.lua"),
        {
            "name": "envoy.filters.http.aws_request_signing",
            "typed_config": {
                "@type": f"{T}.filters.http.aws_request_signing.v3.AwsRequestSigning",
                "service_name": "bedrock",
                "region": "eu-central-1",
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {"@type": f"{T}.filters.http.upstream_codec.v3.UpstreamCodec"},
        },
    ]


def cluster(name: str, port: int, filters: list[dict] | None = None, limit: int | None = LIMIT) -> dict:
    value: dict = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint(port)]}]},
    }
    if limit:
        value["per_connection_buffer_limit_bytes"] = limit
    if filters:
        value["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{T}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "http_filters": filters,
            }
        }
    return value


def groups(order: list[str]) -> dict:
    return {
        "extension": {
            "name": "envoy.router.cluster_specifier_plugin.priority_group",
            "typed_config": {
                "@type": f"{T}.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
                "priority_groups": [{"name": n, "clusters": [{"cluster_name": n, "weight": 1}]} for n in order],
            },
        }
    }


RETRY = {
    "retry_on": "5xx,reset,connect-failure,retriable-status-codes",
    "retriable_status_codes": [429],
    "num_retries": 1,
    "refresh_cluster_on_retry": True,
}


def has(name: str, value: str | None = None) -> dict:
    return {"name": name, **({"string_match": {"exact": value}} if value else {"present_match": True})}


def routes() -> list[dict]:
    """Model `only-bedrock` goes to Bedrock at once, any other to the fleet and on a retry to Bedrock."""
    return [
        {
            "match": {"prefix": "/", "headers": [has("x-plane-refused")]},
            "direct_response": {
                "status": 400,
                "body_format": {"text_format_source": {"inline_string": "%REQ(x-plane-refused)%"}},
            },
        },
        {
            "match": {"prefix": "/v1/", "headers": [has("x-plane-model", "only-bedrock")]},
            "route": {"cluster": "bedrock", "timeout": "30s", "retry_policy": RETRY},
        },
        {
            "match": {"prefix": "/v1/", "headers": [has("x-plane-model")]},
            "route": {
                "inline_cluster_specifier_plugin": groups(["fleet", "bedrock"]),
                "timeout": "30s",
                "retry_policy": RETRY,
            },
        },
        {"match": {"prefix": "/"}, "direct_response": {"status": 404, "body": {"inline_string": "no model"}}},
    ]


def bootstrap(folder: Path, listen: int, fleet: int, bedrock: int, **change: object) -> dict:
    """An Envoy bootstrap. `change`: listener, route or cluster = its buffer limit in bytes, None for Envoy's default;
    filters = the Bedrock cluster's chain; routes = the route list; manager = fields of the connection manager."""
    listener_limit, route_limit, cluster_limit = (change.get(k, LIMIT) for k in ("listener", "route", "cluster"))
    manager = {
        "@type": f"{T}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        **change.get("manager", {}),
        "http_filters": [
            lua(folder / "route.lua"),
            AUDIT_METADATA,
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{T}.filters.http.router.v3.Router"},
            },
        ],
        "route_config": {
            "name": "plane",
            "virtual_hosts": [
                {
                    "name": "plane",
                    "domains": ["*"],
                    **({"request_body_buffer_limit": route_limit} if route_limit else {}),
                    "include_attempt_count_in_response": True,
                    "routes": change.get("routes") or routes(),
                }
            ],
        },
    }
    listener = {
        "name": "http",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": listen}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    if listener_limit:
        listener["per_connection_buffer_limit_bytes"] = listener_limit
    return {
        "node": {"id": "router", "cluster": "plane"},
        "static_resources": {
            "listeners": [listener],
            "clusters": [
                cluster("fleet", fleet, limit=cluster_limit),
                cluster("bedrock", bedrock, change.get("filters") or upstream_filters(folder), limit=cluster_limit),
            ],
        },
    }


def envoy_binary() -> str | None:
    """Envoy beside the running Python, or the one on PATH."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


@dataclass
class Plane:
    """A running Envoy and its two upstreams."""

    url: str
    fleet: Upstream
    bedrock: Upstream
    log: Path


@contextlib.asynccontextmanager
async def plane(folder: Path, **change: object) -> AsyncIterator[Plane]:
    """Starts both upstreams and Envoy on free loopback ports and ends them. `change`: as for bootstrap(), and
    route_after, bedrock_after = Lua appended to a filter, level = Envoy's log level.

    RuntimeError: Envoy did not start; with the end of its log."""
    for name in ("route", "bedrock"):
        (folder / f"{name}.lua").write_bytes(source(name) + change.get(f"{name}_after", b""))
    runners, upstreams = [], [Upstream("fleet"), Upstream("bedrock")]
    for upstream in upstreams:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", upstream.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.port = site._server.sockets[0].getsockname()[1]
        runners.append(runner)
    listen = free_port()
    config, log = folder / "envoy.json", folder / "envoy.log"
    config.write_text(json.dumps(bootstrap(folder, listen, upstreams[0].port, upstreams[1].port, **change)))
    env = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            envoy_binary(), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id",
            "-l", change.get("level", "warning"), stdout=sink, stderr=sink, env=env,
        )  # fmt: skip
    try:
        for _ in range(300):
            if process.returncode is not None:
                raise RuntimeError(f"Envoy ended with {process.returncode}: {log.read_text()[-3000:]}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", listen)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"Envoy does not listen after 15 s: {log.read_text()[-3000:]}")
        yield Plane(f"http://127.0.0.1:{listen}", *upstreams, log)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()
        for runner in runners:
            await runner.cleanup()
