"""The real AWS Load Balancer Controller as a process beside an embedded control plane, with its webhooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from inference_plane import tools
from inference_plane.cluster import definitions, webhooks
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Client
from inference_plane.cluster.embedded import Embedded, environment
from inference_plane.onehost.processes import free_port

MODULE = "sigs.k8s.io/aws-load-balancer-controller"
DEFINITIONS = ("targetgroupbindings.elbv2.k8s.aws", "ingressclassparams.elbv2.k8s.aws")

#: What it watches beside these with GATEWAY, an argument for `running`.
GATEWAY_DEFINITIONS = (
    "gatewayclasses.gateway.networking.k8s.io",
    "gateways.gateway.networking.k8s.io",
    "grpcroutes.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "listenerruleconfigurations.gateway.k8s.aws",
    "loadbalancerconfigurations.gateway.k8s.aws",
    "referencegrants.gateway.networking.k8s.io",
    "targetgroupconfigurations.gateway.k8s.aws",
)
GATEWAY = "--feature-gates=ALBGatewayAPI=true"

#: Classes as whoever installs the controller makes them.
CLASSES = (
    ("networking.k8s.io/v1", "IngressClass", {"controller": "ingress.k8s.aws/alb"}),
    ("gateway.networking.k8s.io/v1", "GatewayClass", {"controllerName": "gateway.k8s.aws/alb"}),
)
READY_SECONDS = 90


class Controller:
    """One that can be killed and started again at the same addresses, as a pod of its Deployment would be.

    Raises, when it starts:
        NotReady: it ended, or is not ready in time.
    """

    def __init__(self, cluster: Embedded, account: Account, arguments: list[str], health: int) -> None:
        self._cluster, self._account = cluster, account
        self._arguments, self._health = [str(tools.build("lbc")), *arguments], health
        self.start()

    def start(self) -> None:
        self.process = self._cluster.processes.start(
            "lbc",
            self._arguments,
            environment(self._account.environment),
            self._cluster.folder / "logs" / "lbc.log",
            f"http://127.0.0.1:{self._health}/readyz",
            timeout=READY_SECONDS,
        )

    def kill(self) -> None:
        self.process.kill()
        self.stop()

    def stop(self) -> None:
        self._cluster.processes.stop(self.process)


@contextlib.contextmanager
def running(cluster: Embedded, account: Account, name: str, vpc: str, *further: str) -> Iterator[Controller]:
    """The controller for the cluster `name` in a VPC of `account`, with the classes `alb` that it serves.

    `further` are arguments beside those that it needs.
    """
    client = Client(cluster.kubeconfig)
    definitions.install(client, (*DEFINITIONS, *(GATEWAY_DEFINITIONS if GATEWAY in further else ())))
    for version, kind, spec in CLASSES if GATEWAY in further else CLASSES[:1]:
        client.apply({"apiVersion": version, "kind": kind, "metadata": {"name": "alb"}, "spec": spec})
    wanted = webhooks.configurations(tools.source("lbc", MODULE) / "config" / "webhook")
    certificates = cluster.folder / "lbc"
    webhooks.certify(cluster, certificates, wanted)
    port, metrics, health = free_port(), free_port(), free_port()
    arguments = [
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
        *further,
    ]
    controller = Controller(cluster, account, arguments, health)
    try:
        webhooks.register(client, cluster, wanted, port)
        yield controller
    finally:
        webhooks.unregister(client, wanted)
        controller.stop()
