"""A stand-in for the Kubernetes API: exactly the routes that the policy service uses, in this process.

No API server: it knows no schemas, no RBAC and no watch. It keeps what tests rely on: label and field selectors,
resourceVersion conflicts, 404, 409, the Date header, and `continue`-less lists.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import email.utils
import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs

from .serving import ServerThread, read_body, send_json

_PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[a-z0-9.]+))/v1/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?$"
)
_KINDS = {
    ("discovery.k8s.io", "endpointslices"): {"list"},
    (None, "pods"): {"list"},
    ("coordination.k8s.io", "leases"): {"get", "create", "update"},
    ("events.k8s.io", "events"): {"create"},
}


class KubeStandIn:
    """A context manager. `fail` is a status to answer everything with, `hang` lets every request wait."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.asked: list[tuple[str, str, dict[str, list[str]]]] = []
        self.fail: int | None = None
        self.hang = False
        self.clock_offset = 0.0
        self._version = 0
        self._lock = threading.Lock()
        self._server = ServerThread(self._app, date_header=False)

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> KubeStandIn:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    # What tests put in.

    def slice(
        self, namespace: str, service: str, addresses: list[str], engine: bool = True, **conditions: bool
    ) -> None:
        """The EndpointSlice of a Service, replaced; its labels are the Service's, as the controller copies them."""
        labels = {"kubernetes.io/service-name": service, "app.kubernetes.io/name": service}
        labels["app.kubernetes.io/component"] = "engine" if engine else "router"
        endpoints = [{"addresses": [a], "conditions": {"ready": True, **conditions}} for a in addresses]
        value = {"metadata": {"name": f"{service}-x", "labels": labels}, "endpoints": endpoints or None}
        self._put("endpointslices", namespace, f"{service}-x", value)

    def pod(self, namespace: str, name: str, fleet: str, *, age: float = 0.0, **spec: Any) -> None:
        """A Pending pod of a fleet; `age` in seconds."""
        made = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age)
        labels = {"app.kubernetes.io/name": fleet, "app.kubernetes.io/component": spec.pop("component", "engine")}
        value = {
            "metadata": {
                "name": name,
                "labels": labels,
                "creationTimestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "spec": spec,
            "status": {"phase": "Pending"},
        }
        self._put("pods", namespace, name, value)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        with self._lock:
            del self.objects[kind, namespace, name]

    def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        with self._lock:
            return copy.deepcopy(self.objects.get(("leases", namespace, name)))

    def events(self) -> list[dict[str, Any]]:
        with self._lock:
            return [value for (kind, _, _), value in self.objects.items() if kind == "events"]

    def _put(self, kind: str, namespace: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._version += 1
            value = copy.deepcopy(value)
            value.setdefault("metadata", {})["resourceVersion"] = str(self._version)
            self.objects[kind, namespace, name] = value
            return value

    # What it answers.

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        query = parse_qs(scope["query_string"].decode())
        body = await read_body(receive)
        self.asked.append((scope["method"], scope["path"], query))
        if self.hang:
            await asyncio.sleep(3600)
        if self.fail:
            status, value = self.fail, {"kind": "Status", "message": "as the test wants"}
        else:
            status, value = self._answer(scope["method"], scope["path"], query, json.loads(body) if body else None)
        date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.clock_offset)
        await send_json(send, status, value, {"date": email.utils.format_datetime(date, usegmt=True)})

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        found = _PATH.match(path)
        verbs = _KINDS.get((found["group"], found["kind"])) if found else None
        if not found or verbs is None:
            return 404, {"message": f"this stand-in has no {path}"}
        kind, namespace, name = found["kind"], found["namespace"], found["name"]
        verb = {"GET": "get" if name else "list", "POST": "create", "PUT": "update"}.get(method)
        if verb not in verbs:
            return 403, {"message": f"no {verb} of {kind}"}
        if verb == "list":
            with self._lock:
                there = [v for (k, n, _), v in self.objects.items() if (k, n) == (kind, namespace)]
            return 200, {"kind": "List", "items": [value for value in there if _selected(value, query)]}
        if verb == "create":
            name = body["metadata"].get("name") or f"{body['metadata']['generateName']}{self._version}"
            if (kind, namespace, name) in self.objects:
                return 409, {"message": "exists"}
            return 201, self._put(kind, namespace, name, body)
        with self._lock:
            old = copy.deepcopy(self.objects.get((kind, namespace, name)))
        if old is None:
            return 404, {"message": f"no {kind} {name}"}
        if verb == "get":
            return 200, old
        if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        return 200, self._put(kind, namespace, name, body)


def _selected(value: dict[str, Any], query: dict[str, list[str]]) -> bool:
    labels = value["metadata"].get("labels", {})
    for selector in query.get("labelSelector", []):
        for term in selector.split(","):
            key, _, wanted = term.partition("=")
            if labels.get(key) != wanted:
                return False
    for selector in query.get("fieldSelector", []):
        if selector != f"status.phase={value.get('status', {}).get('phase')}":
            return False
    return True
