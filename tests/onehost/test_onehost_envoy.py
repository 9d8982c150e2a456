"""The real Envoy with the stand-ins: names become endpoints, and its signature passes botocore's check."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference_plane.onehost.bedrock import PATH, Bedrock, CredentialEndpoint
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.processes import Process, Processes, free_port
from inference_plane.onehost.serving import ServerThread

TYPES = "type.googleapis.com/envoy.extensions."
NAME = "clinical-summary.models.svc.cluster.local"
MODEL = "openai.gpt-oss-120b-1:0"


@pytest.fixture
def processes() -> Any:
    with Processes() as running:
        yield running


def _typed(name: str, kind: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": TYPES + kind, **config}}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _endpoints(name: str, host: str, port: int) -> dict[str, Any]:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, port)}}]}]}


def _start(
    processes: Processes, folder: Path, resources: dict[str, Any], env: dict[str, str] | None = None
) -> tuple[Process, int]:
    admin = free_port()
    config = folder / "envoy.json"
    config.write_text(json.dumps({"admin": {"address": _address("127.0.0.1", admin)}, "static_resources": resources}))
    envoy = processes.start(
        "envoy",
        ["envoy", "-c", config, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"],
        {**os.environ, **(env or {})},
        folder / "envoy.log",
        f"http://127.0.0.1:{admin}/ready",
    )
    return envoy, admin


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def _hosts(admin: int) -> set[str]:
    (cluster,) = _get(f"http://127.0.0.1:{admin}/clusters?format=json")["cluster_statuses"]
    return {host["address"]["socket_address"]["address"] for host in cluster.get("host_statuses", [])}


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"hang: {what}"
        time.sleep(0.05)


def test_envoy_follows_the_names(processes: Processes, tmp_path: Path) -> None:
    with DnsServer({NAME: ["127.18.0.11"]}) as dns:
        resolver = _typed(
            "envoy.network.dns_resolver.cares",
            "network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            resolvers=[_address("127.0.0.1", dns.port)],
            dns_resolver_options={"no_default_search_domain": True},
        )
        cluster_type = _typed(
            "envoy.clusters.dns",
            "clusters.dns.v3.DnsCluster",
            dns_refresh_rate="0.2s",
            dns_lookup_family="V4_ONLY",
            all_addresses_in_single_endpoint=False,
            typed_dns_resolver_config=resolver,
        )
        _, admin = _start(
            processes,
            tmp_path,
            {
                "clusters": [
                    {"name": "fleet", "cluster_type": cluster_type, "load_assignment": _endpoints("fleet", NAME, 8000)}
                ]
            },
        )
        for addresses in ({"127.18.0.11"}, {"127.18.0.11", "127.18.0.12"}, {"127.18.0.12"}, set(), {"127.18.0.13"}):
            dns.set(NAME, addresses)
            _wait(lambda wanted=addresses: _hosts(admin) == wanted, f"Envoy never had {addresses}")
        assert set(dns.queries) == {(NAME, "A")}
    # The server is gone now. Envoy keeps what it last knew, and picks the names up again where the server comes back.
    asked = _get(f"http://127.0.0.1:{admin}/stats?filter=cluster.fleet.update_failure&format=json")["stats"][0]["value"]
    _wait(
        lambda: (
            _get(f"http://127.0.0.1:{admin}/stats?filter=cluster.fleet.update_failure&format=json")["stats"][0]["value"]
            > asked + 1
        ),
        "Envoy never asked the dead server",
    )
    assert _hosts(admin) == {"127.18.0.13"}
    with DnsServer({NAME: ["127.18.0.14"]}, port=dns.port):
        _wait(lambda: _hosts(admin) == {"127.18.0.14"}, "Envoy never came back")


def test_envoys_signature_with_container_credentials_verifies(processes: Processes, tmp_path: Path) -> None:
    bedrock, listener = Bedrock(frozenset({MODEL})), free_port()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    with ServerThread(bedrock) as server, CredentialEndpoint(tmp_path / "token") as credentials:
        signing = _typed(
            "envoy.filters.http.aws_request_signing",
            "filters.http.aws_request_signing.v3.AwsRequestSigning",
            service_name="bedrock",
            region="eu-central-1",
            signing_algorithm="AWS_SIGV4",
            match_excluded_headers=[{"prefix": "x-envoy-"}, {"prefix": "x-forwarded-"}, {"exact": "x-request-id"}],
            credential_provider={"custom_credential_provider_chain": True, "container_credential_provider": {}},
        )
        upstream = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPES + "upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {}},
                "http_filters": [
                    signing,
                    _typed("envoy.filters.http.upstream_codec", "filters.http.upstream_codec.v3.UpstreamCodec"),
                ],
            }
        }
        manager = _typed(
            "envoy.filters.network.http_connection_manager",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="in",
            route_config={
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"prefix": "/"},
                                "route": {
                                    "cluster": "bedrock",
                                    "host_rewrite_literal": "bedrock-runtime.eu-central-1.amazonaws.com",
                                },
                            }
                        ],
                    }
                ]
            },
            http_filters=[_typed("envoy.filters.http.router", "filters.http.router.v3.Router")],
        )
        _start(
            processes,
            tmp_path,
            {
                "listeners": [
                    {
                        "name": "in",
                        "address": _address("127.0.0.1", listener),
                        "filter_chains": [{"filters": [manager]}],
                    }
                ],
                "clusters": [
                    {
                        "name": "bedrock",
                        "type": "STATIC",
                        "typed_extension_protocol_options": upstream,
                        "load_assignment": _endpoints("bedrock", "127.0.0.1", server.port),
                    }
                ],
            },
            credentials.env,
        )

        def post() -> dict[str, Any]:
            request = urllib.request.Request(
                f"http://127.0.0.1:{listener}{PATH}", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            try:
                return _get(request)
            except urllib.error.HTTPError as error:
                pytest.fail(f"{error.code}: {error.read().decode()}")

        replies = [post() for _ in range(3)]
        assert {reply["model"] for reply in replies} == {MODEL}
        assert [call.status for call in bedrock.calls] == [200] * 3
        assert (credentials.served, credentials.refused) == (1, 0)
        assert bedrock.calls[0].headers["x-amz-security-token"]
