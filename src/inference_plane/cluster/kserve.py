"""The real KServe manager as a process beside an embedded control plane, with its webhooks.

Its configuration is the one that its module brings, unchanged: what an InferenceService leaves out gets those defaults.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from inference_plane import tools
from inference_plane.cluster import definitions, webhooks
from inference_plane.cluster.client import Client
from inference_plane.cluster.embedded import Embedded, environment
from inference_plane.onehost.processes import Process, free_port

MODULE = "github.com/kserve/kserve"
NAMESPACE = "kserve"
READY_SECONDS = 90


@contextlib.contextmanager
def running(cluster: Embedded) -> Iterator[Process]:
    """The manager, ready, with its webhooks called; remove InferenceServices before it ends, for it holds them.

    Raises:
        NotReady: it ended, or is not ready in time.
        RuntimeError: kubectl is missing, or refuses the module's manifests.
    """
    binary, client = tools.build("kserve"), Client(cluster.kubeconfig)
    config = tools.source("kserve", MODULE) / "config"
    objects = webhooks.kustomized(config / "default")
    definitions.establish(client, [o for o in objects if o["kind"] == "CustomResourceDefinition"])
    if client.get("v1", "Namespace", NAMESPACE) is None:
        client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for o in webhooks.kustomized(config / "configmap"):
        client.apply(o)
    wanted = [o for o in objects if o["kind"] in webhooks.KINDS]
    # Where it looks for its certificate no argument says.
    temporary = cluster.folder / "kserve"
    webhooks.certify(cluster, temporary / "k8s-webhook-server" / "serving-certs", wanted)
    port, metrics, health = free_port(), free_port(), free_port()
    process = cluster.processes.start(
        "kserve",
        [
            binary,
            f"--webhook-port={port}",
            f"--metrics-addr=127.0.0.1:{metrics}",
            f"--health-probe-addr=127.0.0.1:{health}",
        ],
        environment({"KUBECONFIG": str(cluster.kubeconfig), "POD_NAMESPACE": NAMESPACE, "TMPDIR": str(temporary)}),
        cluster.folder / "logs" / "kserve.log",
        f"http://127.0.0.1:{health}/readyz",
        timeout=READY_SECONDS,
    )
    try:
        webhooks.register(client, cluster, wanted, port)
        yield process
    finally:
        webhooks.unregister(client, wanted)
        cluster.processes.stop(process)
