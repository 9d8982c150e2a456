"""The elastic plane: what runs, in the order in which it starts."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from inference_plane import helm
from inference_plane.checkout import CHARTS, ROOT
from inference_plane.cluster import definitions, karpenter, keda, kserve, nodes
from inference_plane.cluster.aws import Account
from inference_plane.cluster.client import Client
from inference_plane.cluster.embedded import Embedded
from inference_plane.demo.plane import CHART, MIDDLEWARE, NAMESPACE, Step, middleware
from inference_plane.helm import KUBERNETES_VERSION
from inference_plane.load.targets import Restricted, timed_bedrock
from inference_plane.onehost.bedrock import CredentialEndpoint
from inference_plane.onehost.dns import DnsServer
from inference_plane.onehost.issuer import Issuer
from inference_plane.onehost.policy import NAME as POLICY
from inference_plane.onehost.processes import Process, Processes, free_port
from inference_plane.onehost.serving import ServerThread

from . import catalogue, endpoints, steps
from .balancer import Balancer
from .driver import LoopDriver, warning
from .glances import SECONDS as GLANCE_SECONDS
from .glances import Glances
from .repeated import Looks, repeated
from .routers import Routers
from .times import Times
from .watch import SECONDS as WATCH_SECONDS
from .watch import Watch, document

#: How long a name's addresses are good, in seconds: CoreDNS' own `ttl` for Services.
TTL = 5
_POLL_SECONDS = 0.5
#: The policy's hold and its way down, and as much again.
_CALM_SECONDS = 120.0
#: Until models that sleep do so again: what was asked is forgotten, the cooldown is over, the pod has drained, and
#: Karpenter has waited; and as much again.
_REST_SECONDS = 600.0


class Loop(contextlib.ExitStack):
    """A context manager: the whole elastic plane. Enter it in a network namespace where 10.244.0.0/16 is local.

    It runs what `catalogue.chosen` takes of `models`. `url` is where clients call, `token` makes a tenant's token,
    `restricted` counts the restricted prompts that Amazon Bedrock's stand-in saw. Raises LookupError where the
    catalogue has not all of the models, NotReady or TimeoutError where something does not start.
    """

    def __init__(self, folder: Path, step: Step, times: Times, models: Collection[str]) -> None:
        super().__init__()
        self._environment = catalogue.chosen(models, times)
        self.deployments = catalogue.deployments(self._environment)
        self.asleep = catalogue.sleeping(self._environment)
        self.folder, self.step, self.times = folder, step, times
        self.issuer, self.namespace, self.driver = Issuer(), NAMESPACE, LoopDriver(self)

    def token(self, tenant: str) -> str:
        return self.issuer.token(tenant, seconds=24 * 3600)

    def warn(self, instance: str) -> None:
        """EC2 says that it takes a Spot instance in two minutes."""
        sqs = self.account.client("sqs")
        sqs.send_message(QueueUrl=self._queue, MessageBody=warning(instance, self.account.region))

    def fleet(self, began: float) -> list[dict[str, Any]]:
        """What the loops did since `began` (epoch seconds), second by second."""
        for problem, count in self._watch.problems.items():
            print(f"not seen {count} times of {len(self._watch.seen) + count}: {problem}", file=sys.stderr)
        return document(self._watch.seen, began)

    def steps(self, began: float, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """What the models that sleep went through since `began`, with the router's lines; None where none sleeps.

        Returns once they sleep again and their nodes are gone, or after ten minutes without what did not happen.
        """
        if not self.asleep:
            return None
        with self.step("nobody asks any more: back to no replica and no node"), contextlib.suppress(TimeoutError):
            self._wait_for_rest()
        return steps.document(self._glances.seen, lines, began, self.times)

    def __enter__(self) -> Loop:
        super().__enter__()
        with contextlib.ExitStack() as started:
            self._start(started)
            self.push(started.pop_all())
        return self

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.processes = stack.enter_context(Processes())
        self.dns = stack.enter_context(DnsServer(ttl=TTL))
        environment = self._environment
        region = environment["global"]["aws"]["region"]
        self.account = stack.enter_context(Account(region))
        _furnish(self.account, environment)
        self.restricted = Restricted()
        bedrock = timed_bedrock(environment, self.restricted)
        server = stack.enter_context(ServerThread(bedrock, port=free_port()))
        credentials = stack.enter_context(CredentialEndpoint(self.folder / "token"))
        self.values = helm.merged(environment, {"router": {
            "auth": self.issuer.values(),
            "dns": {"resolvers": [f"127.0.0.1:{self.dns.port}"]},
            "bedrock": {"host": "127.0.0.1", "port": server.port, "tls": False},
            "concurrency": 1,
        }})
        with self.step("the control plane starts"):
            (self.folder / "cluster").mkdir()
            self.cluster = Embedded(self.folder / "cluster", self.processes, left_out=("engine", "router"))
            self.cluster.start()
            self.client = Client(self.cluster.kubeconfig)
            definitions.install(self.client)
            for node in nodes.ordinary(region):
                self.client.create(node)
        with self.step("Karpenter starts"):
            name = environment["global"]["aws"]["clusterName"]
            self._queue = self.account.client("sqs").create_queue(QueueName=name)["QueueUrl"]
            karpenter.start(self.cluster, self.account, name, INTERRUPTION_QUEUE=name)
            self.kubelets = stack.enter_context(
                karpenter.Kubelets(self.cluster.kubeconfig, self.account, self.times.boot))
        with self.step("KEDA starts"):
            stack.enter_context(keda.running(self.cluster))
        if catalogue.kserve(environment):
            with self.step("KServe starts"):
                stack.enter_context(kserve.running(self.cluster))
        with self.step("Helm installs the plane"):
            self.render = helm.template(CHART, values=self.values, namespace=NAMESPACE)
            self.install(self.values)
        self._start_policy()
        stack.enter_context(repeated(_POLL_SECONDS, lambda: _resolve(self.client, self.dns)))
        self._start_kubelet(credentials.env)
        with self.step("nodes come, engines load, and every Envoy finds them"):
            replicas = self.render.find("Deployment", "router")["spec"]["replicas"]
            self.router = Routers(self.client, self.processes, NAMESPACE, self.folder, replicas)
            wanted = {name: entry["replicas"]["min"] for name, entry in catalogue.models(self.values).items()}
            awake = {name: least for name, least in wanted.items() if least}
            self.router.wait_for_engines(awake, timeout=60 + sum(vars(self.times).values()))
        with self.step("the policy service has seen the engines, and sends all to them"):
            # All that may leave a model that sleeps does.
            falls = [name for name, entry in catalogue.models(self.values).items() if "fallback" in entry]
            shares = {f"fallback.{name}": "0" for name in falls if name not in self.asleep}
            self.router.wait_for_shares(shares, _CALM_SECONDS)
        with self.step("the load balancer starts"):
            ingress = self.render.find("Ingress", "router")
            self.url = stack.enter_context(Balancer(self.processes, ingress, self.client, self.folder)).url
        if self.asleep:
            own = {name: self.deployments[name] for name in self.asleep}
            found = functools.partial(self.router.found, self.asleep)
            glances = Glances(self.client, self.policy_url, NAMESPACE, own, found)
            self._glances = stack.enter_context(Looks(GLANCE_SECONDS, glances.look))
            with self.step("nobody asks: KEDA takes a new Deployment's first replica, and its node goes"):
                self._wait_for_rest()
        watch = Watch(self.client, self.policy_url, NAMESPACE, self.deployments)
        self._watch = stack.enter_context(Looks(WATCH_SECONDS, watch.read))

    def _wait_for_rest(self) -> None:
        """Raises TimeoutError where somebody still asks, or something is still there."""
        deadline = time.monotonic() + _REST_SECONDS
        while not (seen := self._glances.seen[-1:]) or not steps.asleep(seen[0]):
            self.processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {_REST_SECONDS:g} s not at rest: {seen}, {dict(self._glances.problems)}")
            time.sleep(_POLL_SECONDS)

    def install(self, values: dict[str, Any]) -> None:
        """`helm upgrade --install` of the plane; whatever it changes comes later."""
        file = self.folder / "values.json"
        file.write_text(json.dumps(values))
        helm.run(
            "upgrade", "--install", "plane", str(CHARTS / CHART), "--namespace", NAMESPACE, "--create-namespace",
            "--values", str(file), "--kubeconfig", str(self.cluster.kubeconfig))

    def _start_kubelet(self, credentials: Mapping[str, str]) -> Process:
        file = self.folder / MIDDLEWARE
        file.write_text(middleware(self.render))
        log = self.folder / "kubelet.log"
        return self._python(
            "kubelet", "inference_plane.loop.kubelet",
            {"--kubeconfig": self.cluster.kubeconfig, "--folder": self.folder, "--middleware": file,
             "--image-seconds": self.times.image, "--weights-seconds": self.times.weights},
            log, lambda: "kubelet: ready" in log.read_text(), credentials)

    def _start_policy(self) -> Process:
        """The policy service on its own configuration, on every address; it asks the API server by a proxy."""
        port, file = free_port(), self.folder / "policy.json"
        self.processes.start(
            "kubectl-proxy",
            ["kubectl", "proxy", f"--port={port}", f"--kubeconfig={self.cluster.kubeconfig}"],
            log_path=self.folder / "kubectl-proxy.log", ready=f"http://127.0.0.1:{port}/readyz")
        text = self.render.find("ConfigMap", POLICY)["data"]["config.json"]
        file.write_text(text)
        self.policy_url = f"http://127.0.0.1:{json.loads(text)['listen']['statusPort']}"
        return self._python(
            "policy", "inference_plane.policy", {"--config": file, "--kubernetes": f"http://127.0.0.1:{port}"},
            self.folder / "policy.log", f"{self.policy_url}/live", {"POD_NAME": f"{POLICY}-0", "POD_IP": "127.0.0.1"})

    def _python(
        self, name: str, module: str, options: dict[str, Any], log: Path, ready: Any, more: Mapping[str, str]
    ) -> Process:
        words = [str(word) for pair in options.items() for word in pair]
        return self.processes.start(
            name, [sys.executable, "-m", module, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **more}, log_path=log, ready=ready, timeout=60)


def _furnish(account: Account, environment: dict[str, Any]) -> None:
    """What the cloud team's Terraform makes: subnets and a security group with their tags, the nodes' role, AMIs."""
    pools = environment["karpenter-nodepools"]
    account.make_network(pools["nodeClass"]["subnetTags"], pools["nodeClass"]["securityGroupTags"])
    account.make_role(pools["nodeClass"]["role"])
    account.publish_bottlerocket(pools["ec2"]["amiAlias"].partition("@")[2], KUBERNETES_VERSION.rpartition(".")[0])


def _resolve(client: Client, dns: DnsServer) -> None:
    """DNS as CoreDNS has it: of each Service the ready addresses of its EndpointSlices."""
    found: dict[str, list[str]] = {}
    for each in client.list("discovery.k8s.io/v1", "EndpointSlice"):
        service = each["metadata"]["labels"].get("kubernetes.io/service-name")
        name = f"{service}.{each['metadata']['namespace']}.svc.cluster.local"
        found.setdefault(name, []).extend(endpoints.ready(each))
    for name, addresses in found.items():
        dns.set(name, addresses)
