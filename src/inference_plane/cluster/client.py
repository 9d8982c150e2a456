"""A client of one API server that speaks in plain objects, as manifests are: by kind, no classes to convert to."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

Object = dict[str, Any]
FIELD_MANAGER = "inference-plane"


class Refused(RuntimeError):
    """The API server said no; the message is its own. `status` is the HTTP status, `reason` its word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class Client:
    """What `kubectl` does with a kubeconfig, as calls. Each raises Refused where the API server refuses."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        configuration.proxy = None  # the address is loopback, or one that a kubeconfig of the user names
        self._api = client.ApiClient(configuration)
        self.server = configuration.host
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> dict[str, Any]:
        """One request; what it answers. None among `query` is left out."""
        words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
        words = {key: value for key, value in words.items() if value is not None}
        try:
            reply = self._api.call_api(
                path,
                method,
                query_params=list(words.items()),
                header_params={"Accept": "application/json", "Content-Type": media, **(headers or {})},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
            )
        except ApiException as error:
            raise _refused(error) from None
        text = reply.data
        return json.loads(text) if text.startswith(b"{") else {"text": text.decode()}

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """One object, or None where there is none of that name."""
        try:
            return self.call("GET", self._path(api_version, kind, namespace, name))
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str | None = None, **query: Any) -> list[Object]:
        """The objects of a kind, of all namespaces where none is named, with kind and version as a single one has."""
        found = self.call("GET", self._path(api_version, kind, namespace), **query)["items"]
        return [{"apiVersion": api_version, "kind": kind, **item} for item in found]

    def create(self, body: Object, namespace: str | None = None, **query: Any) -> Object:
        path = self._path(body["apiVersion"], body["kind"], _namespace(body, namespace))
        return self.call("POST", path, body, **query)

    def apply(
        self, body: Object, namespace: str | None = None, *, manager: str = FIELD_MANAGER, force: bool = True
    ) -> Object:
        """Server-side apply, which takes over what others own; without `force` it is refused where it would."""
        path = self._path(body["apiVersion"], body["kind"], _namespace(body, namespace), body["metadata"]["name"])
        media = "application/apply-patch+yaml"
        return self.call("PATCH", path, body, media=media, fieldManager=manager, force=force)

    def patch(
        self, api_version: str, kind: str, name: str, change: Mapping[str, Any], namespace: str | None = None,
        *, subresource: str = "",
    ) -> Object:  # fmt: skip
        """Merges a change in; None removes a key."""
        path = self._path(api_version, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return self.call("PATCH", path, dict(change), media="application/merge-patch+json")

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None, **query: Any) -> None:
        """Asks for an object's end; it is no error where it is gone."""
        try:
            self.call("DELETE", self._path(api_version, kind, namespace, name), **query)
        except Refused as error:
            if error.status != 404:
                raise

    def kinds(self) -> Iterator[tuple[str, str, bool, tuple[str, ...]]]:
        """(group/version, plural name, whether in namespaces, verbs) of all that the server has, subresources too."""
        versions = ["v1"]
        for group in self.call("GET", "/apis")["groups"]:
            versions += [version["groupVersion"] for version in group["versions"]]
        for version in versions:
            for entry in self.call("GET", _prefix(version))["resources"]:
                yield version, entry["name"], entry["namespaced"], tuple(entry["verbs"])

    def _path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        plural, namespaced = self._resource(api_version, kind)
        words = [_prefix(api_version)]
        if namespaced and namespace:
            words += ["namespaces", namespace]
        words.append(plural)
        if name:
            words.append(urllib.parse.quote(name))
        return "/".join(words)

    def _resource(self, api_version: str, kind: str) -> tuple[str, bool]:
        """The plural name of a kind, and whether it is in namespaces; asked once, and again for a kind that is new."""
        if kind not in self._resources.get(api_version, {}):
            entries = self.call("GET", _prefix(api_version))["resources"]
            found = {e["kind"]: (e["name"], e["namespaced"]) for e in entries if "/" not in e["name"]}
            self._resources[api_version] = found
        if kind not in self._resources[api_version]:
            raise LookupError(f"the API server has no {kind} in {api_version}")
        return self._resources[api_version][kind]


def _refused(error: ApiException) -> Refused:
    try:
        said = json.loads(error.body)
        return Refused(error.status, said.get("reason", ""), said["message"])
    except (ValueError, TypeError, KeyError):
        return Refused(error.status, error.reason or "", f"{error.status} {error.reason}: {error.body}")


def _namespace(body: Object, namespace: str | None) -> str | None:
    return body.get("metadata", {}).get("namespace") or namespace


def _prefix(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
