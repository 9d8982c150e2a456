"""Webhooks of a controller that runs as a process beside an embedded control plane, by its own manifests.

The API server calls a webhook by its Service. One of type ExternalName leads it to loopback, so a controller's own
configurations serve as they are, but for the port and the authority of its certificate.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from inference_plane.cluster.client import Client, Object
from inference_plane.cluster.embedded import Embedded

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")


def kustomized(folder: Path) -> list[Object]:
    """The objects that `kubectl kustomize` makes of a module's folder.

    Raises:
        RuntimeError: kubectl is missing, or refuses the folder.
    """
    if shutil.which("kubectl") is None:
        raise RuntimeError("no kubectl on PATH: run the command by its file in scripts/, which sets it up")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"kubectl kustomize {folder}: {done.stderr.strip()}")
    return [o for o in yaml.load_all(done.stdout, _LOADER) if o]


def configurations(folder: Path) -> list[Object]:
    """The webhook configurations among them. Raises as `kustomized`."""
    return [o for o in kustomized(folder) if o["kind"] in KINDS]


def certify(cluster: Embedded, folder: Path, wanted: list[Object], further: Iterable[str] = ()) -> None:
    """Writes `tls.crt` and `tls.key` into a folder, for the names by which the API server calls these webhooks.

    And for `further` hosts, where the controller has but one certificate for all that it serves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hosts = [*(f"{name}.{namespace}.svc" for namespace, name in _services(wanted)), *further]
    certificate, key = cluster.authority.issue(folder.name, hosts[0], hosts=hosts)
    shutil.copy(certificate, folder / "tls.crt")
    shutil.copy(key, folder / "tls.key")


def register(client: Client, cluster: Embedded, wanted: list[Object], port: int) -> None:
    """Makes the API server call these webhooks on a port of loopback, where their controller listens by now."""
    authority = base64.b64encode(cluster.authority.certificate.read_bytes()).decode()
    for service in _services(wanted):
        lead_here(client, *service)
    for o in wanted:
        for webhook in o["webhooks"]:
            webhook["clientConfig"]["caBundle"] = authority
            webhook["clientConfig"]["service"]["port"] = port
        client.apply(o)


def lead_here(client: Client, namespace: str, name: str) -> None:
    """A Service that leads the API server to this machine's loopback."""
    if client.get("v1", "Namespace", namespace) is None:
        client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    spec = {"type": "ExternalName", "externalName": "localhost"}
    client.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}, namespace)


def unregister(client: Client, wanted: list[Object]) -> None:
    """Ends the calls, before the controller ends: else the API server would refuse what it cannot ask about."""
    for o in wanted:
        client.delete(o["apiVersion"], o["kind"], o["metadata"]["name"])


def _services(wanted: list[Object]) -> list[tuple[str, str]]:
    """(namespace, name) of the Services that the configurations name."""
    found = [webhook["clientConfig"]["service"] for o in wanted for webhook in o["webhooks"]]
    return sorted({(service["namespace"], service["name"]) for service in found})
