"""The real AWS Load Balancer Controller as a process beside an embedded control plane, with its webhooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from inference_plane import tools
from inference_plane.cluster import definitions, webhooks
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Client
from inference_plane.cluster.embedded import Embedded, environment
from inference_plane.onehost.processes import Process, free_port

MODULE = "sigs.k8s.io/aws-load-balancer-controller"
DEFINITIONS = ("targetgroupbindings.elbv2.k8s.aws", "ingressclassparams.elbv2.k8s.aws")
READY_SECONDS = 90


@contextlib.contextmanager
def running(cluster: Embedded, account: Account, name: str, vpc: str) -> Iterator[Process]:
    """The controller for the cluster `name` in a VPC of `account`, with the IngressClass `alb` that its chart brings.

    Raises:
        NotReady: it ended, or is not ready in time.
    """
    binary, client = tools.build("lbc"), Client(cluster.kubeconfig)
    definitions.install(client, DEFINITIONS)
    client.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {"name": "alb"},
            "spec": {"controller": "ingress.k8s.aws/alb"},
        }
    )
    wanted = webhooks.configurations(tools.source("lbc", MODULE) / "config" / "webhook")
    certificates = cluster.folder / "lbc"
    webhooks.certify(cluster, certificates, wanted)
    port, metrics, health = free_port(), free_port(), free_port()
    process = cluster.processes.start(
        "lbc",
        [
            binary,
            f"--kubeconfig={cluster.kubeconfig}",
            f"--cluster-name={name}",
            f"--aws-region={account.region}",
            f"--aws-vpc-id={vpc}",
            "--enable-leader-election=false",
            f"--webhook-cert-dir={certificates}",
            f"--webhook-bind-port={port}",
            f"--metrics-bind-addr=127.0.0.1:{metrics}",
            f"--health-probe-bind-addr=127.0.0.1:{health}",
            "--enable-shield=false",  # moto has neither
            "--enable-waf=false",
            "--enable-wafv2=true",
        ],
        environment(account.environment),
        cluster.folder / "logs" / "lbc.log",
        f"http://127.0.0.1:{health}/readyz",
        timeout=READY_SECONDS,
    )
    try:
        webhooks.register(client, cluster, wanted, port)
        yield process
    finally:
        webhooks.unregister(client, wanted)
        cluster.processes.stop(process)
