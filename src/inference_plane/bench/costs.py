"""What the router could lack: changes to its rendered files, each of which takes one thing out.

For finding costs alone. A router without them does not do its work; what is taken out must not change the answer's
status, or the benchmark refuses it.
"""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference_plane import helm

_FILES = {"bootstrap": "router-bootstrap", "routes": "router-routes", "clusters": "router-clusters"}


@dataclass(frozen=True)
class Files:
    """What Envoy reads, as documents that may be changed in place."""

    bootstrap: dict[str, Any]
    routes: dict[str, Any]
    clusters: dict[str, Any]

    @property
    def manager(self) -> dict[str, Any]:
        """The HTTP connection manager of the listener for clients."""
        listeners = {listener["name"]: listener for listener in self.bootstrap["static_resources"]["listeners"]}
        return listeners["plane"]["filter_chains"][0]["filters"][0]["typed_config"]


Change = Callable[[Files], None]


def changed(render: helm.Render, change: Change) -> helm.Render:
    """The render with `change` made to what Envoy reads."""
    maps = {name: render.find("ConfigMap", name) for name in _FILES.values()}
    files = Files(**{file: json.loads(maps[name]["data"][f"{file}.json"]) for file, name in _FILES.items()})
    change(files)
    others = [o for o in render.objects if o not in maps.values()]
    for file, name in _FILES.items():
        data = maps[name]["data"] | {f"{file}.json": json.dumps(getattr(files, file))}
        maps[name] = maps[name] | {"data": data}
    return helm.Render("\n---\n".join(json.dumps(o) for o in [*others, *maps.values()]))


def _setting(*names: str) -> Change:
    def change(files: Files) -> None:
        for name in names:
            files.manager.pop(name, None)
    return change


def _filter(name: str) -> Change:
    def change(files: Files) -> None:
        files.manager["http_filters"] = [f for f in files.manager["http_filters"] if f["name"] != name]
    return change


def _loggers(name: str) -> Change:
    def change(files: Files) -> None:
        files.manager["access_log"] = [log for log in files.manager["access_log"] if log["name"] != name]
    return change


def _members(file: str, *names: str) -> Change:
    def change(files: Files) -> None:
        for name in names:
            _drop(getattr(files, file), name)
    return change


def _drop(node: Any, name: str) -> None:
    if isinstance(node, dict):
        node.pop(name, None)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _drop(child, name)


WITHOUT: dict[str, Change] = {
    "audit log": _loggers("envoy.access_loggers.stdout"),
    "usage counters": _loggers("envoy.access_loggers.stats"),
    "header_to_metadata": _filter("envoy.filters.http.header_to_metadata"),
    "sse_to_metadata": _filter("envoy.filters.http.sse_to_metadata"),
    "early header mutation": _setting("early_header_mutation_extensions"),
    "local reply config": _setting("local_reply_config"),
    "path rules": _setting("normalize_path", "merge_slashes", "path_with_escaped_slashes_action"),
    "remote address": _setting("use_remote_address", "xff_num_trusted_hops", "internal_address_config"),
    "timeouts": _setting("request_headers_timeout", "request_timeout", "common_http_protocol_options"),
    "response headers": _members("routes", "response_headers_to_add"),
    "retry policies": _members("routes", "retry_policy"),
    "attempt counts": _members("routes", "include_request_attempt_count", "include_attempt_count_in_response"),
    "health checks": _members("clusters", "health_checks"),
    "outlier detection": _members("clusters", "outlier_detection"),
    "circuit breakers": _members("clusters", "circuit_breakers"),
}
