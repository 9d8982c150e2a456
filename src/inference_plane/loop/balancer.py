"""A stand-in for the internal Application Load Balancer in front of the routers: an Envoy that is told what the
rendered Ingress says.

Of the Ingress it takes the health check, the algorithm, the idle timeout and the Service. Its targets are the ready
addresses of that Service, read again every few seconds, as the AWS Load Balancer Controller registers and deregisters
pods. A deregistered target gets no new request, and what runs there goes on. Nothing is sent a second time, and where
no target is healthy all of them are asked, as an ALB does.

Not as an ALB: one process instead of a node a zone, plain HTTP, no firewall, no certificates; what it refuses by itself
is 503. What runs on a deregistered target is not cut at the deregistration delay, since the router has cut it by then:
the chart refuses a delay above `router.drainSeconds`. A new target is asked once its first check has passed, which is
at once; an ALB takes some seconds, which readiness gates wait for.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_plane.cluster.client import Client, Object
from inference_plane.onehost.processes import Processes, free_port

from . import endpoints
from .repeated import repeated

#: Seconds between two looks at the targets. How long the controller and AWS take is not measured here: some seconds.
NOTICE_SECONDS = 5.0
ANNOTATION = "alb.ingress.kubernetes.io/"
ALGORITHMS = {
    "round_robin": {"lb_policy": "ROUND_ROBIN"},
    # The best of ten that are picked at random, of a few.
    "least_outstanding_requests": {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 10}},
}
_TYPE = "type.googleapis.com/envoy"
#: Requests and connections that it never refuses for their number.
_MANY = 1_000_000


class Balancer(contextlib.ExitStack):
    """A context manager. `url` is where clients call. Raises NotReady where Envoy does not start."""

    def __init__(self, processes: Processes, ingress: Object, client: Client, folder: Path) -> None:
        super().__init__()
        self._processes, self._ingress, self._client, self._folder = processes, ingress, client, folder / "balancer"
        self._told: list[tuple[str, int]] | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Balancer:
        super().__enter__()
        self._folder.mkdir()
        admin, file = free_port(), self._folder / "envoy.json"
        file.write_text(json.dumps(configuration(self._ingress, self.port, admin, str(self._targets_file))))
        self._follow()
        self._processes.start(
            "balancer",
            [shutil.which("envoy") or "envoy", "--config-path", file, "--concurrency", "1", "--disable-hot-restart",
             "--file-flush-interval-msec", "200", "--log-level", "warning"],
            log_path=self._folder / "envoy.log",
            output_path=self._folder / "access.jsonl",
            ready=f"http://127.0.0.1:{admin}/ready",
        )
        self.enter_context(repeated(NOTICE_SECONDS, self._follow))
        return self

    @property
    def _targets_file(self) -> Path:
        return self._folder / "targets.json"

    def _follow(self) -> None:
        """Registers and deregisters: the targets of the rendered Service, as the API server has them."""
        service = self._ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        slices = self._client.list(
            "discovery.k8s.io/v1", "EndpointSlice", self._ingress["metadata"]["namespace"],
            labelSelector=f"kubernetes.io/service-name={service['name']}")
        found = sorted({
            (address, port["port"])
            for each in slices for port in each["ports"] or () if port["name"] == service["port"]["name"]
            for address in endpoints.ready(each)
        })
        if found != self._told:
            check = int(annotation(self._ingress, "healthcheck-port"))
            draft = self._targets_file.with_name(".targets.json")
            draft.write_text(json.dumps(assignment(found, check)))
            draft.rename(self._targets_file)  # Envoy watches moves, not writes
            self._told = found


def annotation(ingress: Object, name: str) -> str:
    return ingress["metadata"]["annotations"][ANNOTATION + name]


def attributes(ingress: Object, of: str) -> dict[str, str]:
    """The attributes of the load balancer or of the target group."""
    return dict(pair.split("=", 1) for pair in annotation(ingress, f"{of}-attributes").split(","))


def assignment(targets: list[tuple[str, int]], check_port: int) -> dict[str, Any]:
    """Envoy's endpoints of the targets."""
    endpoints = [
        {"endpoint": {
            "address": {"socket_address": {"address": address, "port_value": port}},
            "health_check_config": {"port_value": check_port}}}
        for address, port in targets
    ]
    kind = f"{_TYPE}.config.endpoint.v3.ClusterLoadAssignment"
    return {"resources": [{"@type": kind, "cluster_name": "routers", "endpoints": [{"lb_endpoints": endpoints}]}]}


def configuration(ingress: Object, port: int, admin: int, targets_file: str) -> dict[str, Any]:
    """Envoy's bootstrap. Raises KeyError or ValueError for an Ingress that says what is not known here."""
    group = attributes(ingress, "target-group")
    idle = f"{attributes(ingress, 'load-balancer')['idle_timeout.timeout_seconds']}s"
    interval = f"{annotation(ingress, 'healthcheck-interval-seconds')}s"
    code = int(annotation(ingress, "success-codes"))
    options = f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster = {
        "name": "routers",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {
            "resource_api_version": "V3",
            "path_config_source": {
                "path": targets_file, "watched_directory": {"path": str(Path(targets_file).parent)}}}},
        **ALGORITHMS[group["load_balancing.algorithm.type"]],
        "connect_timeout": "10s",
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [
            {name: _MANY for name in ("max_connections", "max_pending_requests", "max_requests")}]},
        "health_checks": [{
            "timeout": f"{annotation(ingress, 'healthcheck-timeout-seconds')}s",
            "interval": interval,
            "no_traffic_interval": interval,
            "healthy_threshold": int(annotation(ingress, "healthy-threshold-count")),
            "unhealthy_threshold": int(annotation(ingress, "unhealthy-threshold-count")),
            "http_health_check": {
                "path": annotation(ingress, "healthcheck-path"),
                "expected_statuses": [{"start": code, "end": code + 1}]},
        }],
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options, "explicit_http_config": {"http_protocol_options": {}},
            "common_http_protocol_options": {"idle_timeout": idle}}},
    }
    listener = {
        "name": "clients",
        "address": _socket(port),
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": _manager(idle)}]}],
    }
    return {
        "node": {"id": "balancer", "cluster": "balancer"},
        "admin": {"address": _socket(admin)},
        "static_resources": {"clusters": [cluster], "listeners": [listener]},
    }


def _manager(idle: str) -> Mapping[str, Any]:
    line = {
        "at": "%START_TIME%", "status": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "ms": "%DURATION%",
        "details": "%RESPONSE_CODE_DETAILS%", "target": "%UPSTREAM_HOST%", "request_id": "%RESP(x-request-id)%",
    }
    return {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "use_remote_address": True,
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {"idle_timeout": idle},
        "stream_idle_timeout": idle,
        "access_log": [{
            "name": "envoy.access_loggers.stdout",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.access_loggers.stream.v3.StdoutAccessLog",
                "log_format": {"json_format": line}}}],
        "route_config": {"virtual_hosts": [{
            "name": "routers", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "routers", "timeout": "0s"}}]}]},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": True}}],
    }


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
