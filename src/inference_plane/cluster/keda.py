"""The real KEDA beside an embedded control plane: operator, metrics adapter as an API of the cluster, and webhooks.

It dials the addresses of pods, so where it is to read from them, the whole runs inside `network.inside`.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import time
from collections.abc import Iterator

from inference_plane import tools
from inference_plane.cluster import definitions, webhooks
from inference_plane.cluster.client import Client, Object
from inference_plane.cluster.diagnose import condition
from inference_plane.cluster.embedded import Embedded, environment
from inference_plane.onehost.processes import Process, free_port

MODULE = "github.com/kedacore/keda/v2"
NAMESPACE = "keda"
TOOLS = ("keda-operator", "keda-adapter", "keda-webhooks")
#: The operator watches all of them.
DEFINITIONS = tuple(f"{kind}.keda.sh" for kind in ("scaledobjects", "scaledjobs", "triggerauthentications"))
DEFINITIONS += ("clustertriggerauthentications.keda.sh",)
DEFINITIONS += ("cloudeventsources.eventing.keda.sh", "clustercloudeventsources.eventing.keda.sh")
READY_SECONDS = 90


@contextlib.contextmanager
def running(cluster: Embedded) -> Iterator[list[Process]]:
    """All of it, ready and called by the API server; remove ScaledObjects before it ends, for the operator holds them.

    Raises:
        NotReady: one ended, or is not ready in time.
        RuntimeError: kubectl is missing, or refuses the module's manifests.
    """
    binaries, client = {name: tools.build(name) for name in TOOLS}, Client(cluster.kubeconfig)
    definitions.install(client, DEFINITIONS)
    objects = webhooks.kustomized(tools.source("keda-operator", MODULE) / "config" / "default")
    wanted = [o for o in objects if o["kind"] in webhooks.KINDS]
    (service,) = [o for o in objects if o["kind"] == "APIService"]
    api = service["spec"]["service"]
    certificates = cluster.folder / "keda"
    hosts = ("localhost", "127.0.0.1", f"{api['name']}.{api['namespace']}.svc")
    webhooks.certify(cluster, certificates, wanted, hosts)
    shutil.copy(cluster.authority.certificate, certificates / "ca.crt")
    port, secure, grpc = free_port(), free_port(), free_port()
    variables = environment(
        {
            "KUBECONFIG": str(cluster.kubeconfig),
            "POD_NAMESPACE": NAMESPACE,
            "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
            "WATCH_NAMESPACE": "",
            "KEDA_HTTP_DEFAULT_TIMEOUT": "3000",
        }
    )
    started: list[Process] = []

    def start(name: str, ready: str, *arguments: str) -> None:
        started.append(
            cluster.processes.start(
                name,
                [binaries[name], *arguments, f"--cert-dir={certificates}"],
                variables,
                cluster.folder / "logs" / f"{name}.log",
                ready,
                timeout=READY_SECONDS,
            )
        )

    def manager(name: str, *arguments: str) -> None:
        metrics, health = free_port(), free_port()
        listens = (f"--metrics-bind-address=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{health}")
        start(name, f"http://127.0.0.1:{health}/readyz", *listens, *arguments)

    try:
        manager("keda-operator", f"--metrics-service-bind-address=127.0.0.1:{grpc}")
        metrics = free_port()  # of all interfaces: it has no option for one
        files = ("--lister-kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig")
        start(
            "keda-adapter",
            f"http://127.0.0.1:{metrics}/metrics",
            *(f"{file}={cluster.kubeconfig}" for file in files),
            "--bind-address=127.0.0.1",
            f"--secure-port={secure}",
            f"--port={metrics}",
            f"--tls-cert-file={certificates / 'tls.crt'}",
            f"--tls-private-key-file={certificates / 'tls.key'}",
            f"--client-ca-file={cluster.authority.certificate}",
            f"--metrics-service-address=127.0.0.1:{grpc}",
        )
        manager("keda-webhooks", f"--port={port}")
        webhooks.register(client, cluster, wanted, port)
        _serve(client, cluster, service, secure)
        for o in _rights(objects):
            client.apply(o)
        yield started
    finally:
        webhooks.unregister(client, wanted)
        client.delete(*_identity(service))
        for process in reversed(started):
            cluster.processes.stop(process)


def _serve(client: Client, cluster: Embedded, service: Object, port: int) -> None:
    """Makes the adapter, on a port of loopback, the API that its APIService names, and waits until it is."""
    where = service["spec"]["service"]
    webhooks.lead_here(client, where["namespace"], where["name"])
    where["port"] = port
    service["spec"]["caBundle"] = base64.b64encode(cluster.authority.certificate.read_bytes()).decode()
    service["spec"].pop("insecureSkipTLSVerify", None)
    client.apply(service)
    deadline = time.monotonic() + READY_SECONDS
    while condition(found := client.get(*_identity(service)), "Available") != "True":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{service['metadata']['name']} is not available: {found.get('status')}")
        time.sleep(0.1)


def _rights(objects: list[Object]) -> list[Object]:
    """What lets the autoscaler of Kubernetes read the adapter's API: the bindings of its account, with their roles."""
    account = "horizontal-pod-autoscaler"
    bindings = [o for o in objects if account in {subject["name"] for subject in o.get("subjects", ())}]
    roles = {(o["roleRef"]["kind"], o["roleRef"]["name"]) for o in bindings}
    return [o for o in objects if (o["kind"], o["metadata"]["name"]) in roles] + bindings


def _identity(o: Object) -> tuple[str, str, str]:
    return o["apiVersion"], o["kind"], o["metadata"]["name"]
