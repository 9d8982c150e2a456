"""The few routes of the Kubernetes API that the service uses, as plain JSON over aiohttp.

Not by a client library: kubernetes-asyncio would more than double the memory of the process (73 MB after its import
against 33 MB) and make an object of every field of every pod, to call the five routes below.
"""

from __future__ import annotations

import datetime
import email.utils
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from .fetch import ReadError, read
from .readings import Fleet, WaitingPods

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Engines alone: what holds nodes free, and whatever else runs in the namespace, never counts.
_ENGINES = "app.kubernetes.io/component=engine"
_NAME = "app.kubernetes.io/name"
_SERVICE = "kubernetes.io/service-name"


class Kubernetes:
    """A session with an API server. `account` is a mounted service account (`token`, `ca.crt`), or None for none.

    The token is read for each request, because the kubelet replaces it while the process runs.
    """

    def __init__(self, url: str, account: Path | None, *, seconds: float, size: int) -> None:
        self._url, self._account, self._seconds, self._size = url.rstrip("/"), account, seconds, size
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def of_pod(cls, *, seconds: float, size: int) -> Kubernetes:
        """Raises KeyError outside a pod."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", _ACCOUNT, seconds=seconds, size=size)

    async def __aenter__(self) -> Kubernetes:
        tls = ssl.create_default_context(cafile=self._account / "ca.crt") if self._account else True
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def ready(self, namespace: str, service: str | None = None) -> dict[Fleet, list[str]]:
        """The addresses that are ready, by Service: of the one named, or of all engines of the namespace."""
        selector = f"{_SERVICE}={service}" if service else _ENGINES
        items, _ = await self._list(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", selector)
        found: dict[Fleet, list[str]] = {}
        for item in items:
            if item.get("addressType", "IPv4") != "IPv4":
                continue  # A pod of two families has a slice of each; routers ask DNS for IPv4 alone.
            name = item.get("metadata", {}).get("labels", {}).get(_SERVICE)
            addresses = found.setdefault((namespace, name), [])
            for endpoint in item.get("endpoints") or ():
                # `ready` is false for a pod that terminates, and absent where nobody knows better than "yes".
                if (endpoint.get("conditions") or {}).get("ready") is not False:
                    addresses += [a for a in endpoint.get("addresses", ())[:1] if a not in addresses]
        return found

    async def waiting_pods(self, namespace: str) -> dict[Fleet, WaitingPods]:
        """Engine pods that have no node yet, by fleet. Their age is by the API server's clock alone."""
        items, now = await self._list(
            f"/api/v1/namespaces/{namespace}/pods", _ENGINES, fieldSelector="status.phase=Pending"
        )
        found: dict[Fleet, WaitingPods] = {}
        for item in items:
            metadata = item.get("metadata", {})
            if item.get("spec", {}).get("nodeName") or metadata.get("deletionTimestamp"):
                continue  # It has its accelerator and starts, or it leaves.
            fleet = namespace, metadata.get("labels", {}).get(_NAME)
            age = max(0.0, (now - _time(metadata["creationTimestamp"])).total_seconds()) if now else 0.0
            before = found.get(fleet, WaitingPods())
            found[fleet] = WaitingPods(before.count + 1, max(before.oldest_seconds, age))
        return found

    async def lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """None where there is none."""
        try:
            return await self._send("GET", f"{_leases(namespace)}/{name}")
        except ReadError as error:
            if error.status == 404:
                return None
            raise

    async def create_lease(self, namespace: str, lease: Mapping[str, Any]) -> dict[str, Any]:
        return await self._send("POST", _leases(namespace), lease)

    async def replace_lease(self, namespace: str, lease: Mapping[str, Any]) -> dict[str, Any]:
        return await self._send("PUT", f"{_leases(namespace)}/{lease['metadata']['name']}", lease)

    async def create_event(self, namespace: str, event: Mapping[str, Any]) -> None:
        await self._send("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", event)

    async def _list(
        self, path: str, selector: str, **parameters: str
    ) -> tuple[list[dict[str, Any]], datetime.datetime | None]:
        """The items, and what the API server's clock says; from its cache, without a look into etcd."""
        parameters |= {"labelSelector": selector, "resourceVersion": "0"}
        value, headers = await self._ask("GET", path, params=parameters)
        items = value.get("items")
        if not isinstance(items, list):
            raise ReadError("garbage", f"{path}: no list")
        date = headers.get("Date")
        return items, email.utils.parsedate_to_datetime(date) if date else None

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        options = {} if body is None else {"json": body}
        return (await self._ask(method, path, **options))[0]

    async def _ask(self, method: str, path: str, **options: Any) -> tuple[dict[str, Any], Mapping[str, str]]:
        """Raises ReadError."""
        assert self._session is not None, "enter it first"
        headers = {"accept": "application/json"}
        if self._account:
            try:
                headers["authorization"] = f"Bearer {(self._account / 'token').read_text().strip()}"
            except OSError as error:
                raise ReadError("connection", f"{self._account / 'token'}: {error.strerror}") from error
        answer = await read(
            self._session,
            self._url + path,
            method=method,
            headers=headers,
            seconds=self._seconds,
            size=self._size,
            **options,
        )
        try:
            value = json.loads(answer.body)
        except ValueError as error:
            raise ReadError("garbage", f"{path}: no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ReadError("garbage", f"{path}: no object")
        return value, answer.headers


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
