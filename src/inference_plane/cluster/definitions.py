"""The CustomResourceDefinitions of the pinned modules, and the project's own, on an API server."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inference_plane.cluster.client import Client, Refused
from inference_plane.manifests import crds

READY_SECONDS = 60

#: Of what the charts make objects. The modules have more, and an API server takes a second for a large one.
RENDERED = (
    "certificates.cert-manager.io",
    "ec2nodeclasses.karpenter.k8s.aws",
    "gateways.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "inferenceservices.serving.kserve.io",
    "ingressclassparams.eks.amazonaws.com",
    "loadbalancerconfigurations.gateway.k8s.aws",
    "nodeclasses.eks.amazonaws.com",
    "nodepools.karpenter.sh",
    "podidentityassociations.eks.services.k8s.aws",
    "podmonitors.monitoring.coreos.com",
    "prometheusrules.monitoring.coreos.com",
    "roles.iam.services.k8s.aws",
    "scaledobjects.keda.sh",
    "targetgroupconfigurations.gateway.k8s.aws",
)


def documents(names: Iterable[str] = RENDERED, cache: Path = crds.CACHE) -> list[dict[str, Any]]:
    """The definitions of these names, as the API server takes them.

    Raises:
        crds.CRDError: a module cannot be had.
        LookupError: no pinned module has one.
    """
    wanted = set(names)
    groups = {name.partition(".")[2] for name in wanted}
    modules = [module for module in crds.modules() if groups & set(module.groups)]
    files = [file for module in modules for file in sorted(crds.fetch(module, cache).glob("*.y*ml"))]
    files = [file for file in [*files, *sorted(crds.OWN.glob("*.yaml"))] if any(n in file.read_text() for n in wanted)]
    found = [crd for file in files for crd in crds.definitions(file) if crd["metadata"]["name"] in wanted]
    if missing := wanted - {crd["metadata"]["name"] for crd in found}:
        raise LookupError(f"no module in {crds.PINS} has the definition of {', '.join(sorted(missing))}")
    return found


def install(client: Client, names: Iterable[str] = RENDERED) -> list[str]:
    """Creates those definitions that are not there, and waits until the API server serves all; their names.

    Raises:
        Refused: the API server does not take one.
        TimeoutError: one is not established.
        crds.CRDError, LookupError: as `documents`.
    """
    return establish(client, documents(names))


def establish(client: Client, wanted: list[dict[str, Any]]) -> list[str]:
    """As `install`, of definitions that somebody else has found."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda crd: _create(client, crd), wanted))
    names = [crd["metadata"]["name"] for crd in wanted]
    deadline = time.monotonic() + READY_SECONDS
    missing = names
    while missing := [name for name in missing if not _established(client, name)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not established after {READY_SECONDS} s: {', '.join(missing)}")
        time.sleep(0.1)
    return names


def _create(client: Client, crd: dict[str, Any]) -> None:
    try:
        client.create(crd)
    except Refused as error:
        if error.reason != "AlreadyExists":
            raise


def _established(client: Client, name: str) -> bool:
    crd = client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
    conditions = (crd or {}).get("status", {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
